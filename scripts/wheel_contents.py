"""Lists the contents of a wheel by folder; `make dist` shows it, so that missing and extra files are noticed."""

from __future__ import annotations

import sys
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath


def contents(wheel: Path) -> str:
    """Return one line for the wheel, and one for each folder with the number and size of its files."""
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    with zipfile.ZipFile(wheel) as archive:
        for file in archive.infolist():
            folder = str(PurePosixPath(file.filename).parent)
            files[folder] += 1
            sizes[folder] += file.file_size
    width = max(map(len, files))
    lines = [f"{wheel.name}: {files.total()} files, {wheel.stat().st_size:,} bytes packed"]
    lines += [f"  {folder:{width}} {files[folder]:4} files {sizes[folder]:9,} bytes" for folder in sorted(files)]
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n".join(contents(Path(name)) for name in sys.argv[1:]))

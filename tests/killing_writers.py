"""Kill processes while they write files under the same names, and print to stderr, as JSON, what the files contained.

The only argument is a folder; set `TMPDIR` to a folder below it, because killed processes leave temporary files. This
runs as a separate process because it forks, which saves the imports of each writer.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from airflow_provider_qwenimage.storage import files as storage
from airflow_provider_qwenimage.storage.paths import open_output_path

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import ObjectStoragePath

_KILLS = 40
# The longest life of a writer, as a multiple of the time that it needs to write everything.
_LONGEST_LIFE = 3
_SIZE_BYTES = 3_000_000


def _write(target: ObjectStoragePath, sources: list[Path]) -> None:
    for source in sources:
        storage.put_file(source, target / "image.bin")
        storage.put_json({"source": source.name, "filler": "狐" * 50_000}, target / "record.json")


def _write_for_ever(target: ObjectStoragePath, sources: list[Path]) -> NoReturn:
    while True:
        _write(target, sources)


def _seconds_to_write(target: ObjectStoragePath, sources: list[Path]) -> float:
    _write(target, sources)
    began = time.monotonic()
    _write(target, sources)
    return time.monotonic() - began


def _is_whole(file: Path, hashes: set[str]) -> bool:
    content = file.read_bytes()
    if file.suffix == ".bin":
        return hashlib.sha256(content).hexdigest() in hashes
    try:
        return len(json.loads(content)["filler"]) == 50_000
    except (ValueError, KeyError):
        return False


def _main(folder: Path) -> None:
    sources, stored = [folder / "one", folder / "other"], folder / "stored"
    for source in sources:
        source.write_bytes(random.randbytes(_SIZE_BYTES))
    hashes = {hashlib.sha256(source.read_bytes()).hexdigest() for source in sources}
    # Opened before the forks, because Airflow needs some time to open a storage for the first time.
    target = open_output_path(f"file://{stored}")
    longest_life = _LONGEST_LIFE * _seconds_to_write(open_output_path(f"file://{folder / 'tried'}"), sources)
    kills, found, cut_off, broken = 0, 0, 0, []
    while kills < _KILLS or not found or not cut_off:
        if kills >= _KILLS:
            # The machine may have become slower in the meantime.
            longest_life *= 1.5
        kills += 1
        child = os.fork()
        if child == 0:
            _write_for_ever(target, sources)
        time.sleep(random.uniform(0, longest_life))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for file in sorted(stored.glob("[!.]*")):
            found += 1
            if not _is_whole(file, hashes):
                broken.append(file.name)
        cut_off = len(list(stored.glob(".*")))
    sys.stderr.write(json.dumps({"found": found, "broken": broken, "cut_off": cut_off}) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))

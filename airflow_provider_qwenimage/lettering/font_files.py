"""Lists the font files of a machine, those that are most likely to be good first."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

# In the order of preference, as the names of their files without suffix, in lower case: letters of Europe and more,
# then Chinese, Japanese and Korean, then symbols.
_KNOWN = (
    "notosans-regular",
    "notosans[wght]",
    "dejavusans",
    "liberationsans-regular",
    "segoeui",
    "arial",
    "helvetica",
    "notosanscjk-regular",
    "notosanscjksc-regular",
    "notosanscjkjp-regular",
    "sourcehansanssc-regular",
    "hiragino sans gb",
    "ヒラギノ角ゴシック w3",
    "pingfang",
    "applesdgothicneo",
    "msyh",
    "yugothm",
    "malgun",
    "wqy-microhei",
    "wqy-zenhei",
    "droidsansfallbackfull",
    "arial unicode",
    "notoemoji-regular",
    "symbola",
    "seguisym",
    "apple symbols",
)
_SCRIPT_OF_NOTO = re.compile(r"noto(sans|naskh)\w*-regular")
# Styles that are not for labels, and fonts that draw the same for every character.
_NOT_PLAIN = re.compile(r"bold|italic|oblique|black|light|thin|condensed|narrow|mono|serif|lastresort|blank")
_SUFFIXES = (".ttf", ".ttc", ".otf", ".otc")
# A folder that anybody may fill is not searched without an end.
_MOST_FILES = 20_000
_MOST_FONTS = 500


def font_files() -> list[Path]:
    """Return the font files in the folders that the operating system has for them."""
    found = sorted({file.resolve() for file in islice(_files_below(_folders()), _MOST_FILES)})
    return sorted((file for file in found if _rank(file) is not None), key=_rank)[:_MOST_FONTS]  # type: ignore[arg-type]


def _rank(file: Path) -> int | None:
    """Return how early a font is tried; None if it is not one for labels."""
    name = file.stem.lower()
    if file.suffix.lower() not in _SUFFIXES:
        return None
    if name in _KNOWN:
        return _KNOWN.index(name)
    if _SCRIPT_OF_NOTO.fullmatch(name):
        return len(_KNOWN)
    return None if _NOT_PLAIN.search(name) else len(_KNOWN) + 1


def _files_below(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        for parent, _, names in os.walk(folder):
            yield from (Path(parent, name) for name in names)


def _folders() -> list[Path]:
    try:
        home = Path.home()
    except RuntimeError:
        # A container's user may have neither a home nor an entry in the list of users.
        home = Path("/nonexistent")
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", str(home))
        return [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts"), Path(local, "Microsoft/Windows/Fonts")]
    own = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share") / "fonts"
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), own, home / ".fonts"]

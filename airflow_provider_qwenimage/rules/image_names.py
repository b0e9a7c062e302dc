"""Checks the name that a user chooses for an image: it becomes the name of its file, on any storage. No I/O."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from airflow_provider_qwenimage.rules.numbers import text_of_number
from airflow_provider_qwenimage.text.messages import is_blank, shown

# A file system allows 255 bytes, and a hidden file of that name has up to 70 more while it is written.
MAX_NAME_BYTES = 150

# Separators; what fsspec expands or cuts off; what URLs and Windows give a meaning.
_REFUSED_CHARACTERS = '/\\:*?"<>|#%[]'
_REFUSED = re.compile(f"[{re.escape(_REFUSED_CHARACTERS)}]")
_OWN_SUFFIX = re.compile(r"\.(jpe?g|png|webp|gif|jsonl?|part)$", re.IGNORECASE)
# A batch's list of its rows and its contact sheet, and an image that was not what was requested.
_OWN_NAME = re.compile(r"manifest(-\d+)?|contact-sheet(-[im]?\d+)*|.*\.refused(-\d+)?", re.IGNORECASE | re.DOTALL)
# Devices, whatever suffix follows.
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d) *(\..*)?", re.IGNORECASE | re.DOTALL)

A_NAME = (
    f"a file name without suffix, of at most {MAX_NAME_BYTES} bytes in UTF-8: letters, digits, spaces and other "
    f"printable characters except {' '.join(_REFUSED_CHARACTERS)}, with no dot at its beginning or end"
)


def check_image_name(name: str, value: object) -> str | None:
    """Return the name for an image's file as it is used, without suffix.

    White space around it is removed, and its characters are composed (NFC), so that a name has one spelling.

    Args:
        name: The argument or field, for messages.
        value: A text or a number; None or a blank text if the file's name is made from the request.

    Raises:
        ValueError: If no file can have that name on every storage, or files of this package have it.
    """
    text = value if isinstance(value, str) else text_of_number(value)
    if value is None or (text is not None and is_blank(text)):
        return None
    if text is None:
        raise ValueError(f"{name} is {shown(value)}; it must be {A_NAME}.")
    # As a plain string: the text of an enumeration's member is its name.
    text = unicodedata.normalize("NFC", str.__str__(text).strip())
    suffix = _OWN_SUFFIX.search(text)
    if suffix is not None:
        raise ValueError(f"{name} is {shown(text)}; it must be without {suffix[0]}, because the suffix is added to it.")
    if _OWN_NAME.fullmatch(text) or _WINDOWS_DEVICE.fullmatch(text):
        raise ValueError(
            f"{name} is {shown(text)}; it must be another name, because this one is reserved for files of this package "
            "(manifest, manifest-1, contact-sheet, ….refused) or for devices of Windows (con, nul, …)."
        )
    if not _is_allowed(text):
        raise ValueError(f"{name} is {shown(text)}; it must be {A_NAME}.")
    return text


def _is_allowed(text: str) -> bool:
    # Lone surrogates, which UTF-8 does not have, are not printable either.
    return (
        text.isprintable()
        and _REFUSED.search(text) is None
        and not text.startswith(".")
        and not text.endswith(".")
        and len(text.encode()) <= MAX_NAME_BYTES
    )


def name_key(name: str) -> bytes:
    """Return 16 bytes that are equal for names that some storage takes for one file: they differ in case only."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
    return hashlib.sha256(folded.encode()).digest()[:16]

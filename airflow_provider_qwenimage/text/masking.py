"""Masks a secret in texts from outside, however they spell it. No I/O."""

from __future__ import annotations

import base64
import functools
import html.entities
import json
import re
from collections.abc import Mapping
from typing import Any

MASKED = "***"

# Shorter secrets, and parts of an encoded one, occur by chance.
_SHORTEST = 8
# Each escaping doubles the backslashes; this many are searched for.
_MOST_BACKSLASHES = 16


class Mask:
    """Finds a secret in texts, as it is or escaped for JSON, URLs, HTML or as base64, once or several times over.

    Args:
        secret: The secret. One of fewer than 8 characters is only found as a separate word.
    """

    def __init__(self, secret: str) -> None:
        self._pattern, self._whole = _pattern_of(secret)
        self._is_long = len(secret) >= _SHORTEST

    def __repr__(self) -> str:
        return "Mask(***)"

    def __call__(self, text: str) -> str:
        """Return a text without the secret."""
        if not self._may_occur_in(text):
            return text
        # UTF-16 that was decoded otherwise has NULs between the characters, which hide a key from nobody.
        plain = text.replace("\0", "")
        return self._pattern.sub(MASKED, plain if self._pattern.search(plain) else text)

    def read_json(self, text: str) -> Any:
        """Return the value of a JSON text, without the secret in any string or name, however deep.

        Control characters in strings are kept, and an integer of too many digits is read as a float.

        Raises:
            ValueError: If the text is not JSON.
            RecursionError: If it is nested too deeply.
        """
        try:
            value = _JSON.decode(text)
        except json.JSONDecodeError:
            raise
        except ValueError:
            value = _JSON_OF_LONG_INTEGERS.decode(text)
        # Without an escape, the text has each string unchanged.
        return self._of_json(value) if self._may_occur_in(text) else value

    def _may_occur_in(self, text: str) -> bool:
        # The pattern takes longer than reading the whole answer, and every poll checks.
        if "\\" in text or "%" in text or "&" in text or "\0" in text:
            return bool(self._whole)
        return any(spelling in text for spelling in self._whole)

    def _of_json(self, value: Any) -> Any:
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(name): self._of_json(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [self._of_json(entry) for entry in value]
        # Some back ends write a string of digits as a number.
        return MASKED if self._is_long and isinstance(value, int | float) and self(str(value)) != str(value) else value


def _integer_of(digits: str) -> float:
    try:
        return int(digits)
    # Of more digits than Python reads.
    except ValueError:
        return float(digits)


_JSON = json.JSONDecoder(strict=False)
# Ten times as slow for integers.
_JSON_OF_LONG_INTEGERS = json.JSONDecoder(strict=False, parse_int=_integer_of)


# A triggerer reads the same connection for each of its waits, in the event loop that all of them share.
@functools.lru_cache(maxsize=100)
def _pattern_of(secret: str) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """Return a pattern that finds a secret, and those of its spellings that contain no escape."""
    encoded = _in_base64(secret)
    plain = "".join(map(_spellings, secret))
    if len(secret) < _SHORTEST:
        # Otherwise a test's key such as "k" would change the names and ids of an answer, and lose a paid image.
        plain = rf"(?<!\w){plain}(?!\w)" if secret else plain
    pattern = re.compile("|".join([plain, *map(re.escape, encoded)]))
    return pattern, (secret, *encoded) if secret else ()


@functools.cache
def _entities() -> Mapping[str, list[str]]:
    """Return HTML's names of each character, the longest first."""
    names: dict[str, set[str]] = {}
    for name, character in html.entities.html5.items():
        names.setdefault(character, set()).add(name.removesuffix(";"))
    return {character: sorted(entities, reverse=True) for character, entities in names.items()}


def _spellings(character: str) -> str:
    code = ord(character)
    percent = "".join(f"%(?:25){{0,8}}{byte:02x}" for byte in character.encode())
    ways = [
        rf"\\{{0,{_MOST_BACKSLASHES}}}{re.escape(character)}",
        rf"\\{{1,{_MOST_BACKSLASHES}}}(?:u00|x)(?i:{code:02x})",
        f"(?i:{percent})",
        rf"&(?:amp;)*(?i:\#(?:0*{code}|x0*{code:x});?)",
    ]
    names = _entities().get(character)
    ways += [f"&(?:amp;)*(?:{'|'.join(map(re.escape, names))});?"] if names else []
    # The longest first: "&amp;" begins with "&".
    return f"(?:{'|'.join(reversed(ways))})"


def _in_base64(secret: str) -> list[str]:
    """Return the spellings in base64, one for each position of the secret in a group of three bytes."""
    found = set()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode().rstrip("=")
        # Neighbouring bytes share the first and the last digits.
        whole = encoded[-(-8 * offset // 6) : (8 * (offset + len(secret))) // 6]
        if len(whole) >= _SHORTEST:
            found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return sorted(found, key=len, reverse=True)

"""Blots a secret out of texts from outside, in whatever way they spell it. No I/O."""

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
# How often a text may have been escaped, one escaping over another.
_MOST_BACKSLASHES = 16


class Mask:
    """Finds a secret in texts, as it is or escaped for JSON, URLs, HTML or as base64, once or several times over.

    Args:
        secret: What must not be shown. One of fewer than 8 characters is found as a word of its own only.
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
        # As UTF-16 in a text of another encoding is read: what stands between the characters hides a key from nobody.
        plain = text.replace("\0", "")
        return self._pattern.sub(MASKED, plain if self._pattern.search(plain) else text)

    def read_json(self, text: str) -> Any:
        """Return what a JSON text says, without the secret in any string or name, however deep.

        Control characters in strings are read as they are, and an integer of too many digits as a float.

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
        # Without an escape, each string stands in the text as it is.
        return self._of_json(value) if self._may_occur_in(text) else value

    def _may_occur_in(self, text: str) -> bool:
        # The pattern takes longer than reading the whole answer, and every poll asks.
        if "\\" in text or "%" in text or "&" in text or "\0" in text:
            return bool(self._whole)
        return any(spelling in text for spelling in self._whole)

    def _of_json(self, value: Any) -> Any:
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(name): self._of_json(its) for name, its in value.items()}
        if isinstance(value, list):
            return [self._of_json(its) for its in value]
        # What consists of digits is written as a number by some back ends.
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
    """Return what finds a secret, and its spellings that need none of the characters that escape others."""
    encoded = _in_base64(secret)
    plain = "".join(map(_spellings, secret))
    if len(secret) < _SHORTEST:
        # Otherwise a test's key such as "k" would change the names and ids of an answer, and lose what is paid.
        plain = rf"(?<!\w){plain}(?!\w)" if secret else plain
    pattern = re.compile("|".join([plain, *map(re.escape, encoded)]))
    return pattern, (secret, *encoded) if secret else ()


@functools.cache
def _entities() -> Mapping[str, list[str]]:
    """Return the names that HTML has for each character, the longest first."""
    names: dict[str, set[str]] = {}
    for name, character in html.entities.html5.items():
        names.setdefault(character, set()).add(name.removesuffix(";"))
    return {character: sorted(its, reverse=True) for character, its in names.items()}


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
    """Return what stands in any base64 text that holds the secret, at each of the three places in a group."""
    found = set()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode().rstrip("=")
        # Neighbouring bytes share the first and the last digits.
        whole = encoded[-(-8 * offset // 6) : (8 * (offset + len(secret))) // 6]
        if len(whole) >= _SHORTEST:
            found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return sorted(found, key=len, reverse=True)

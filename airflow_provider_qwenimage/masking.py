"""Blots a secret out of texts from outside, in whatever way they spell it. No I/O."""

from __future__ import annotations

import base64
import html.entities
import re
from collections.abc import Mapping
from typing import Any

MASKED = "***"

# Shorter parts of an encoded secret occur by chance.
_SHORTEST_ENCODED = 8
# How often a text may have been escaped, one escaping over another.
_MOST_BACKSLASHES = 16


class Mask:
    """Finds a secret in texts, as it is or escaped for JSON, URLs, HTML or as base64, once or several times over.

    Args:
        secret: What must not be shown.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret
        spelled = "".join(map(_spellings, secret))
        encoded = _in_base64(secret)
        self._pattern = re.compile("|".join([spelled, *map(re.escape, encoded)]))
        # No spelling is shorter than the secret, but what is left of it in base64 may be.
        self._least = min(map(len, [secret, *encoded]))

    def __repr__(self) -> str:
        return "Mask(***)"

    def __call__(self, text: str) -> str:
        """Return a text without the secret."""
        return self._pattern.sub(MASKED, text) if self._secret and len(text) >= self._least else text

    def of_json(self, value: Any) -> Any:
        """Return a decoded JSON value without the secret in any string or name, however deep."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {self(name): self.of_json(its) for name, its in value.items()}
        if isinstance(value, list):
            return [self.of_json(its) for its in value]
        return value


def _spellings(character: str) -> str:
    code = ord(character)
    percent = "".join(f"%(?:25){{0,8}}{byte:02x}" for byte in character.encode())
    ways = [
        rf"\\{{0,{_MOST_BACKSLASHES}}}{re.escape(character)}",
        rf"\\{{1,{_MOST_BACKSLASHES}}}(?:u00|x)(?i:{code:02x})",
        f"(?i:{percent})",
        rf"&(?:amp;)*(?i:\#(?:0*{code}|x0*{code:x});?)",
    ]
    names = [name.removesuffix(";") for name, its in html.entities.html5.items() if its == character]
    ways += [f"&(?:amp;)*(?:{'|'.join(map(re.escape, sorted(names, reverse=True)))});?"] if names else []
    # The longest first: "&amp;" begins with "&".
    return f"(?:{'|'.join(reversed(ways))})"


def _in_base64(secret: str) -> list[str]:
    """Return what stands in any base64 text that holds the secret, at each of the three places in a group."""
    found = set()
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + secret.encode()).decode().rstrip("=")
        # Neighbouring bytes share the first and the last digits.
        whole = encoded[-(-8 * offset // 6) : (8 * (offset + len(secret))) // 6]
        if len(whole) >= _SHORTEST_ENCODED:
            found |= {whole, whole.replace("+", "-").replace("/", "_")}
    return sorted(found, key=len, reverse=True)

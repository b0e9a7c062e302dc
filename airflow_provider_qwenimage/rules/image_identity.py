"""Decides which requests ask for the same image, and how its files are named. No I/O."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest

_WORDS_CHARACTERS = 40
_DIGITS = 16


@dataclass(frozen=True)
class ImageIdentity:
    """An image that a task asks for in a folder: its request, and what makes it the same image as another one.

    With a name, the name is the identity, whatever the request. Otherwise it is the request's fingerprint.

    Args:
        request: The request.
        variant: The number that distinguishes equal requests with a random seed; see `GenerateRequest.fingerprint`.
        name: The name that the user has chosen for the file, without suffix; or None.
    """

    request: GenerateRequest
    variant: int = 0
    name: str | None = None

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the request, 64 hexadecimal digits. With a name it does not depend on the variant."""
        return self.request.fingerprint(self.variant if self.name is None else 0)

    @cached_property
    def stem(self) -> str:
        """The name of the file without suffix.

        Without a chosen name: the prompt's first words, for people, and 16 digits of the fingerprint.
        """
        if self.name is not None:
            return self.name
        plain = unicodedata.normalize("NFKD", self.request.prompt).encode("ascii", "ignore").decode("ascii")
        words = "-".join(re.findall(r"[a-z0-9]+", plain.lower()))[:_WORDS_CHARACTERS].strip("-")
        return f"{words or 'image'}-{self.fingerprint[:_DIGITS]}"

    def description(self) -> dict[str, Any]:
        """Return the fields that describe the image, as `GenerateRequest.description` does, and its chosen name."""
        described = self.request.description()
        return described if self.name is None else described | {"name": self.name}

    @cached_property
    def key(self) -> str:
        """16 hexadecimal digits that name the records of its submissions: the same for all who ask for this file."""
        return hashlib.sha256(self.stem.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]

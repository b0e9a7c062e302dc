"""What people read about an image: the label and the text that a user writes, and the name of its seed. No I/O."""

from __future__ import annotations

from typing import Any

from airflow_provider_qwenimage.contract import RANDOM_SEED
from airflow_provider_qwenimage.rules.numbers import text_of_number
from airflow_provider_qwenimage.text.messages import check_text, is_blank, shown

# Airflow stores what it shows instead of a map index in 250 characters.
MAX_LABEL_CHARACTERS = 200
MAX_TEXT_CHARACTERS = 10_000

A_LABEL = f"a text of at most {MAX_LABEL_CHARACTERS} characters"
A_TEXT = f"a text of at most {MAX_TEXT_CHARACTERS} characters"


def seed_name(seed: object) -> str:
    """Return what labels and pictures call a seed."""
    return "random seed" if seed == RANDOM_SEED else f"seed {seed}"


def check_label(name: str, value: object) -> str | None:
    """Return a label as it is shown, without white space around it.

    Args:
        name: The argument or field, for messages.
        value: A text or a number; None or a blank text for no label.

    Raises:
        ValueError: If it is something else, is too long, or has a character that cannot be stored.
    """
    text = _text(name, value, MAX_LABEL_CHARACTERS, A_LABEL)
    return None if text is None else text.strip()


def check_image_text(name: str, value: object) -> str | None:
    """Return the text of an image, unchanged.

    Args:
        name: The field, for messages.
        value: A text or a number; None or a blank text for no text.

    Raises:
        ValueError: If it is something else, is too long, or has a character that cannot be stored.
    """
    return _text(name, value, MAX_TEXT_CHARACTERS, A_TEXT)


def _text(name: str, value: object, most: int, allowed: str) -> str | None:
    text: Any = value if isinstance(value, str) else text_of_number(value)
    if value is None or (text is not None and is_blank(text)):
        return None
    if text is None or len(text) > most:
        raise ValueError(f"{name} is {shown(value)}; it must be {allowed}.")
    check_text(name, text)
    # As a plain string: the text of an enumeration's member is its name.
    return str.__str__(text)

"""Decides what counts against a task's `max_credits`, and whether another image is within it. No I/O."""

from __future__ import annotations

from airflow_provider_qwenimage.contract import CREDITS_PER_IMAGE
from airflow_provider_qwenimage.text.messages import shown_credits


def assumed_price(charged: float | None) -> float:
    """Return what an image counts against a limit: what was charged for it, and never less than the documented price.

    Of the image that was charged last, that is also the price to assume for the next one.

    Args:
        charged: The credits that the API reported, or None if it reported none.
    """
    return max(CREDITS_PER_IMAGE, charged or 0)


def is_within(limit: float | None, counted: float, price: float, images: int = 1) -> bool:
    """Whether so many more images are within a limit.

    Args:
        limit: The limit for credits, or None.
        counted: The credits that count against it so far; see `assumed_price`.
        price: The price that is assumed for each of the images.
        images: How many images.
    """
    return limit is None or counted + price * images <= limit


def described_price(price: float) -> str:
    """Return an assumed price for a message, with its source."""
    return (
        f"{shown_credits(price)} credits ({'as documented' if price == CREDITS_PER_IMAGE else 'as was last charged'})"
    )

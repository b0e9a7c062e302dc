"""The response check of the http provider's trigger, in its own module because the trigger reloads it for each poll."""

from __future__ import annotations

import requests

_RUNNING = ("PENDING", "IN_PROGRESS")


async def has_ended(response: requests.Response) -> bool:
    """Return whether the image task of a status answer has ended."""
    return response.json()["data"]["status"] not in _RUNNING

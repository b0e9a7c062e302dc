"""What the http provider's trigger asks of each answer. A module of its own: the trigger reloads it at each poll."""

from __future__ import annotations

import requests

_RUNNING = ("PENDING", "IN_PROGRESS")


async def has_ended(response: requests.Response) -> bool:
    """Return whether the image task of a status answer has ended."""
    return response.json()["data"]["status"] not in _RUNNING

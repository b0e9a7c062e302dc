"""How long after a deferral no event may resume the task; the triggerer and the API server both wait for that."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from airflow.providers.common.compat.sdk import conf

from airflow_provider_qwenimage.rules import polling

_DEFAULT_HEARTBEAT_SECONDS = 5
_STEP_SECONDS = 1.0


def seconds_to_settle() -> float:
    """Return how many seconds after a deferral Airflow surely knows that the deferred process ended.

    It depends on this machine's present load; see `polling.settling_seconds`.
    """
    heartbeat = conf.getint("workers", "min_heartbeat_interval", fallback=_DEFAULT_HEARTBEAT_SECONDS)
    return polling.settling_seconds(heartbeat, _load())


async def settle(waited: float) -> None:
    """Wait until Airflow surely knows that the deferred process ended.

    Args:
        waited: Seconds since the deferral, or less.
    """
    seconds = 0.0
    while waited < (seconds := max(seconds, seconds_to_settle())):
        # Counted in requested seconds, not by the clock: if this process is held up, others may be as well.
        step = min(_STEP_SECONDS, seconds - waited)
        await asyncio.sleep(step)
        waited += step


def _load() -> float:
    # Some sandboxed machines do not report it.
    with suppress(OSError):
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    return 0.0

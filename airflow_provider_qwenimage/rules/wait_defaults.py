"""The defaults of every wait for an image task. A DAG file loads these, but not what decides how a wait goes on."""

from __future__ import annotations

# Seconds. The API recommends to poll every 5 to 10 seconds.
DEFAULT_POLL_INTERVAL = 5.0
# Seconds.
DEFAULT_TIMEOUT = 1800.0
DEFAULT_MAX_CONSECUTIVE_FAILURES = 10
# Seconds.
DEFAULT_DEFER_AFTER = 0.0

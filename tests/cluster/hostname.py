"""Give Airflow the name of its container as its host name, as in a real container."""

from __future__ import annotations

import os


def of_container() -> str:
    """Return the host name of the container."""
    return os.environ["HOSTNAME"]

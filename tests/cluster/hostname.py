"""Tells Airflow the name of its container, as the host name does where containers are real."""

from __future__ import annotations

import os


def of_container() -> str:
    """Return the host name that the container was given."""
    return os.environ["HOSTNAME"]

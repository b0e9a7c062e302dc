"""Tells what is known of an operator's argument before Airflow renders it. No I/O."""

from __future__ import annotations


def is_template(value: object) -> bool:
    """Whether a value is a text with Jinja in it, so that nothing can be said of it while the DAG is parsed."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)

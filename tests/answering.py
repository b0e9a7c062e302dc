"""Answers the question of a task in which a person chooses, as the gallery's page does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_provider_qwenimage.rules.choices import NUMBERS


def answer_to(options: Sequence[str], numbers: Sequence[int], *, multiple: bool) -> dict[str, Any]:
    """Return the body of the ``PATCH`` request that answers with these numbers.

    Args:
        options: The options of the request as Airflow has it, which may be of an earlier question; not empty.
        numbers: The chosen candidates, counted from 1.
        multiple: Whether the request, as Airflow has it, takes several options.
    """
    chosen = [str(number) for number in numbers]
    if set(chosen) <= set(options) and (multiple or len(chosen) == 1):
        return {"chosen_options": chosen, "params_input": {NUMBERS: None}}
    return {"chosen_options": [options[0]], "params_input": {NUMBERS: ", ".join(chosen)}}

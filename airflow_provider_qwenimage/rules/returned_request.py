"""Reads what the function of a `@task.qwenimage` returned: a prompt, or the fields of a request. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_provider_qwenimage.rules.arguments import REQUEST_FIELDS, is_left_out, read_request
from airflow_provider_qwenimage.rules.image_names import check_image_name
from airflow_provider_qwenimage.rules.image_texts import check_label
from airflow_provider_qwenimage.rules.request_rows import near_field
from airflow_provider_qwenimage.text.messages import shown

_OWN_FIELDS = {"image_name": check_image_name, "label": check_label}
RETURNED_FIELDS = (*REQUEST_FIELDS, *_OWN_FIELDS)
_KEYS = ", ".join(RETURNED_FIELDS)
_ALLOWED = f"a prompt (a non-empty string), or a dict with a prompt, whose keys are among {_KEYS}"
_ALLOWED_LATER = "For a list of prompts use @task.qwenimage_batch, or map this task over them."


def read_returned_request(function: str, returned: object) -> dict[str, Any]:
    """Return the arguments of the operator that a function returned, checked; without those that it left out.

    Args:
        function: The name of the function, for messages.
        returned: What it returned.

    Raises:
        ValueError: If it is neither a prompt nor the fields of a request that the API allows.
    """
    fields = {"prompt": returned} if isinstance(returned, str) else returned
    if not isinstance(fields, Mapping):
        hint = "" if isinstance(returned, bytes) or not hasattr(returned, "__iter__") else f" {_ALLOWED_LATER}"
        raise not_allowed(function, returned, f"{_ALLOWED}.{hint}")
    unknown = [key for key in fields if key not in RETURNED_FIELDS]
    if unknown:
        near = near_field(unknown[0], RETURNED_FIELDS) if isinstance(unknown[0], str) else ""
        raise ValueError(
            f"The function {function} returned a dict with the key {shown(unknown[0])}{near}; its keys must be among "
            f"{_KEYS}."
        )
    try:
        own = {name: check(name, fields.get(name)) for name, check in _OWN_FIELDS.items()}
        request = read_request({name: value for name, value in fields.items() if name not in own})
    except ValueError as error:
        raise ValueError(f"The function {function} returned a request that is not valid: {error}") from None
    read = {name: getattr(request, name) for name in REQUEST_FIELDS if not is_left_out(fields.get(name))}
    return read | {name: value for name, value in own.items() if value is not None}


def not_allowed(function: str, returned: object, allowed: str) -> ValueError:
    """Return the error about a value of a wrong type. It quotes short values only: rows may contain tokens in URLs."""
    is_short = returned is None or isinstance(returned, str | bytes | int | float)
    what = shown(returned) if is_short else f"a value of type {type(returned).__name__}"
    return ValueError(f"The function {function} returned {what}; it must return {allowed}")

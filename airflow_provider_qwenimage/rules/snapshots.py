"""Reads a status answer as a `TaskSnapshot`: strict about what leads to the image, lenient about the rest. No I/O."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from itertools import islice
from typing import Any

import pendulum

from airflow_provider_qwenimage.contract import MAX_IMAGES, MAX_URL_CHARACTERS, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageContentPolicyError,
    QwenImageContractError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.rules.task_ids import MAX_TASK_ID_CHARACTERS, is_usable, printable_id
from airflow_provider_qwenimage.text.messages import printable, safe_repr, shorten, shown_credits
from airflow_provider_qwenimage.text.urls import is_http_url, without_access

_MAX_CREDITS = 10**9
_MAX_TIME_CHARACTERS = 64
_DOCUMENTED_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_YEAR_FIRST = re.compile(r"\d{4}", re.ASCII)
_EPOCH = re.compile(r"\d{10}(\d{3})?", re.ASCII)
# 2001 and 2100: the numbers between them are no others in milliseconds.
_EARLIEST, _LATEST = 1_000_000_000, 4_102_444_800
# An object may name the image's URL beside others, such as a thumbnail's: the first of these that has one counts.
_URL_NAMES = ("url", "image_url", "urls", "image_urls", "images", "image")
_MOST_NESTED = 5
_MOST_VALUES = 1000
_REASON_CHARACTERS = 1000
_REST_OF_QUOTED_URL = re.compile(r"[?#][^'\"]*")


def _read_credits(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # False for NaN as well.
    return value if 0 <= value <= _MAX_CREDITS else None


def _read_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _read_time(value: object) -> pendulum.DateTime | None:
    if isinstance(value, str) and _EPOCH.fullmatch(value):
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _read_epoch(value)
    if not isinstance(value, str) or len(value) > _MAX_TIME_CHARACTERS:
        return None
    if _DOCUMENTED_TIME.fullmatch(value):
        # The general parser takes a third of what reading a whole status costs.
        with suppress(ValueError):
            return _documented_time(value)
    if not _YEAR_FIRST.match(value):
        # pendulum reads a time of day, or "now", as one of today.
        return None
    try:
        parsed = pendulum.parse(value)
        # It accepts offsets of a whole day, with which a time cannot be formatted later.
        return parsed if isinstance(parsed, pendulum.DateTime) and parsed.isoformat() else None
    except Exception:  # noqa: BLE001  pendulum documents no closed set, and no date is worth losing a paid image
        return None


def _read_epoch(value: float) -> pendulum.DateTime | None:
    for a_second in (1, 1000):
        # False for NaN as well.
        if _EARLIEST * a_second <= value <= _LATEST * a_second:
            return pendulum.from_timestamp(value / a_second)
    return None


# All polls of a wait, and many waits, read the same few times.
@functools.lru_cache(maxsize=1024)
def _documented_time(value: str) -> pendulum.DateTime:
    at = datetime.fromisoformat(value)
    return pendulum.DateTime(at.year, at.month, at.day, at.hour, at.minute, at.second, tzinfo=pendulum.UTC)


def _read_request(value: object) -> dict[str, Any] | None:
    return dict(value) if isinstance(value, Mapping) else None


# Each returns the value, or None if it is missing or does not have the documented type.
OPTIONAL_FIELDS: Mapping[str, Callable[[object], Any]] = {
    "consumed_credits": _read_credits,
    "error_message": _read_text,
    "created_at": _read_time,
    "request": _read_request,
}
_STATUSES: Mapping[str, str] = dict(TaskStatus.__members__)
_SNAPSHOT_FIELDS = frozenset({"task_id", "status", "response", *OPTIONAL_FIELDS})


def read_snapshot(data: object) -> TaskSnapshot:
    """Read the ``data`` object of a status answer, as decoded JSON.

    Raises:
        QwenImageContractError: If it does not have the documented shape.
    """
    if not isinstance(data, Mapping):
        raise not_documented("data", data, "an object")
    status = data.get("status")
    if not isinstance(status, str) or not status:
        raise not_documented("data.status", status, "a non-empty string")
    status = _STATUSES.get(status, status)
    read: dict[str, Any] = {name: reader(data.get(name)) for name, reader in OPTIONAL_FIELDS.items()}
    # A field that is not needed for the image must not lose it.
    undocumented = {name for name, value in read.items() if value is None and data.get(name) is not None}
    image_urls: tuple[str, ...] = ()
    try:
        image_urls = _read_image_urls(data.get("response"), status)
    except QwenImageContractError:
        if status == TaskStatus.SUCCESS:
            raise
        undocumented.add("response")
    return TaskSnapshot(
        task_id=read_task_id(data.get("task_id")),
        status=status,
        consumed_credits=read["consumed_credits"],
        error_message=read["error_message"],
        created_at=read["created_at"],
        request=read["request"] or {},
        image_urls=image_urls,
        extra={name: data[name] for name in data if name in undocumented or name not in _SNAPSHOT_FIELDS},
    )


def read_task_id(value: object) -> str:
    """Return the task id of an answer in the form that is logged and stored; see `task_ids.printable_id`.

    Raises:
        QwenImageContractError: If it cannot be sent in a request.
    """
    if not is_usable(value):
        raise not_documented(
            "data.task_id", value, f"a non-empty string of at most {MAX_TASK_ID_CHARACTERS} characters in UTF-8"
        )
    return printable_id(value)


def _read_image_urls(value: object, status: str) -> tuple[str, ...]:
    found = tuple(islice(_urls_in(value, _MOST_NESTED), MAX_IMAGES))
    if not found and status == TaskStatus.SUCCESS:
        raise _no_urls(value, "a list of at least one http(s) URL, because the status is SUCCESS")
    if not found and value:
        raise _no_urls(value, f"a list of http(s) URLs of at most {MAX_URL_CHARACTERS} characters, or null")
    return found


def _urls_in(value: object, levels: int) -> Iterator[str]:
    """Yield every usable URL of a value: one URL, or a list or an object of them, up to so many levels deep."""
    if isinstance(value, str):
        # One unusable URL must not lose the paid images of the others.
        if len(value) <= MAX_URL_CHARACTERS and is_http_url(value):
            yield value
    elif levels and isinstance(value, list):
        for each in value[:_MOST_VALUES]:
            yield from _urls_in(each, levels - 1)
    elif levels and isinstance(value, Mapping):
        named = (list(islice(_urls_in(value.get(name), levels - 1), MAX_IMAGES)) for name in _URL_NAMES)
        urls = next(filter(None, named), None)
        yield from urls or _urls_in(list(islice(value.values(), _MOST_VALUES)), levels - 1)


def _no_urls(value: object, allowed: str) -> QwenImageContractError:
    # The value may contain URLs, whose queries may grant access.
    return _undocumented("data.response", _REST_OF_QUOTED_URL.sub("", safe_repr(value)), allowed)


def not_documented(name: str, value: object, allowed: str) -> QwenImageContractError:
    """Return the error for a field of an answer that the API documents otherwise."""
    return _undocumented(name, safe_repr(value), allowed)


def _undocumented(name: str, text: str, allowed: str) -> QwenImageContractError:
    return QwenImageContractError(
        f"The API's response does not have the documented shape: {name} is {shorten(without_access(text))}, not "
        f"{allowed}.",
        advice="If this persists, the API has changed: report it to the maintainers of this package.",
    )


def task_failure(snapshot: TaskSnapshot) -> QwenImageTaskFailedError:
    """Return the error of a FAILED snapshot, with the API's reason and the cost."""
    reason = printable(shorten(without_access(snapshot.reason), _REASON_CHARACTERS)) or "the API gave no reason"
    cost = "an unknown number of" if snapshot.consumed_credits is None else shown_credits(snapshot.consumed_credits)
    summary = f"Image task {snapshot.task_id} failed: {reason}. It cost {cost} credits."
    # The documented text is "Content policy violation detected".
    if "policy" in snapshot.reason.lower():
        return QwenImageContentPolicyError(
            f"{summary} Change the prompt: the same one will be refused again.", snapshot=snapshot
        )
    return QwenImageTaskFailedError(f"{summary} Submit the prompt again for a new image.", snapshot=snapshot)

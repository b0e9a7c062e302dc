"""Says what each argument may be and reads it, for operators, sensor, hooks and triggers alike. No I/O.

`ARGUMENTS` is the one table. What users have at hand is converted: paths of any kind, timedeltas, numpy's numbers. All
else is refused by a ValueError that names the argument, the value and what is allowed.
"""

from __future__ import annotations

import math
import operator
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from datetime import timedelta
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, SupportsIndex, TypeAlias

from airflow_provider_qwenimage.contract import MAX_SEED, RANDOM_SEED, GenerateRequest
from airflow_provider_qwenimage.rules.task_ids import is_usable, printable_id
from airflow_provider_qwenimage.text.messages import check_text, is_blank, shown
from airflow_provider_qwenimage.text.urls import without_credentials

Reader: TypeAlias = Callable[[str, object], Any]
# An integer of any kind, numpy's as well, or a float.
Number: TypeAlias = float | SupportsIndex
Seconds: TypeAlias = Number | timedelta

REQUEST_FIELDS = ("prompt", "size", "seed", "output_format", "callback_url")
# Longer than any wait for an image; Airflow and PostgreSQL cannot hold the dates that much longer ones end at.
MAX_SECONDS = 10 * 365 * 24 * 3600
ALLOWED_REQUESTS = (
    "a list of prompts (strings) and of objects with the fields of a request, or the path or URL of a .jsonl, .ndjson, "
    ".json or .csv file with them"
)

# What Airflow stores and sends of an argument holds integers of 64 bits.
_MAX_INTEGER = 2**63 - 1
# Airflow's own limit for a connection id.
_MAX_CONN_ID_CHARACTERS = 250
# Linux' limit for a path.
_MAX_PATH_CHARACTERS = 4096
_JINJA = ("{{", "{%", "{#")
_WHOLE_DECIMAL = re.compile(r"([+-]?\d+)\.0*", re.ASCII)
# What fsspec and s3fs take for something else than a part of a name.
_NOT_IN_NAMES = ("::", "?versionId=")
_INCOMPLETE_URL = re.compile(r"(s3[an]?|gc?s|abfss?|az|adl|wasbs?|file|local|hdfs|s?ftp|https?):(?!/)", re.IGNORECASE)
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif)/?$", re.IGNORECASE)


def read_argument(name: str, value: object) -> Any:
    """Return an argument as the package uses it.

    Args:
        name: Its name in `ARGUMENTS`.
        value: What was passed for it, rendered if it is templated.

    Raises:
        ValueError: If it is not what is allowed.
    """
    return ARGUMENTS[name](name, value)


def read_request(fields: Mapping[str, object]) -> GenerateRequest:
    """Return the request that its fields ask for: a row of a batch, a mapped row or an operator's arguments.

    Args:
        fields: The fields of a request. What is None or blank counts as left out; a seed may be a text or a float of
            an integer, a prompt a number.

    Raises:
        ValueError: If a field is not what the API allows, or the prompt is missing.
    """
    given: dict[str, Any] = {name: value for name, value in fields.items() if not _is_left_out(value)}
    if "prompt" not in given:
        what = f"is {shown(fields['prompt'])}" if "prompt" in fields else "is missing"
        raise ValueError(f"prompt {what}; allowed is a text that is not empty.")
    # NaN is what pandas has for nothing.
    with suppress(TypeError, ValueError, OverflowError):
        if math.isfinite(_number(prompt := given["prompt"])):
            # An enumeration's text is its name.
            given["prompt"] = str(int(prompt) if isinstance(prompt, Integral) else prompt)
    if "seed" in given:
        given["seed"] = read_seed(given["seed"])
    return GenerateRequest(**{name: _plain(value) for name, value in given.items()})


def read_seed(value: object) -> int:
    """Return a seed as an integer, also if a template, JSON or a CSV file made a text or a float of it.

    Args:
        value: An integer of any kind, the decimal text of one, or a float without a fraction.

    Raises:
        ValueError: If it is no integer from -1 to `contract.MAX_SEED`.
    """
    try:
        seed = _integer_of_text(value) if isinstance(value, str) else _integer(value)
    except (TypeError, ValueError):
        seed = None
    if seed is None or not RANDOM_SEED <= seed <= MAX_SEED:
        raise ValueError(f"seed is {shown(value)}; allowed are -1 (random) and the integers from 0 to {MAX_SEED}.")
    return seed


def is_template(value: object) -> bool:
    """Whether a value is a text with Jinja in it, so that nothing can be said of it while the DAG is parsed."""
    return isinstance(value, str) and any(mark in value for mark in _JINJA)


def is_rendered_later(value: object) -> bool:
    """Whether Airflow will put something else in the place of a template field's value before the task runs.

    Args:
        value: A literal, a template, the output of another task, or a function.
    """
    text = value if isinstance(value, str) else path_text(value)
    if text is not None:
        return is_template(text)
    # A task function that was not called has the class of its operator.
    is_function = callable(value) and not hasattr(value, "operator_class")
    # A `Param` of the DAG has a `resolve` as well, which is not for tasks.
    return is_function or (callable(getattr(value, "resolve", None)) and not hasattr(value, "has_value"))


def read_path(name: str, value: object) -> str | None:
    """Return the text of a Path or ObjectStoragePath, or None for anything else.

    Raises:
        ValueError: If it has storage options, which its text does not tell.
    """
    unknown = sorted(set(getattr(value, "storage_options", None) or ()) - {"conn_id"})
    text = path_text(value)
    if text is not None and unknown:
        raise ValueError(
            f"{name} is {shown(without_credentials(text))} with the storage option {unknown[0]!r}; allowed is a path "
            "without options, since a worker would not know them. Set them in the extra of the storage's connection."
        )
    return text


def path_text(value: object) -> str | None:
    """Return the text of a Path or ObjectStoragePath, or None for anything else."""
    # Airflow 3's ObjectStoragePath is no os.PathLike, and the text of Airflow 2's is no path.
    if isinstance(getattr(value, "protocol", None), str) and hasattr(value, "storage_options"):
        return str(value)
    if isinstance(value, os.PathLike):
        text = os.fspath(value)
        return text if isinstance(text, str) else None
    return None


def check_output_path(output_path: object) -> None:
    """Check an `output_path` without opening anything.

    Raises:
        ValueError: If it is no path or text, empty, names an image file, or holds a password or what no name can hold.
    """
    _folder("output_path", output_path)


def _refused(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{name} is {shown(value)}; allowed {allowed}.")


def _is_left_out(value: object) -> bool:
    return value is None or (isinstance(value, str) and is_blank(value))


def _plain(value: object) -> Any:
    """Return a text of a class of its own, such as an enumeration's, as a plain one."""
    return str.__str__(value) if isinstance(value, str) else value


def _integer(value: object) -> int:
    if isinstance(value, bool):
        raise TypeError
    # Any class may have its own.
    with suppress(Exception):
        return operator.index(value)  # type: ignore[arg-type]  # it raises what is expected for anything else
    if not _number(value).is_integer():
        raise TypeError
    # A Decimal and a Fraction have digits that a float has not.
    number: Any = value
    whole = int(number)
    if whole != number:
        raise TypeError
    return whole


def _integer_of_text(text: str) -> int:
    whole = _WHOLE_DECIMAL.fullmatch(text.strip())
    return int(whole[1] if whole else text.strip())


def _number(value: object) -> float:
    # numpy's timedelta is a number for Python, of whatever unit.
    is_duration = getattr(getattr(value, "dtype", None), "kind", None) == "m"
    if isinstance(value, bool) or is_duration or not isinstance(value, Real | Decimal):
        raise TypeError
    return float(value)


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    # numpy's own, which is no subclass.
    if getattr(getattr(value, "dtype", None), "kind", None) == "b" and getattr(value, "ndim", None) == 0:
        return bool(value)
    raise _refused(name, value, "are True and False")


def _whole(at_least: int) -> Reader:
    def read(name: str, value: object) -> int:
        try:
            number = _integer(value)
        except (TypeError, ValueError, OverflowError):
            number = at_least - 1
        if not at_least <= number <= _MAX_INTEGER:
            raise _refused(name, value, f"are the integers from {at_least} upwards, of 64 bits at most")
        return number

    return read


def _seconds(*, zero: bool = False) -> Reader:
    def read(name: str, value: object) -> float:
        try:
            seconds = value.total_seconds() if isinstance(value, timedelta) else _number(value)
        except (TypeError, ValueError, OverflowError):
            seconds = math.nan
        if not (seconds >= 0 if zero else seconds > 0) or seconds > MAX_SECONDS:
            least = "from 0 upwards" if zero else "above 0"
            allowed = f"are seconds {least}, at most {MAX_SECONDS} (ten years), as a number or a timedelta"
            raise _refused(name, value, allowed)
        return int(value) if isinstance(value, int) else seconds

    return read


def _credits(name: str, value: object) -> float | None:
    """Return an amount of credits; None, as infinity, is no limit."""
    if value is None:
        return None
    try:
        amount = _number(value)
    except (TypeError, ValueError, OverflowError):
        amount = math.nan
    if not amount >= 0:
        raise _refused(name, value, "are credits from 0 upwards, or None")
    if math.isinf(amount):
        return None
    return int(value) if isinstance(value, int) else amount


def _end_time(name: str, value: object) -> float | None:
    if value is None:
        return None
    try:
        seconds = _number(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not math.isfinite(seconds):
        raise _refused(name, value, "are epoch seconds, or None")
    return seconds


def _conn_id(name: str, value: object) -> str:
    if not isinstance(value, str) or is_blank(value) or len(value) > _MAX_CONN_ID_CHARACTERS:
        longest = f"a text of 1 to {_MAX_CONN_ID_CHARACTERS} characters"
        raise _refused(name, value, f"is the id of an Airflow connection, {longest}")
    check_text(name, value)
    # A template or a file may end in a line break.
    return _plain(value).strip()  # type: ignore[no-any-return]  # a text stays one


def _connection(name: str, value: object) -> Any:
    if not hasattr(value, "conn_id"):
        raise ValueError(f"{name} is {shown(value)}; it must be an Airflow connection, or None.")
    return value


def _image_task_id(name: str, value: object) -> str:
    asked = value.strip() if isinstance(value, str) else ""
    if not is_usable(asked):
        raise ValueError(
            f"{name} is {shown(value)}; allowed is the task id that a submission returned. Check that the upstream "
            "task ran and pushed it."
        )
    return printable_id(asked)


def _request_field(name: str, value: object) -> Any:
    return getattr(read_request({"prompt": "of another field"} | {name: value}), name)


def _folder(name: str, value: object) -> str:
    text = value if isinstance(value, str) else read_path(name, value)
    if text is None or is_blank(text):
        raise _refused(name, value, "is the path or URL of a folder")
    public = without_credentials(text)
    if text != public:
        raise ValueError(
            f"{name} is {shown(public)}, with credentials before the @; allowed there is the id of an Airflow "
            "connection. It would be shown wherever the images are: keep credentials in a connection."
        )
    if len(text) > _MAX_PATH_CHARACTERS:
        raise _refused(name, text, f"is the path or URL of a folder, of at most {_MAX_PATH_CHARACTERS} characters")
    check_text(name, text)
    if any(unicodedata.category(character) == "Cc" for character in text.strip()):
        raise ValueError(f"{name} is {shown(text)}, with control characters; allowed is the path of a folder.")
    if text.strip().endswith(("?", "#", "://")):
        raise ValueError(
            f"{name} is {shown(text)}; allowed is the path of a folder, which cannot end with ?, # or ://."
        )
    for part in _NOT_IN_NAMES:
        if part in text:
            raise ValueError(
                f"{name} is {shown(text)}; allowed is the path of a folder, which cannot have {part} in it."
            )
    incomplete = _INCOMPLETE_URL.match(text.strip())
    if incomplete is not None:
        raise ValueError(f"{name} is {shown(text)}, which is no URL; write it as {incomplete[0].lower()}//…")
    if _IMAGE_FILE.search(text):
        raise ValueError(
            f"{name} is {shown(text)}, which looks like an image file; allowed is the path or URL of a folder. "
            "The file's own name is made from the request."
        )
    return _plain(text)  # type: ignore[no-any-return]  # a text stays one


def _requests(name: str, value: object) -> Any:
    """Return requests in the form that Airflow can write down with the DAG; their rows are checked elsewhere."""
    text = value if isinstance(value, str) else read_path(name, value)
    if text is not None:
        check_text(name, text)
        return text
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return value if isinstance(value, list | tuple) else list(value)
    if isinstance(value, AbstractSet):
        raise ValueError(f"{name} is a {type(value).__name__}, which has no order; allowed is {ALLOWED_REQUESTS}.")
    if isinstance(value, Iterator):
        raise ValueError(
            f"{name} is a {type(value).__name__}, of which Airflow would make another version of the DAG each time it "
            f"is parsed; allowed is {ALLOWED_REQUESTS}. Write list(…) around it."
        )
    raise _refused(name, value, f"is {ALLOWED_REQUESTS}")


def _or_none(read: Reader) -> Reader:
    def read_unless_none(name: str, value: object) -> Any:
        return None if value is None else read(name, value)

    return read_unless_none


# Each argument and what reads it.
ARGUMENTS: Mapping[str, Reader] = {
    **dict.fromkeys(REQUEST_FIELDS, _request_field),
    "requests": _requests,
    "image_task_id": _image_task_id,
    "qwenimage_conn_id": _conn_id,
    "output_path": _or_none(_folder),
    "wait_for_completion": _flag,
    "deferrable": _flag,
    "overwrite": _flag,
    "durable": _flag,
    "poll_interval": _seconds(),
    "poke_interval": _seconds(),
    "timeout": _seconds(),
    "end_time": _end_time,
    "max_consecutive_failures": _whole(at_least=1),
    "max_image_bytes": _whole(at_least=1),
    "max_in_flight": _whole(at_least=1),
    "max_failures": _whole(at_least=0),
    "max_credits": _credits,
    # The hooks' own.
    "timeout_seconds": _seconds(),
    "connection": _connection,
    "log_statuses": _flag,
    "retry_limit": _whole(at_least=0),
    # The hooks', and every task's.
    "retry_delay": _seconds(zero=True),
    # What Airflow's sensors take and do not check.
    "soft_fail": _flag,
    "never_fail": _flag,
    "silent_fail": _flag,
    "exponential_backoff": _flag,
}
# A batch has nowhere else to put its images.
BATCH_ARGUMENTS: Mapping[str, Reader] = {**ARGUMENTS, "output_path": _folder}
# A sensor, and a wait of the hooks, may look just once, or leave the limit out: a sensor has Airflow's own then.
WAIT_ARGUMENTS: Mapping[str, Reader] = {**ARGUMENTS, "timeout": _or_none(_seconds(zero=True))}

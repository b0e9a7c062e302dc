"""Reads and checks each argument, for operators, sensor, hooks and triggers alike. No I/O.

`ARGUMENTS` is the one table. Paths of any kind, timedeltas and numpy's numbers are converted. Anything else is refused
by a ValueError with the argument, the value and what it must be.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from typing import Any, SupportsIndex, TypeAlias

from airflow_provider_qwenimage.contract import MAX_SEED, RANDOM_SEED, GenerateRequest
from airflow_provider_qwenimage.rules.choices import read_defaults
from airflow_provider_qwenimage.rules.image_names import check_image_name
from airflow_provider_qwenimage.rules.image_texts import check_label
from airflow_provider_qwenimage.rules.numbers import integer_of, integer_of_text, number_or_nan, text_of_number
from airflow_provider_qwenimage.rules.task_ids import is_usable, printable_id
from airflow_provider_qwenimage.text.messages import check_text, is_blank, shown
from airflow_provider_qwenimage.text.urls import without_credentials

Reader: TypeAlias = Callable[[str, object], Any]
# An integer of any kind, numpy's as well, or a float.
Number: TypeAlias = float | SupportsIndex
Seconds: TypeAlias = Number | timedelta

REQUEST_FIELDS = ("prompt", "size", "seed", "output_format", "callback_url")
# A row of a batch may also name and describe its image. The API is not told.
ROW_FIELDS = (*REQUEST_FIELDS, "name", "label", "text")
# What is written into the file of an image: a machine-readable mark, or also how the image was made.
PROVENANCES = ("mark", "full")
# The forms in which a batch lists its images for training.
DATASETS = ("imagefolder",)
# Longer than any wait for an image; Airflow and PostgreSQL cannot store the end dates of much longer ones.
MAX_SECONDS = 10 * 365 * 24 * 3600
ALLOWED_REQUESTS = (
    "a list of prompts (strings) and objects with the fields of a request, or the path or URL of a .jsonl, .ndjson, "
    ".json or .csv file of them"
)

# Airflow stores and sends arguments as integers of 64 bits.
_MAX_INTEGER = 2**63 - 1
# Airflow's own limit for a connection id.
_MAX_CONN_ID_CHARACTERS = 250
# The limit of Linux for a path.
_MAX_PATH_CHARACTERS = 4096
_USER_FIELDS = ("id", "name")
_A_FOLDER = "the path or URL of a folder"
# fsspec and s3fs give these a meaning of their own.
_NOT_IN_NAMES = ("::", "?versionId=")
_INCOMPLETE_URL = re.compile(r"(s3[an]?|gc?s|abfss?|az|adl|wasbs?|file|local|hdfs|s?ftp|https?):(?!/)", re.IGNORECASE)
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif)/?$", re.IGNORECASE)


def read_argument(name: str, value: object) -> Any:
    """Return an argument as the package uses it.

    Args:
        name: Its name in `ARGUMENTS`.
        value: Its value, rendered if it is templated.

    Raises:
        ValueError: If the value is not valid.
    """
    return ARGUMENTS[name](name, value)


def read_request(fields: Mapping[str, object]) -> GenerateRequest:
    """Return the request with the fields of a batch's row, a mapped row or an operator's arguments.

    Args:
        fields: The fields. None and blank values count as left out; a seed may be the text or float of an integer,
            a prompt may be a number.

    Raises:
        ValueError: If a field is not what the API allows, or the prompt is missing.
    """
    given: dict[str, Any] = {name: value for name, value in fields.items() if not is_left_out(value)}
    if "prompt" not in given:
        what = f"is {shown(fields['prompt'])}" if "prompt" in fields else "is missing"
        raise ValueError(f"prompt {what}; it must be a non-empty string.")
    # Not NaN, which pandas has for a missing value.
    if (number := text_of_number(given["prompt"])) is not None:
        given["prompt"] = number
    if "seed" in given:
        given["seed"] = read_seed(given["seed"])
    return GenerateRequest(**{name: _plain(value) for name, value in given.items()})


def read_seed(value: object) -> int:
    """Return a seed as an integer, even if a template, JSON or a CSV file made it a text or a float.

    Args:
        value: An integer of any kind, the decimal text of one, or a float without a fraction.

    Raises:
        ValueError: If it is not an integer from -1 to `contract.MAX_SEED`.
    """
    try:
        seed = integer_of_text(value) if isinstance(value, str) else integer_of(value)
    except (TypeError, ValueError):
        seed = None
    if seed is None or not RANDOM_SEED <= seed <= MAX_SEED:
        raise ValueError(f"seed is {shown(value)}; it must be -1 (random) or an integer from 0 to {MAX_SEED}.")
    return seed


def read_path(name: str, value: object) -> str | None:
    """Return the text of a Path or ObjectStoragePath, or None for anything else.

    Raises:
        ValueError: If it has storage options, which its text does not include.
    """
    unknown = sorted(set(getattr(value, "storage_options", None) or ()) - {"conn_id"})
    text = path_text(value)
    if text is not None and unknown:
        raise ValueError(
            f"{name} is {shown(without_credentials(text))} with the storage option {unknown[0]!r}; it must be a path "
            "without options, which do not reach the worker. Set them in the extra of the storage's connection."
        )
    return text


def path_text(value: object) -> str | None:
    """Return the text of a Path or ObjectStoragePath, or None for anything else."""
    # Airflow 3's ObjectStoragePath is not an os.PathLike, and Airflow 2's has a text that is not a path.
    if isinstance(getattr(value, "protocol", None), str) and hasattr(value, "storage_options"):
        return str(value)
    if isinstance(value, os.PathLike):
        text = os.fspath(value)
        return text if isinstance(text, str) else None
    return None


def check_output_path(output_path: object) -> None:
    """Check an `output_path` without opening anything.

    Raises:
        ValueError: If it is not a path or text, is empty, names an image file, or contains a password or a character
            that no name can have.
    """
    _folder("output_path", output_path)


def _refused(name: str, value: object, requirement: str) -> ValueError:
    return ValueError(f"{name} is {shown(value)}; it must be {requirement}.")


def is_left_out(value: object) -> bool:
    """Whether a field of a request counts as left out: it is None or blank."""
    return value is None or (isinstance(value, str) and is_blank(value))


def _plain(value: object) -> Any:
    """Return a text of a derived class, such as an enumeration's member, as a plain string."""
    return str.__str__(value) if isinstance(value, str) else value


def _flag(name: str, value: object) -> bool:
    if (flag := _flag_of(value)) is None:
        raise _refused(name, value, "True or False")
    return flag


def _flag_of(value: object) -> bool | None:
    """Return True or False, also as numpy has them, whose class is not derived from bool; None for anything else."""
    if isinstance(value, bool):
        return value
    is_numpys = getattr(getattr(value, "dtype", None), "kind", None) == "b" and getattr(value, "ndim", None) == 0
    return bool(value) if is_numpys else None


def _whole(at_least: int) -> Reader:
    def read(name: str, value: object) -> int:
        try:
            number = integer_of(value)
        except (TypeError, ValueError, OverflowError):
            number = at_least - 1
        if not at_least <= number <= _MAX_INTEGER:
            raise _refused(name, value, f"an integer of at least {at_least}, and of at most 64 bits")
        return number

    return read


def _seconds(*, zero: bool = False) -> Reader:
    def read(name: str, value: object) -> float:
        seconds = value.total_seconds() if isinstance(value, timedelta) else number_or_nan(value)
        if not (seconds >= 0 if zero else seconds > 0) or seconds > MAX_SECONDS:
            least = "of at least 0" if zero else "above 0"
            most = f"at most {MAX_SECONDS} (ten years)"
            raise _refused(name, value, f"seconds {least} and {most}, as a number or a timedelta")
        return int(value) if isinstance(value, int) else seconds

    return read


def _provenance(name: str, value: object) -> str | bool:
    if isinstance(value, str) and value in PROVENANCES:
        return _plain(value)  # type: ignore[no-any-return]  # a text stays a text
    if _flag_of(value) is False:
        return False
    raise _refused(name, value, f"{' or '.join(map(repr, PROVENANCES))}, or False to store the bytes as they came")


def _dataset(name: str, value: object) -> str:
    if isinstance(value, str) and value in DATASETS:
        return _plain(value)  # type: ignore[no-any-return]  # a text stays a text
    raise _refused(name, value, f"{' or '.join(map(repr, DATASETS))}, or None for no dataset")


def _credits(name: str, value: object) -> float | None:
    """Return an amount of credits; None and infinity both mean no limit."""
    if value is None:
        return None
    amount = number_or_nan(value)
    if not amount >= 0:
        raise _refused(name, value, "a number of credits of at least 0, or None")
    if math.isinf(amount):
        return None
    return int(value) if isinstance(value, int) else amount


def _end_time(name: str, value: object) -> float | None:
    if value is None:
        return None
    seconds = number_or_nan(value)
    if not math.isfinite(seconds):
        raise _refused(name, value, "a number of epoch seconds, or None")
    return seconds


def _conn_id(name: str, value: object) -> str:
    if not isinstance(value, str) or is_blank(value) or len(value) > _MAX_CONN_ID_CHARACTERS:
        length = f"1 to {_MAX_CONN_ID_CHARACTERS} characters"
        raise _refused(name, value, f"the id of an Airflow connection, a non-blank string of {length}")
    check_text(name, value)
    # A rendered template or a file may end in a line break.
    return _plain(value).strip()  # type: ignore[no-any-return]  # a text stays a text


def _connection(name: str, value: object) -> Any:
    if not hasattr(value, "conn_id"):
        raise _refused(name, value, "an Airflow connection, or None")
    return value


def _image_task_id(name: str, value: object) -> str:
    asked = value.strip() if isinstance(value, str) else ""
    if not is_usable(asked):
        raise ValueError(
            f"{name} is {shown(value)}; it must be the task id that a submission returned. Check that the upstream "
            "task ran and pushed it."
        )
    return printable_id(asked)


def check_named_image(image_name: object, output_path: object) -> None:
    """Check that an image with a chosen name is stored.

    Raises:
        ValueError: If there is no folder for it.
    """
    if image_name is not None and output_path is None:
        raise ValueError(
            f"image_name is {shown(image_name)} and output_path is None; it must be left out without an output_path, "
            "because it names the file that is stored there."
        )


def _request_field(name: str, value: object) -> Any:
    return getattr(read_request({"prompt": "of another field"} | {name: value}), name)


def _folder(name: str, value: object) -> str:
    text = value if isinstance(value, str) else read_path(name, value)
    if text is None or is_blank(text):
        raise _refused(name, value, _A_FOLDER)
    public = without_credentials(text)
    if text != public:
        raise ValueError(
            f"{name} is {shown(public)}, with credentials before the @; only the id of an Airflow connection may "
            "precede it. The path is shown wherever the images are: keep credentials in a connection."
        )
    if len(text) > _MAX_PATH_CHARACTERS:
        raise _refused(name, text, f"{_A_FOLDER}, of at most {_MAX_PATH_CHARACTERS} characters")
    check_text(name, text)
    stripped = text.strip()
    if any(unicodedata.category(character) == "Cc" for character in stripped):
        raise _refused(name, text, f"{_A_FOLDER}, without control characters")
    if stripped.endswith(("?", "#", "://")):
        raise _refused(name, text, f"{_A_FOLDER}, which cannot end with ?, # or ://")
    for part in _NOT_IN_NAMES:
        if part in text:
            raise _refused(name, text, f"{_A_FOLDER}, which cannot contain {part}")
    incomplete = _INCOMPLETE_URL.match(stripped)
    if incomplete is not None:
        raise ValueError(f"{name} is {shown(text)}, which is not a URL; write it as {incomplete[0].lower()}//…")
    if _IMAGE_FILE.search(text):
        raise ValueError(
            f"{name} is {shown(text)}, which looks like an image file; it must be {_A_FOLDER}. The name of the file "
            "is made from the request."
        )
    return _plain(text)  # type: ignore[no-any-return]  # a text stays a text


def _requests(name: str, value: object) -> Any:
    """Return requests in a form that Airflow can serialize with the DAG; `batch.requests` checks the rows."""
    text = value if isinstance(value, str) else read_path(name, value)
    if text is not None:
        check_text(name, text)
        return text
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return value if isinstance(value, list | tuple) else list(value)
    if isinstance(value, AbstractSet):
        raise ValueError(f"{name} is a {type(value).__name__}, which has no order; it must be {ALLOWED_REQUESTS}.")
    if isinstance(value, Iterator):
        raise ValueError(
            f"{name} is a {type(value).__name__}, so Airflow would create a new version of the DAG each time it is "
            f"parsed; it must be {ALLOWED_REQUESTS}. Write list(…) around it."
        )
    raise _refused(name, value, ALLOWED_REQUESTS)


def _images(name: str, value: object) -> Any:
    """Return images in a form that Airflow can serialize with the DAG; `choosing.candidates` reads them."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview):
        return value if isinstance(value, list | tuple) else list(value)
    raise _refused(name, value, "the output of tasks that store images, or a list of what they returned")


def _subject(name: str, value: object) -> str:
    if not isinstance(value, str) or is_blank(value):
        raise _refused(name, value, "a non-empty string")
    check_text(name, value)
    return _plain(value)  # type: ignore[no-any-return]  # a text stays a text


def _users(name: str, value: object) -> list[dict[str, str]]:
    """Return users as Airflow takes them. An empty list is refused: to Airflow it means everybody."""
    users = [value] if isinstance(value, Mapping) else value
    if not isinstance(users, list | tuple) or not users or not all(map(_is_user, users)):
        raise _refused(
            name,
            value,
            "a dict with the id and the name of a user, both strings and the id not blank, a list of at least one of "
            "them, or None for everybody",
        )
    found = [{key: _plain(user[key]) for key in _USER_FIELDS} for user in users]
    for user in found:
        for key, text in user.items():
            check_text(f"the {key} of a user in {name}", text)
    return found


def _is_user(value: object) -> bool:
    return (
        isinstance(value, Mapping)
        and all(isinstance(value.get(key), str) for key in _USER_FIELDS)
        and not is_blank(value["id"])
    )


def _or_none(read: Reader) -> Reader:
    def read_unless_none(name: str, value: object) -> Any:
        return None if value is None else read(name, value)

    return read_unless_none


# Each argument and the function that reads it.
ARGUMENTS: Mapping[str, Reader] = {
    **dict.fromkeys(REQUEST_FIELDS, _request_field),
    "requests": _requests,
    "image_name": check_image_name,
    "label": check_label,
    "image_task_id": _image_task_id,
    "qwenimage_conn_id": _conn_id,
    "output_path": _or_none(_folder),
    "wait_for_completion": _flag,
    "deferrable": _flag,
    "overwrite": _flag,
    "dry_run": _flag,
    "durable": _flag,
    "prompt_in_asset_events": _flag,
    "provenance": _provenance,
    "contact_sheet": _flag,
    "dataset": _or_none(_dataset),
    "poll_interval": _seconds(),
    "poke_interval": _seconds(),
    "timeout": _seconds(),
    "defer_after": _seconds(zero=True),
    "end_time": _end_time,
    "max_consecutive_failures": _whole(at_least=1),
    "max_image_bytes": _whole(at_least=1),
    "max_in_flight": _whole(at_least=1),
    "max_failures": _whole(at_least=0),
    "max_credits": _credits,
    # Of the hooks only.
    "timeout_seconds": _seconds(),
    "connection": _connection,
    "log_statuses": _flag,
    "retry_limit": _whole(at_least=0),
    # Of the retry policy only.
    "max_delay": _seconds(),
    "max_reschedules": _whole(at_least=0),
    # Of the hooks, and of every task.
    "retry_delay": _seconds(zero=True),
    # Arguments of Airflow's sensors, which do not check them.
    "soft_fail": _flag,
    "never_fail": _flag,
    "silent_fail": _flag,
    "exponential_backoff": _flag,
}
# A batch stores its images in the folder only, so it needs one.
BATCH_ARGUMENTS: Mapping[str, Reader] = {**ARGUMENTS, "output_path": _folder}
CHOOSE_ARGUMENTS: Mapping[str, Reader] = {
    **ARGUMENTS,
    "images": _images,
    "subject": _subject,
    "at_least": _whole(at_least=1),
    "at_most": _or_none(_whole(at_least=1)),
    "defaults": lambda _, value: read_defaults(value),
    "response_timeout": _or_none(_seconds()),
    "assigned_users": _or_none(_users),
}
# A sensor, and a wait of the hooks, may poll just once, or have no limit: a sensor then has Airflow's own.
WAIT_ARGUMENTS: Mapping[str, Reader] = {**ARGUMENTS, "timeout": _or_none(_seconds(zero=True))}

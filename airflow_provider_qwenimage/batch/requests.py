"""Reads the requests of a batch, from a list or a file, and checks every one before the first credit is spent."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeGuard

from airflow_provider_qwenimage.batch.spool import Spool
from airflow_provider_qwenimage.contract import (
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    OUTPUT_FORMATS,
    RANDOM_SEED,
    SIZES,
    GenerateRequest,
)
from airflow_provider_qwenimage.rules.arguments import ALLOWED_REQUESTS, ROW_FIELDS
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.image_names import A_NAME, name_key
from airflow_provider_qwenimage.rules.image_texts import A_LABEL, A_TEXT
from airflow_provider_qwenimage.rules.request_rows import (
    MAX_ROWS,
    NotJsonError,
    Row,
    file_reader,
    kind_of,
    near_field,
    read_json,
    shown_source,
)
from airflow_provider_qwenimage.rules.row_fields import A_REQUEST, RequestRow, read_row
from airflow_provider_qwenimage.rules.templates import is_rendered_later
from airflow_provider_qwenimage.text.messages import shorten, shown

_REQUIREMENTS = {
    "prompt": f"a non-blank string of 1 to {MAX_PROMPT_CHARACTERS} characters",
    "size": f"one of {', '.join(SIZES)}",
    "seed": f"-1 (random) or an integer from 0 to {MAX_SEED}",
    "output_format": f"one of {', '.join(OUTPUT_FORMATS)}",
    "callback_url": "an absolute http:// or https:// URL",
    "name": A_NAME,
    "label": A_LABEL,
    "text": A_TEXT,
}
# An error describes so many bad rows, gives the numbers of so many more, and counts the others.
_DESCRIBED_ROWS = 20
_NUMBERED_ROWS = 100
_NAMED_ROWS = _DESCRIBED_ROWS + _NUMBERED_ROWS
_LONGEST_PROBLEM = 400
# A comment, or a string literal of Python and the quote of another one right after it.
_PYTHON_TEXTS = re.compile(r"""\#.*|(?:'(?:\\[\s\S]|[^'\\])*+'|"(?:\\[\s\S]|[^"\\])*+")\s*(?P<next>['"]?)""")


@dataclass(frozen=True)
class BatchRequest:
    """One request of a batch.

    Attributes:
        number: The number of its row, counted from 0.
        request: The request.
        variant: The number that distinguishes equal requests with a random seed; see `GenerateRequest.fingerprint`.
        same_as: The row whose image it shares, because it is the same request with the same seed or name; or None.
        name: The name that the user has chosen for the file, without suffix; or None.
        label: What people see with the image, or None. Rows that share an image may have labels of their own.
        text: The image's text in a dataset, or None.
    """

    number: int
    request: GenerateRequest
    variant: int = 0
    same_as: int | None = None
    name: str | None = None
    label: str | None = None
    text: str | None = None

    @property
    def identity(self) -> ImageIdentity:
        """What makes its image the same as that of another task or row."""
        return ImageIdentity(self.request, self.variant, self.name)

    def description(self) -> dict[str, Any]:
        """Return the fields of the row that describe the image; see `ImageIdentity.description`."""
        texts = {"label": self.label, "text": self.text}
        return self.identity.description() | {name: text for name, text in texts.items() if text is not None}


class BatchRequests:
    """The checked requests of a batch, in their order.

    Args:
        rows: The requests as they were read.
        variant: Tells equal requests of several task instances apart; see `made_by.variant_of`.
        problems: Collects the bad rows, which `find` then passes over; None to refuse them.

    Attributes:
        number_to_draw: How many images they are; rows that share one count once.

    Raises:
        ValueError: If a row is not a request that the API allows; the message lists the bad rows.
    """

    def __init__(self, rows: Iterable[Row], *, variant: int = 0, problems: RowProblems | None = None) -> None:
        self._spool = Spool()
        self.number_to_draw = 0
        self._refuses = problems is None
        try:
            # Otherwise mapped batches, and those in a loop, would share the images of random seeds.
            self._read(rows, variant * MAX_ROWS, problems or RowProblems())
        except BaseException:
            self.close()
            raise

    def _read(self, rows: Iterable[Row], first_variant: int, problems: RowProblems) -> None:
        seen: dict[bytes, int] = {}
        for row in rows:
            if row.number > MAX_ROWS:
                raise ValueError(f"requests has more than {MAX_ROWS} rows. Split it into several batches.")
            entry: dict[str, Any] = {}
            is_bad = False
            read = problems.read(row)
            if read is not None:
                request, name = read.request, read.name
                entry = {"request": request.payload(), **read.own_fields()}
                # Without the variant, equal requests have equal fingerprints, also with a random seed.
                key = bytes.fromhex(request.fingerprint())[:16] if name is None else name_key(name)
                if name is None and request.seed == RANDOM_SEED:
                    # Counted among equal requests only, so that other rows can be added or removed without a new image.
                    seen[key] = seen.get(key, -1) + 1
                    entry["variant"] = first_variant + seen[key]
                elif key in seen:
                    entry["same_as"] = seen[key]
                    first = GenerateRequest(**self._entry(seen[key])["request"])
                    if problem := _why_not_to_share(request, first, seen[key] + 1, named=name is not None):
                        problems.note(row, problem)
                        is_bad = True
                else:
                    seen[key] = len(self._spool)
                self.number_to_draw += "same_as" not in entry
            # A bad row keeps its number, so that messages about later rows name the right one.
            self._spool.append({} if is_bad else entry)
        if problems.bad_rows and self._refuses:
            raise ValueError(str(problems))

    def __len__(self) -> int:
        return len(self._spool)

    def __getitem__(self, number: int) -> BatchRequest:
        return self._read_entry(number, self._entry(number))

    def find(self, number: int) -> BatchRequest | None:
        """Return the request of a row, counted from 0; None if the row is bad."""
        entry = self._entry(number)
        return self._read_entry(number, entry) if entry else None

    def _read_entry(self, number: int, entry: Mapping[str, Any]) -> BatchRequest:
        return BatchRequest(number, **{**entry, "request": GenerateRequest(**entry["request"])})

    def _entry(self, number: int) -> dict[str, Any]:
        entry = self._spool.get(number)
        if entry is None:
            raise IndexError(number)
        return entry

    def close(self) -> None:
        """Remove their temporary file."""
        self._spool.close()


def _why_not_to_share(request: GenerateRequest, first: GenerateRequest, first_row: int, *, named: bool) -> str | None:
    """Return why a row cannot share the image of an earlier one with the same seed or name, or None if it can.

    The values are not quoted: a callback URL often carries a token.
    """
    if request.description() != first.description():
        return (
            f"name is that of row {first_row}, which is another request (names that differ only in case are one file); "
            "it must be a name of its own"
        )
    # Nothing is lost if only the first row has one.
    if request.callback_url in (None, first.callback_url):
        return None
    own = "name" if named else "seed"
    return (
        f"callback_url is not that of row {first_row}, and both rows share one image (same request, same {own}), for "
        f"which the API calls one URL only; it must be the same in both rows, or this row needs another {own}"
    )


class RowProblems:
    """Reads rows, and collects the bad ones for an error of bounded length.

    Attributes:
        rows: How many rows were read.
        bad_rows: How many of them are bad.
        named: The first of these, with the problem and without the value.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.bad_rows = 0
        self.named: list[Row] = []

    def read(self, row: Row) -> RequestRow | None:
        """Return a row with its request, or None if it is bad."""
        self.rows += 1
        problem = row.problem
        try:
            if problem is None:
                return read_row(row.value)
        except RecursionError:
            problem = "nested too deeply"
        except ValueError as error:
            problem = str(error) if row.is_quotable else _describe_by_kind(row.value)
        self.note(row, problem)
        return None

    def note(self, row: Row, problem: str) -> None:
        """Note what is wrong with a row."""
        self.bad_rows += 1
        if len(self.named) < _NAMED_ROWS:
            self.named.append(Row(row.number, None, row.line, problem=shorten(problem, _LONGEST_PROBLEM)))

    def __str__(self) -> str:
        numbered = [str(row.number) for row in self.named[_DESCRIBED_ROWS:]]
        more = f" Also bad: rows {', '.join(numbered)}" if numbered else ""
        left = self.bad_rows - len(self.named)
        more += f" and {left} more." if left else "." if more else ""
        described = " | ".join(f"{row.where}: {row.problem}" for row in self.named[:_DESCRIBED_ROWS])
        return f"requests has {self.bad_rows} bad row(s) of {self.rows}; nothing was submitted. {described}{more}"


def _describe_by_kind(value: object) -> str:
    """Describe a bad row by the names of known fields and by kinds, without quoting any value."""
    if isinstance(value, str):
        return _describe_field("prompt", value)
    if not isinstance(value, Mapping):
        return f"the row is {kind_of(value)}; it must be {A_REQUEST}"
    unknown = [name for name in value if name not in ROW_FIELDS]
    if unknown:
        hints = {near_field(name) for name in unknown if isinstance(name, str)} - {""}
        what = f"{len(unknown)} key(s) are not fields of a request{''.join(sorted(hints))}"
        return f"{what}; the fields are {', '.join(ROW_FIELDS)}"
    if value.get("prompt") in (None, ""):
        return "prompt is missing; it must be a non-empty string"
    bad = [name for name in ROW_FIELDS if name in value and not _is_allowed(name, value[name])]
    return "; ".join(_describe_field(name, value[name]) for name in bad) or "not a request that the API allows"


def _describe_field(name: str, value: object) -> str:
    return f"{name} is {kind_of(value)}; it must be {_REQUIREMENTS[name]}"


def _is_allowed(name: str, value: object) -> bool:
    try:
        read_row({"prompt": "a", name: value})
    except (ValueError, RecursionError):
        return False
    return True


def read_request(value: object) -> GenerateRequest:
    """Return the request of a row; see `read_row`."""
    return read_row(value).request


def check_requests(value: Any) -> None:
    """Check requests when the DAG is parsed: the rows of a list, except templates, or the file name in a path.

    Args:
        value: The argument `requests`, as `arguments.read_argument` returned it.

    Raises:
        ValueError: If a row is not a request that the API allows, or a text is neither a list nor the path of a file.
    """
    if isinstance(value, str):
        if not (value.strip().startswith("[") or file_reader(value)):
            raise ValueError(f"requests is {shown_source(value)}; it must be {ALLOWED_REQUESTS}.")
        return
    for number, row in enumerate(value, start=1):
        if any(map(is_rendered_later, row.values() if isinstance(row, Mapping) else [row])):
            continue
        try:
            read_row(row)
        except ValueError as error:
            raise ValueError(f"requests has a bad row {number}: {error}") from None


def read_list(value: object) -> Iterator[Row]:
    """Yield the rows of a list, or of the text of a list, which a template may have rendered.

    Args:
        value: Any iterable of rows, or the text of a list in JSON or as Python prints it.

    Raises:
        ValueError: If it is anything else.
    """
    if isinstance(value, str):
        value = _list_from_text(value)
    if not has_rows(value):
        quoted = shown_source(value) if isinstance(value, str) else shown(value)
        raise ValueError(f"requests is {quoted}; it must be {ALLOWED_REQUESTS}.")
    for number, row in enumerate(value, start=1):
        yield Row(number, row)


def has_rows(value: object) -> TypeGuard[Iterable[Any]]:
    """Whether a value can be read row by row: the order of a set changes, and a DataFrame yields its column names."""
    is_iterable = isinstance(value, Iterable) and not isinstance(value, str | bytes | bytearray | Mapping | AbstractSet)
    return is_iterable and getattr(value, "ndim", 1) == 1


def _list_from_text(text: str) -> object:
    if not text.strip().startswith("["):
        return text
    try:
        return read_json(text)
    except NotJsonError as error:
        if error.line is None:
            # JSON, and not a list as Python prints it.
            raise ValueError(f"requests has {error}; it must be {ALLOWED_REQUESTS}.") from None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    # Only in a text that Python can read: in others, the search for the end of a quote restarts at each escape.
    if any(found["next"] for found in _PYTHON_TEXTS.finditer(text)):
        raise ValueError(
            f"requests is {shown(text)}, with two strings side by side, which Python would join; it must be "
            f"{ALLOWED_REQUESTS}. A numpy array is printed like this: convert it to a list."
        )
    return value

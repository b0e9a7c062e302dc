"""Reads the requests of a batch, from a list or a file, and checks every one before the first credit is spent."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from airflow_provider_qwenimage.batch.spool import Spool
from airflow_provider_qwenimage.contract import (
    MAX_PROMPT_CHARACTERS,
    MAX_SEED,
    OUTPUT_FORMATS,
    RANDOM_SEED,
    SIZES,
    GenerateRequest,
)
from airflow_provider_qwenimage.rules import arguments
from airflow_provider_qwenimage.rules.arguments import ALLOWED_REQUESTS, REQUEST_FIELDS
from airflow_provider_qwenimage.rules.request_rows import (
    NotJsonError,
    Row,
    kind_of,
    near_field,
    read_json,
    shown_source,
)
from airflow_provider_qwenimage.text.messages import shorten, shown

_ALLOWED = {
    "prompt": f"a text of 1 to {MAX_PROMPT_CHARACTERS} characters that is not blank",
    "size": ", ".join(SIZES),
    "seed": f"-1 (random) and the integers from 0 to {MAX_SEED}",
    "output_format": ", ".join(OUTPUT_FORMATS),
    "callback_url": "an absolute http:// or https:// URL",
}
# So many bad rows are described, and so many more are numbered; of the others the count must do.
_DESCRIBED_ROWS = 20
_NUMBERED_ROWS = 100
_LONGEST_PROBLEM = 400
# A comment, or a text as Python prints it and the quote of another one right after it.
_PYTHON_TEXTS = re.compile(r"""\#.*|(?:'(?:\\[\s\S]|[^'\\])*+'|"(?:\\[\s\S]|[^"\\])*+")\s*(?P<next>['"]?)""")
MAX_ROWS = 1_000_000


@dataclass(frozen=True)
class BatchRequest:
    """One request of a batch.

    Attributes:
        number: Its row, counted from 0.
        request: The request.
        variant: The number that distinguishes equal requests with a random seed; see `GenerateRequest.fingerprint`.
        same_as: The row whose image it shares, because it asks for the same with the same seed; or None.
    """

    number: int
    request: GenerateRequest
    variant: int = 0
    same_as: int | None = None


class BatchRequests:
    """The checked requests of a batch, in their order.

    Args:
        rows: The requests as they came.
        map_index: The map index of the Airflow task, or -1.

    Raises:
        ValueError: If a row is not what the API allows; the message names every such row.
    """

    def __init__(self, rows: Iterable[Row], *, map_index: int = -1) -> None:
        self._spool = Spool()
        self.number_to_draw = 0
        try:
            # Mapped batches number their variants apart: otherwise two would share the images of random seeds.
            self._read(rows, max(0, map_index) * MAX_ROWS)
        except BaseException:
            self.close()
            raise

    def _read(self, rows: Iterable[Row], first_variant: int) -> None:
        seen: dict[bytes, int] = {}
        problems = _Problems()
        for row in rows:
            if row.number > MAX_ROWS:
                raise ValueError(f"requests has more than {MAX_ROWS} rows. Split it into several batches.")
            request = problems.read(row)
            if request is None or problems.bad_rows:
                # Nothing will be submitted, so only what is bad is still of interest.
                continue
            # Without the variant, equal requests have equal fingerprints, also with a random seed.
            key = bytes.fromhex(request.fingerprint())[:16]
            entry: dict[str, Any] = {"request": request.payload()}
            if request.seed == RANDOM_SEED:
                # Counted among its like, so that a row before it can come or go without a new image for it.
                seen[key] = seen.get(key, -1) + 1
                entry["variant"] = first_variant + seen[key]
            elif key in seen:
                entry["same_as"] = seen[key]
            else:
                seen[key] = len(self._spool)
            self.number_to_draw += "same_as" not in entry
            self._spool.append(entry)
        if problems.bad_rows:
            raise ValueError(str(problems))

    def __len__(self) -> int:
        return len(self._spool)

    def __getitem__(self, number: int) -> BatchRequest:
        entry = self._spool.get(number)
        if entry is None:
            raise IndexError(number)
        request = GenerateRequest(**entry["request"])
        return BatchRequest(number, request, variant=entry.get("variant", 0), same_as=entry.get("same_as"))

    def close(self) -> None:
        """Remove what is on disk of them."""
        self._spool.close()


class _Problems:
    """Reads rows, and keeps of the bad ones no more than an error of bounded length tells."""

    def __init__(self) -> None:
        self.rows = 0
        self.bad_rows = 0
        self._described: list[str] = []
        self._numbered: list[str] = []

    def read(self, row: Row) -> GenerateRequest | None:
        """Return the request of a row, or None where it is bad."""
        self.rows += 1
        problem = row.problem
        try:
            if problem is None:
                return read_request(row.value)
        except RecursionError:
            problem = "nested too deeply"
        except ValueError as error:
            problem = str(error) if row.is_quotable else _describe_by_kind(row.value)
        self.bad_rows += 1
        if len(self._described) < _DESCRIBED_ROWS:
            self._described.append(f"{row.where}: {shorten(problem, _LONGEST_PROBLEM)}")
        elif len(self._numbered) < _NUMBERED_ROWS:
            self._numbered.append(str(row.number))
        return None

    def __str__(self) -> str:
        more = f" Also bad: rows {', '.join(self._numbered)}" if self._numbered else ""
        left = self.bad_rows - len(self._described) - len(self._numbered)
        more += f" and {left} more." if left else "." if more else ""
        described = " | ".join(self._described)
        return f"requests has {self.bad_rows} bad row(s) of {self.rows}; nothing was submitted. {described}{more}"


def _describe_by_kind(value: object) -> str:
    """Return what is wrong with a bad row by the names of known fields and by kinds, and nothing that it says."""
    if isinstance(value, str):
        return _describe_field("prompt", value)
    if not isinstance(value, Mapping):
        return f"{kind_of(value)} is no request; allowed are a prompt or an object with a prompt"
    unknown = [name for name in value if name not in REQUEST_FIELDS]
    if unknown:
        hints = {near_field(name) for name in unknown if isinstance(name, str)} - {""}
        what = f"{len(unknown)} key(s) are no field of a request{''.join(sorted(hints))}"
        return f"{what}; allowed are {', '.join(REQUEST_FIELDS)}"
    if value.get("prompt") in (None, ""):
        return "prompt is missing; allowed is a text that is not empty"
    bad = [name for name in REQUEST_FIELDS if name in value and not _is_allowed(name, value[name])]
    return "; ".join(_describe_field(name, value[name]) for name in bad) or "not a request that the API allows"


def _describe_field(name: str, value: object) -> str:
    return f"{name} is {kind_of(value)}; allowed: {_ALLOWED[name]}"


def _is_allowed(name: str, value: object) -> bool:
    try:
        read_request({"prompt": "a", name: value})
    except (ValueError, RecursionError):
        return False
    return True


def read_request(value: object) -> GenerateRequest:
    """Return the request that a row asks for.

    Args:
        value: A prompt, or an object with the fields of a request; see `arguments.read_request`.

    Raises:
        ValueError: If it is not what the API allows.
    """
    if isinstance(value, str):
        return arguments.read_request({"prompt": value})
    if not isinstance(value, Mapping):
        raise ValueError(f"{shown(value)} is no request; allowed are a prompt or an object with a prompt.")
    unknown = [name for name in value if name not in REQUEST_FIELDS]
    if unknown:
        raise ValueError(f"{shown(unknown[0])} is no field of a request; allowed are {', '.join(REQUEST_FIELDS)}.")
    return arguments.read_request(value)


def read_list(value: object) -> Iterator[Row]:
    """Yield the rows of a list, also where a template has made the text of one.

    Args:
        value: Any iterable of rows, or the text of a list in JSON or as Python prints it.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(value, str):
        value = _list_from_text(value)
    # The order of a set changes from one try to the next.
    if isinstance(value, str | bytes | bytearray | Mapping | AbstractSet) or not isinstance(value, Iterable):
        told = shown_source(value) if isinstance(value, str) else shown(value)
        raise ValueError(f"requests is {told}; allowed is {ALLOWED_REQUESTS}.")
    for number, row in enumerate(value, start=1):
        yield Row(number, row)


def _list_from_text(text: str) -> object:
    if not text.strip().startswith("["):
        return text
    try:
        return read_json(text)
    except NotJsonError as error:
        if error.line is None:
            # JSON, and no list that Python prints.
            raise ValueError(f"requests has {error}; allowed is {ALLOWED_REQUESTS}.") from None
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    # Looked for only in what is Python: elsewhere, a quote without an end would be looked for again from each escape.
    if any(found["next"] for found in _PYTHON_TEXTS.finditer(text)):
        raise ValueError(
            f"requests is {shown(text)}, with two texts side by side, which Python would take for one; allowed is "
            f"{ALLOWED_REQUESTS}. An array of numpy prints so: make a list of it."
        )
    return value

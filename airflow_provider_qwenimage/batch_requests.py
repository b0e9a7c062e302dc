"""Reads the requests of a batch, from a list or a file, and checks every one before the first credit is spent."""

from __future__ import annotations

import ast
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow_provider_qwenimage import arguments
from airflow_provider_qwenimage.arguments import ALLOWED_REQUESTS, REQUEST_FIELDS
from airflow_provider_qwenimage.contract import RANDOM_SEED, GenerateRequest, shorten, shown
from airflow_provider_qwenimage.spool import Spool

if TYPE_CHECKING:
    from typing import BinaryIO

# So many bad rows are quoted with what is wrong with them; of the others the numbers must do.
_QUOTED_ROWS = 20
# Batches that are mapped have places of their own, each of a million: else two would share the images of random seeds.
_PLACES = 1_000_000


@dataclass(frozen=True)
class Row:
    """One request as it came.

    Attributes:
        number: Its number, counted from 1, for people.
        value: A prompt, or an object with the fields of a request.
        line: The line of the file that it ends on, if it comes from a file of lines.
    """

    number: int
    value: object
    line: int | None = None

    @property
    def where(self) -> str:
        """Where it stands, for messages."""
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"


@dataclass(frozen=True)
class BatchRequest:
    """One request of a batch.

    Attributes:
        number: Its row, counted from 0.
        request: The request.
        place: Its place among equal requests with a random seed; see `GenerateRequest.fingerprint`.
        same_as: The row whose image it shares, because it asks for the same with the same seed; or None.
    """

    number: int
    request: GenerateRequest
    place: int = 0
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
            self._read(rows, max(0, map_index) * _PLACES)
        except BaseException:
            self.close()
            raise

    def _read(self, rows: Iterable[Row], first_place: int) -> None:
        seen: dict[bytes, int] = {}
        problems: list[str] = []
        bad_rows = 0
        for row in rows:
            try:
                request = read_request(row.value)
            except ValueError as error:
                bad_rows += 1
                problems.append(f"{row.where}: {error}" if bad_rows <= _QUOTED_ROWS else str(row.number))
                continue
            # Without the place, equal requests have equal fingerprints, also with a random seed.
            key = bytes.fromhex(request.fingerprint())[:16]
            entry: dict[str, Any] = {"request": request.payload()}
            if request.seed == RANDOM_SEED:
                # Counted among its like, so that a row before it can come or go without a new image for it.
                seen[key] = seen.get(key, -1) + 1
                entry["place"] = first_place + seen[key]
            elif key in seen:
                entry["same_as"] = seen[key]
            else:
                seen[key] = len(self._spool)
            self.number_to_draw += "same_as" not in entry
            self._spool.append(entry)
        if problems:
            raise ValueError(_complaint(problems, bad_rows, bad_rows + len(self._spool)))

    def __len__(self) -> int:
        return len(self._spool)

    def __getitem__(self, number: int) -> BatchRequest:
        entry = self._spool.get(number)
        if entry is None:
            raise IndexError(number)
        request = GenerateRequest(**entry["request"])
        return BatchRequest(number, request, place=entry.get("place", 0), same_as=entry.get("same_as"))

    def close(self) -> None:
        """Remove what is on disk of them."""
        self._spool.close()


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
        raise ValueError(f"requests is {shown(value)}; allowed is {ALLOWED_REQUESTS}.")
    for number, row in enumerate(value, start=1):
        yield Row(number, row)


def file_reader(path: str) -> Callable[[BinaryIO], Iterator[Row]] | None:
    """Return what reads a file of requests, by the file's name; None if it is not the name of one.

    Args:
        path: A path or URL.
    """
    return _READERS.get(PurePosixPath(path.strip()).suffix.lower()) if "\n" not in path.strip() else None


def _read_json_lines(stream: BinaryIO) -> Iterator[Row]:
    number = 0
    for line_number, line in enumerate(_text(stream), start=1):
        if not line.strip():
            continue
        number += 1
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = _NotJson(line.strip())
        yield Row(number, value, line_number)


def _read_json(stream: BinaryIO) -> Iterator[Row]:
    try:
        value = json.load(_text(stream))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The file of requests is not JSON: {error}. Allowed is an array of requests.") from None
    if not isinstance(value, list):
        raise ValueError(f"The file of requests has {shorten(repr(value))}; allowed is an array of requests.")
    yield from read_list(value)


def _read_csv(stream: BinaryIO) -> Iterator[Row]:
    # Line ends inside of quotes are part of a prompt.
    text = _text(stream, newline="")
    reader = csv.DictReader(text, strict=True)
    try:
        _check_columns(reader.fieldnames)
        for number, row in enumerate(reader, start=1):
            value: object = row
            if None in row:
                value = _NotJson("more cells than the header has columns; put a prompt with commas into quotes")
            yield Row(number, value, reader.line_num)
    except csv.Error as error:
        raise ValueError(
            f"The file of requests is not CSV at line {reader.reader.line_num}: {error}. Allowed is comma-separated "
            "text with quotes around what has commas, quotes or line breaks in it."
        ) from None


def _check_columns(names: Iterable[str] | None) -> None:
    found = list(names or [])
    unknown = [name for name in found if name not in REQUEST_FIELDS]
    if "prompt" not in found or unknown:
        raise ValueError(
            f"The file of requests has the columns {', '.join(map(repr, found)) or 'none'} in its first line; allowed "
            f"are prompt, which must be there, and {', '.join(name for name in REQUEST_FIELDS if name != 'prompt')}."
        )


class _NotJson:
    """Stands for a row that cannot be read, so that it is named along with all others that are bad."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return shorten(self._text)


_READERS: Mapping[str, Callable[[Any], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
}


def _text(stream: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    # Spreadsheets put a byte order mark before their UTF-8.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", newline=newline)


def _list_from_text(text: str) -> object:
    if not text.strip().startswith("["):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return text


def _complaint(problems: list[str], bad_rows: int, rows: int) -> str:
    quoted, others = problems[:_QUOTED_ROWS], problems[_QUOTED_ROWS:]
    more = f" Also bad: rows {', '.join(others)}." if others else ""
    return f"requests has {bad_rows} bad row(s) of {rows}; nothing was submitted. {' | '.join(quoted)}{more}"

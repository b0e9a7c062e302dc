"""Reads the rows of a file of requests within bounds. Of a file that is not one, errors tell the place and the kind.

A path that a user fills in may lead to any file, a file of passwords say; errors go to logs, to XComs and to the
gallery. So none of them, nor what it was caused by, holds what the file says.
"""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from airflow_provider_qwenimage.rules.arguments import REQUEST_FIELDS
from airflow_provider_qwenimage.text.messages import shorten

if TYPE_CHECKING:
    from typing import BinaryIO

# A prompt has 2000 characters at most, each of 12 bytes where JSON escapes it.
MAX_ROW_BYTES = 256 * 1024
MAX_FILE_BYTES = 2 * 1024**3
# An array is read as a whole, and takes some ten times as much memory.
MAX_JSON_BYTES = 32 * 1024**2

_MOST_PROBLEMS = 5
_CHUNK_BYTES = 64 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OTHER_KINDS = (
    (b"\xff\xfe\x00\x00", "text in UTF-32"),
    (b"\x00\x00\xfe\xff", "text in UTF-32"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"\x1f\x8b", "compressed (gzip)"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet"),
    (b"BZh", "compressed (bzip2)"),
    (b"\xfd7zXZ\x00", "compressed (xz)"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)"),
)


@dataclass(frozen=True)
class Row:
    """One request as it came.

    Attributes:
        number: Its number, counted from 1, for people.
        value: A prompt, or an object with the fields of a request.
        line: The line of the file that it ends on, if it comes from a file of lines.
        is_quotable: Whether messages may show its values.
        problem: Why it could not be read, if it could not.
    """

    number: int
    value: object
    line: int | None = None
    is_quotable: bool = True
    problem: str | None = None

    @property
    def where(self) -> str:
        """Its number and line, for messages."""
        return f"row {self.number}" if self.line is None else f"row {self.number} (line {self.line})"


class NotJsonError(ValueError):
    """A text that is not JSON, or not JSON with one meaning; the message tells the kind and nothing of the text.

    Args:
        kind: What is wrong.
        line: The line, counted from 1, where that is known.
        column: The character in that line, counted from 1.
    """

    def __init__(self, kind: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(kind)
        self.line = line
        self.column = column


def file_reader(path: str) -> Callable[[BinaryIO], Iterator[Row]] | None:
    """Return what reads a file of requests, by the file's name; None if it is not the name of one.

    Args:
        path: A path or URL.
    """
    return _READERS.get(PurePosixPath(path.strip()).suffix.lower()) if "\n" not in path.strip() else None


def shown_source(source: str) -> str:
    """Return the path or URL of a file for messages, without a password or a query, which may grant access."""
    if "://" in source:
        try:
            parts = urlsplit(source)
        except ValueError:
            return "a URL that cannot be read"
        user, _, host = parts.netloc.rpartition("@")
        name, colon, _ = user.partition(":")
        netloc = f"{name}{':***' if colon else ''}@{host}" if user else host
        source = parts._replace(netloc=netloc, query="", fragment="").geturl()
    return shorten(repr(source))


def read_json(text: str) -> Any:
    """Return what a text in JSON says.

    Raises:
        NotJsonError: If it is not JSON, or has a key twice in an object, or NaN or Infinity.
    """
    # Raised outside of `except`: the error that is caught there holds the text.
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except NotJsonError as error:
        problem = error
    except json.JSONDecodeError as error:
        # Of this kind alone the message may quote.
        kind = "Invalid escape" if error.msg.startswith("Invalid \\escape") else error.msg
        problem = NotJsonError(kind, error.lineno, error.colno)
    except RecursionError:
        problem = NotJsonError("nested too deeply")
    except ValueError:
        problem = NotJsonError("a number of too many digits")
    raise problem


def near_field(name: str) -> str:
    """Return which field of a request was probably meant by a name, as a question, or nothing."""
    near = difflib.get_close_matches(name[:50].strip().lower(), REQUEST_FIELDS, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise NotJsonError("an object with the same key twice")
    return found


def _refuse_constant(_: str) -> NoReturn:
    raise NotJsonError("NaN or Infinity, which JSON does not have")


class _Lines:
    """The lines of a stream as text, with their ends, within bounds.

    Attributes:
        number: The number of the last line, counted from 1.
        row_bytes: How many bytes the row so far has; whoever reads the rows begins each with 0.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = _split(stream)
        self._bytes = 0
        self.number = 0
        self.row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self._bytes += len(line)
        self.row_bytes += len(line)
        if self.number == 1:
            line = _without_mark(line)
        if self.row_bytes > MAX_ROW_BYTES:
            raise ValueError(
                f"The file of requests has a row of more than {MAX_ROW_BYTES} bytes at line {self.number}; a request "
                "is far shorter. Check that it is a file of requests, with a line end after each."
            )
        if self._bytes > MAX_FILE_BYTES:
            raise ValueError(f"The file of requests has more than {MAX_FILE_BYTES} bytes. Split it into several.")
        return _decode(line, self.number)


def _split(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream; of one that is too long, no more than its beginning."""
    pending = b""
    # Not every storage can read a line up to a limit.
    while chunk := stream.read(_CHUNK_BYTES):
        *lines, pending = (pending + chunk).splitlines(keepends=True)
        yield from lines
        if len(pending) > MAX_ROW_BYTES:
            yield pending
            return
    if pending:
        yield pending


def _without_mark(beginning: bytes) -> bytes:
    """Return the beginning of a file without the byte order mark that spreadsheets put before their UTF-8."""
    for signature, kind in _OTHER_KINDS:
        if beginning.startswith(signature):
            raise ValueError(f"The file of requests is {kind}; allowed is plain text in UTF-8.")
    return beginning.removeprefix(_BYTE_ORDER_MARK)


def _decode(data: bytes, first_line: int) -> str:
    text, bad = _try_to_decode(data)
    kind = "is not text in UTF-8"
    if text is not None:
        bad = text.find("\x00")
        if bad < 0:
            return text
        kind, data = "has a NUL character, so it is not text in UTF-8,", text.encode()
        bad = len(text[:bad].encode())
    before = data[:bad].splitlines(keepends=True) or [b""]
    if before[-1].endswith((b"\n", b"\r")):
        before.append(b"")
    place = f"line {first_line + len(before) - 1}, column {len(before[-1].decode()) + 1}"
    raise ValueError(f"The file of requests {kind} at {place}. Save it as UTF-8.")


def _try_to_decode(data: bytes) -> tuple[str | None, int]:
    """Return the text, or None and the place of the byte that is not UTF-8."""
    try:
        return data.decode("utf-8"), -1
    except UnicodeDecodeError as error:
        return None, error.start


def _read_json_lines(stream: BinaryIO) -> Iterator[Row]:
    number = 0
    lines = _Lines(stream)
    for line in lines:
        lines.row_bytes = 0
        if not line.strip():
            continue
        number += 1
        value, problem = None, None
        try:
            value = read_json(line)
        except NotJsonError as error:
            column = "" if error.column is None else f" at column {error.column}"
            problem = f"not JSON{column}: {error}"
        yield Row(number, value, lines.number, is_quotable=False, problem=problem)


def _read_json_array(stream: BinaryIO) -> Iterator[Row]:
    data = bytearray()
    while chunk := stream.read(_CHUNK_BYTES):
        data += chunk
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(
                f"The file of requests has more than {MAX_JSON_BYTES} bytes. Split it into several, or write JSON "
                "Lines, which are read one by one."
            )
    text = _decode(_without_mark(bytes(data)), 1)
    value, problem = None, None
    try:
        value = read_json(text)
    except NotJsonError as error:
        place = "" if error.line is None else f" at line {error.line}, column {error.column}"
        problem = f"The file of requests is not JSON{place}: {error}. Allowed is an array of requests."
    if problem is None and not isinstance(value, list):
        problem = f"The file of requests holds {kind_of(value)}; allowed is an array of requests."
    if problem is not None:
        raise ValueError(problem)
    for number, row in enumerate(value or (), start=1):
        yield Row(number, row, is_quotable=False)


def _read_csv(stream: BinaryIO) -> Iterator[Row]:
    lines = _Lines(stream)
    reader = csv.DictReader(lines, strict=True)
    try:
        _check_columns(reader.fieldnames)
        lines.row_bytes = 0
        for number, row in enumerate(reader, start=1):
            lines.row_bytes = 0
            yield Row(number, row, lines.number, is_quotable=False, problem=_problem_of_cells(row))
    except csv.Error as error:
        raise ValueError(
            f"The file of requests is not CSV at line {lines.number}: {error}. Allowed is comma-separated text with "
            "quotes around what has commas, quotes or line breaks in it."
        ) from None


def _problem_of_cells(row: Mapping[Any, Any]) -> str | None:
    if None in row:
        return "more cells than the header has columns; put a prompt with commas into quotes"
    # Files that are put behind one another bring their headers along, and byte order marks.
    if all(isinstance(cell, str) and cell.lstrip("\ufeff") == name for name, cell in row.items()):
        return "the header once more; leave it out where files are joined"
    return None


def _check_columns(names: Iterable[str] | None) -> None:
    found = list(names or [])
    problems = [
        f"column {number} is not a field{near_field(name)}"
        if name not in REQUEST_FIELDS
        else f"column {number} repeats {name}"
        for number, name in enumerate(found, start=1)
        if name not in REQUEST_FIELDS or name in found[: number - 1]
    ]
    if len(found) == 1 and problems and any(mark in found[0] for mark in (";", "\t")):
        problems = ["there is one column with semicolons or tabs in its name; separate the columns by commas"]
    if "prompt" not in found:
        problems.append("there is no column prompt")
    if problems:
        left = len(problems) - _MOST_PROBLEMS
        more = f", and {left} more problems" if left > 0 else ""
        told = ", ".join(problems[:_MOST_PROBLEMS])
        raise ValueError(
            f"The first line of the file of requests does not name fields of a request: {told}{more}. Allowed are "
            f"prompt, which is required, and {', '.join(REQUEST_FIELDS[1:])}."
        )


def kind_of(value: object) -> str:
    """Return what kind of a value something is, in words, and nothing of the value."""
    if isinstance(value, str):
        odd = "" if value.isascii() or _is_encodable(value) else " with half of a character (a lone surrogate)"
        nul = " with a NUL character" if "\x00" in value else ""
        return f"a text of {len(value)} characters{odd}{nul}"
    kinds: list[tuple[type | tuple[type, ...], str]] = [
        (type(None), "null"),
        (bool, "true or false"),
        ((int, float), "a number"),
        (list, "an array"),
        (Mapping, "an object"),
    ]
    return next((name for kind, name in kinds if isinstance(value, kind)), "something else")


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


_READERS: Mapping[str, Callable[[Any], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json_array,
    ".csv": _read_csv,
}

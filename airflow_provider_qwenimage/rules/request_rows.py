"""Reads the rows of a file of requests within bounds. Errors about it give the position and the kind of a problem.

The path may lead to any file, even one of passwords, and errors go to logs, to XComs and to the gallery. So neither an
error nor its cause quotes the file. No I/O: the caller opens the stream.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

from airflow_provider_qwenimage.rules.arguments import ROW_FIELDS
from airflow_provider_qwenimage.text.messages import did_you_mean, shorten

if TYPE_CHECKING:
    from typing import BinaryIO

MAX_ROWS = 1_000_000
# A prompt has 2000 characters at most and a text 10,000, each of up to 12 bytes if JSON escapes it.
MAX_ROW_BYTES = 256 * 1024
MAX_FILE_BYTES = 2 * 1024**3
# An array is read as a whole, which takes some ten times as much memory.
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
    """One request before it is checked.

    Attributes:
        number: Its number, counted from 1, for messages.
        value: A prompt, or an object with the fields of a request.
        line: The last line of it in the file, if it comes from a file of lines.
        is_quotable: Whether messages may show its values.
        problem: Why it could not be read, or None.
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
    """A text that is not JSON, or not JSON with one meaning; the message does not quote the text.

    Args:
        kind: The kind of problem.
        line: The line, counted from 1, if it is known.
        column: The character in that line, counted from 1.
    """

    def __init__(self, kind: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(kind)
        self.line = line
        self.column = column


def file_reader(path: str) -> Callable[[BinaryIO], Iterator[Row]] | None:
    """Return the function that reads a file of requests, by the suffix of its path or URL; None for other texts."""
    path = path.strip()
    return None if "\n" in path else _READERS.get(PurePosixPath(path).suffix.lower())


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
    """Return the value of a text in JSON.

    Raises:
        NotJsonError: If it is not JSON, or has a key twice in an object, or NaN or Infinity.
    """
    # Raised outside of `except`, because the error caught there contains the text.
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except NotJsonError as error:
        problem = error
    except json.JSONDecodeError as error:
        # Only this kind of message may quote the text.
        kind = "Invalid escape" if error.msg.startswith("Invalid \\escape") else error.msg
        problem = NotJsonError(kind, error.lineno, error.colno)
    except RecursionError:
        problem = NotJsonError("nested too deeply")
    except ValueError:
        problem = NotJsonError("a number of too many digits")
    raise problem


def near_field(name: str, fields: Sequence[str] = ROW_FIELDS) -> str:
    """Return a question whether a field of a request with a similar name was meant, or an empty text."""
    return did_you_mean(name[:50].strip().lower(), fields)


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
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._lines = _split(stream)
        self._bytes = 0
        self._row_bytes = 0
        self.number = 0

    def begin_row(self) -> None:
        """Count the bytes of the next row, which has a bound, from 0."""
        self._row_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.number += 1
        self._bytes += len(line)
        self._row_bytes += len(line)
        if self.number == 1:
            line = _without_mark(line)
        if self._row_bytes > MAX_ROW_BYTES:
            raise ValueError(
                f"The file of requests has a row of more than {MAX_ROW_BYTES} bytes at line {self.number}; a request "
                "is far shorter. Check that it is a file of requests, with a line end after each row."
            )
        if self._bytes > MAX_FILE_BYTES:
            raise ValueError(f"The file of requests has more than {MAX_FILE_BYTES} bytes. Split it into several.")
        return _decode(line, self.number)


def _split(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a stream, and only the beginning of a line that is too long."""
    pending = b""
    # Some storages cannot read a line up to a limit.
    while chunk := stream.read(_CHUNK_BYTES):
        *lines, pending = (pending + chunk).splitlines(keepends=True)
        yield from lines
        if len(pending) > MAX_ROW_BYTES:
            yield pending
            return
    if pending:
        yield pending


def _without_mark(beginning: bytes) -> bytes:
    """Return the beginning of a file without the byte order mark of spreadsheets; refuse formats other than UTF-8."""
    for signature, kind in _OTHER_KINDS:
        if beginning.startswith(signature):
            raise ValueError(f"The file of requests is {kind}; it must be plain text in UTF-8.")
    return beginning.removeprefix(_BYTE_ORDER_MARK)


def _decode(data: bytes, first_line: int) -> str:
    """Return the text of some lines of a file, of which the first has the number `first_line`."""
    text, bad_byte = _try_to_decode(data)
    nul = data.find(b"\x00")
    if text is not None and nul < 0:
        return text
    if text is None:
        problem = f"is not text in UTF-8 at {_position(data[:bad_byte], first_line)}"
    else:
        problem = f"has a NUL character, so it is not text in UTF-8, at {_position(data[:nul], first_line)}"
    raise ValueError(f"The file of requests {problem}. Save it as UTF-8.")


def _try_to_decode(data: bytes) -> tuple[str | None, int]:
    """Return the text, or None and the index of the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8"), -1
    except UnicodeDecodeError as error:
        # Its text must not become the cause of another error.
        return None, error.start


def _position(before: bytes, first_line: int) -> str:
    """Return the line and the column of the character that follows some text."""
    lines = (before + b"?").splitlines()
    return f"line {first_line + len(lines) - 1}, column {len(lines[-1].decode())}"


def _read_json_lines(stream: BinaryIO) -> Iterator[Row]:
    number = 0
    lines = _Lines(stream)
    for line in lines:
        lines.begin_row()
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
    try:
        value = read_json(_decode(_without_mark(bytes(data)), 1))
    except NotJsonError as error:
        position = "" if error.line is None else f" at line {error.line}, column {error.column}"
        raise ValueError(
            f"The file of requests is not JSON{position}: {error}. It must be an array of requests."
        ) from None
    if not isinstance(value, list):
        raise ValueError(f"The file of requests contains {kind_of(value)}; it must be an array of requests.")
    for number, row in enumerate(value, start=1):
        yield Row(number, row, is_quotable=False)


def _read_csv(stream: BinaryIO) -> Iterator[Row]:
    lines = _Lines(stream)
    reader = csv.DictReader(lines, strict=True)
    try:
        _check_columns(reader.fieldnames)
        lines.begin_row()
        for number, row in enumerate(reader, start=1):
            lines.begin_row()
            yield Row(number, row, lines.number, is_quotable=False, problem=_problem_of_cells(row))
    except csv.Error as error:
        raise ValueError(
            f"The file of requests is not CSV at line {lines.number}: {error}. It must be comma-separated text, with "
            "quotes around cells that contain commas, quotes or line breaks."
        ) from None


def _problem_of_cells(row: Mapping[Any, Any]) -> str | None:
    if None in row:
        return "more cells than the header has columns; put quotes around a prompt with commas"
    # Concatenated files contain each header, with a byte order mark.
    if all(isinstance(cell, str) and cell.lstrip("\ufeff") == name for name, cell in row.items()):
        return "the header again; leave it out when you join files"
    return None


def _check_columns(names: Sequence[str] | None) -> None:
    found = list(names or [])
    problems = [
        problem for number, name in enumerate(found) if (problem := _problem_of_column(name, number, found[:number]))
    ]
    if len(found) == 1 and problems and any(mark in found[0] for mark in (";", "\t")):
        problems = ["the name of the only column contains semicolons or tabs; separate the columns by commas"]
    if "prompt" not in found:
        problems.append("the column prompt is missing")
    if problems:
        left = len(problems) - _MOST_PROBLEMS
        more = f", and {left} more problems" if left > 0 else ""
        described = ", ".join(problems[:_MOST_PROBLEMS])
        raise ValueError(
            f"The first line of the file of requests does not name fields of a request: {described}{more}. It must "
            f"name prompt, and may name {', '.join(ROW_FIELDS[1:])}."
        )


def _problem_of_column(name: str, number: int, before: Sequence[str]) -> str | None:
    if name not in ROW_FIELDS:
        return f"column {number + 1} is not a field{near_field(name)}"
    return f"column {number + 1} repeats {name}" if name in before else None


def kind_of(value: object) -> str:
    """Return the kind of a value in words, without quoting the value."""
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

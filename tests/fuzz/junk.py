"""Strategies for untrusted input: odd texts, numbers and JSON of the kinds that have caused errors before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

# Each of these characters is escaped in some format.
KEY = 'sk-fz/47"11\\x&=%2F'

_SPECIAL_TEXTS = (
    "",
    " ",
    "None",
    "null",
    "a fox \ud83d",
    "\udc00",
    "\x00",
    "a\x00b",
    "\x1b[31mred\x1b[0m\r\n2026-01-01 ERROR forged",
    "\u202egnp.exe",
    "{{ conn.x.password }}",
    "../../etc/passwd",
    "<script>alert(1)</script>",
    "https://user:pw@cdn.example/1.png?X-Amz-Signature=abc",
    "http://[::1",
    "http://bücher.example/ä.png",
    "file:///etc/passwd",
    "1" * 5000,
    KEY,
    f"Bearer {KEY}",
)
_SPECIAL_NUMBERS = (
    0,
    -1,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**31,
    10**400,
    1e30,
    1e308,
    5e-324,
    -0.0,
    float("nan"),
    float("inf"),
    float("-inf"),
)


def texts() -> st.SearchStrategy[str]:
    """Return texts of any characters, including lone surrogates, and a few very long texts."""
    return _TEXTS


_ANY_TEXT = st.text(st.characters(), max_size=20)
_SPECIAL = st.sampled_from(_SPECIAL_TEXTS)
_WITH_KEY = _ANY_TEXT.map(lambda text: f"{text}{KEY}{text}")
_LONG = st.builds(lambda part, times: (part or "x") * times, _ANY_TEXT, st.sampled_from((100, 3000)))
_UNSTORABLE = st.sampled_from(("a fox \ud83d", "\udc00", "\x00", "a\x00b", "\x1b[31mred"))
# Long texts are rare, because one costs as much time as a thousand others.
_TEXTS = st.integers(0, 29).flatmap(
    lambda n: (
        _LONG if n == 29 else _WITH_KEY if n > 25 else _UNSTORABLE if n > 20 else _SPECIAL if n > 10 else _ANY_TEXT
    )
)


def numbers() -> st.SearchStrategy[float]:
    """Return numbers that JSON can represent, including some that cannot be stored."""
    return st.one_of(st.sampled_from(_SPECIAL_NUMBERS), st.integers(), st.floats())


def json_values() -> st.SearchStrategy[Any]:
    """Return any value that a JSON parser may return."""
    return _VALUES


def _nested(value: Any, depth: int) -> Any:
    for _ in range(depth):
        value = [value]
    return value


_LEAVES = st.one_of(st.none(), st.booleans(), numbers(), texts())


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(texts(), inner, max_size=3),
        # Deeper than any real document, but below Python's recursion limit.
        st.builds(_nested, inner, st.sampled_from((1, 30, 200))),
        st.builds(lambda value, times: [value] * times, _LEAVES, st.sampled_from((2, 300))),
    )


# Not st.recursive, which is slow.
_FLAT = _containers(_LEAVES)
_VALUES = st.one_of(_LEAVES, _LEAVES, _LEAVES, _FLAT, _containers(st.one_of(_LEAVES, _FLAT)))


@st.composite
def mutated(draw: st.DrawFn, valid: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with some of its fields replaced, removed or added, at any depth."""
    value = dict(valid)
    for name in draw(st.lists(st.sampled_from(sorted(valid)), max_size=3, unique=True)):
        match draw(st.integers(0, 7)):
            case 0:
                value.pop(name)
            case 1 | 2:
                value[name] = draw(_VALUES)
            case _:
                value[name] = draw(_like(value[name]))
    if draw(st.integers(0, 3)) == 0:
        value |= draw(st.dictionaries(_TEXTS, _VALUES, max_size=2))
    return value


def _like(value: Any) -> st.SearchStrategy[Any]:
    """Return values of the same type, which pass the first checks."""
    if isinstance(value, dict):
        return mutated(value) if value else _VALUES
    if isinstance(value, list):
        return st.lists(_like(value[0]) if value else _TEXTS, max_size=4)
    if isinstance(value, bool):
        return _VALUES
    return numbers() if isinstance(value, int | float) else _TEXTS


def spellings(text: str) -> tuple[str, ...]:
    """Return the text and its encodings in JSON, URLs and HTML."""
    from html import escape
    from urllib.parse import quote

    escaped = json.dumps(text)[1:-1]
    return (
        text,
        escaped,
        escaped.replace("/", "\\/"),
        "".join(f"\\u{ord(character):04x}" for character in text),
        "".join(f"\\u{ord(character):04X}" for character in text),
        quote(text, safe=""),
        quote(text),
        escape(text),
    )


@st.composite
def json_bytes(draw: st.DrawFn, values: st.SearchStrategy[Any]) -> bytes:
    """Return values as JSON bytes: with other escapes, in other encodings, cut short, or with other bytes around it.

    If a value contains the key, the key is written with one of JSON's escapes.
    """
    value = draw(values)
    text = json.dumps(value, ensure_ascii=draw(st.booleans()))
    plain = json.dumps(KEY)[1:-1]
    json_spellings = spellings(KEY)[1:5]
    text = text.replace(plain, draw(st.sampled_from(json_spellings)))
    body = text.encode(draw(st.sampled_from(("utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"))), "surrogatepass")
    match draw(st.integers(0, 9)):
        case 0:
            body = body[: draw(st.integers(0, len(body)))]
        case 1:
            body = draw(st.binary(max_size=5)) + body
        case 2:
            body += draw(st.sampled_from((b"\n", b"\0", b" " * 100, b"}", b"\xff")))
        case _:
            pass
    return body

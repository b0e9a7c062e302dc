"""Expands a prompt with alternatives: ``a {red|blue} {fox|cat}`` is four prompts. No I/O.

A backslash before ``{``, ``|``, ``}`` or a backslash makes it an ordinary character. Jinja is kept as it is, and so
are braces without ``|``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from airflow_provider_qwenimage.text.messages import shown

# Counting ends here: a text of a few kilobytes may have more alternatives than there are atoms.
MOST_COUNTED = 10**12
_MOST_CHARACTERS = 100_000
_MOST_NESTED = 20
_ESCAPED = frozenset("{|}\\")
_JINJA_ENDS = {"{{": "}}", "{%": "%}", "{#": "#}"}
# What an expression or a statement may contain besides its end: a string, with or without its end, and brackets.
_JINJA_TOKEN = re.compile(
    r"""(?P<quote>['"])(?P<rest>(?:\\.|(?!(?P=quote))[^\\])*+(?P=quote))?|[{}()\[\]%]""", re.DOTALL
)
_OPENING, _CLOSING = frozenset("{(["), frozenset("})]")


@dataclass(frozen=True)
class _Group:
    """Alternatives, each of them a sequence of texts and groups."""

    alternatives: Sequence[list[str | _Group]]

    def count(self) -> int:
        return min(sum(map(_count, self.alternatives)), MOST_COUNTED)

    def texts(self) -> Iterator[str]:
        return (expansion.text for parts in self.alternatives for expansion in _expand(parts))


_Parts: TypeAlias = list[str | _Group]


@dataclass(frozen=True)
class Expansion:
    """One prompt of a pattern.

    Attributes:
        chosen: The alternatives in it, of the groups that are not inside of others.
    """

    text: str
    chosen: tuple[str, ...]


class PromptPattern:
    """A prompt with alternatives.

    Args:
        text: The pattern.

    Attributes:
        count: How many prompts it is, counted up to `MOST_COUNTED`.

    Raises:
        ValueError: If a group or an expression of Jinja is not closed, or it is too long or too deeply nested.
    """

    def __init__(self, text: str) -> None:
        if len(text) > _MOST_CHARACTERS:
            raise _refused(text, f"is a pattern of more than {_MOST_CHARACTERS} characters", "a shorter one")
        self._parts = _parse(text)
        self.count = _count(self._parts)

    def __iter__(self) -> Iterator[Expansion]:
        """Yield the prompts: those of the first group change slowest."""
        return _expand(self._parts)


def _parse(text: str) -> _Parts:
    # Of each group that is open: its position, what is before it, and its alternatives so far.
    open_groups: list[tuple[int, _Parts, list[_Parts]]] = []
    parts: _Parts = []
    position = 0
    while position < len(text):
        character, two = text[position], text[position : position + 2]
        end = position + 1
        if character == "\\" and text[position + 1 : position + 2] in _ESCAPED:
            parts.append(two[1])
            end = position + 2
        elif two in _JINJA_ENDS:
            end = _end_of_jinja(text, position)
            parts.append(text[position:end])
        elif character == "{":
            if len(open_groups) == _MOST_NESTED:
                raise _refused(text, f"has groups in groups more than {_MOST_NESTED} deep", "less deeply nested")
            open_groups.append((position, parts, []))
            parts = []
        elif character == "|" and open_groups:
            open_groups[-1][2].append(parts)
            parts = []
        elif character == "}" and open_groups:
            _, before, alternatives = open_groups.pop()
            before += [_Group([*alternatives, parts])] if alternatives else ["{", *parts, "}"]
            parts = before
        else:
            parts.append(character)
        position = end
    if open_groups:
        problem = f"has a brace that is not closed, at character {open_groups[-1][0] + 1}"
        raise _refused(text, problem, "a pattern with a } for each {, such as 'a {red|blue} fox'; \\{ is a plain brace")
    return parts


def _end_of_jinja(text: str, start: int) -> int:
    """Return the position after the expression, statement or comment that begins at a position, as Jinja finds it."""
    begin = text[start : start + 2]
    end = _JINJA_ENDS[begin]
    found = text.find(end, start + 2) if begin == "{#" else _find_outside_of_brackets(text, start + 2, end)
    if found < 0:
        raise _refused(
            text,
            f"has {begin} at character {start + 1}, which begins Jinja, and no {end} after it",
            "a pattern in which Jinja is closed; a group that begins with a group needs another alternative first",
        )
    return found + len(end)


def _find_outside_of_brackets(text: str, start: int, end: str) -> int:
    """Return the position of the end of an expression, which strings and dicts in it may contain as well; or -1."""
    depth, position = 0, start
    while token := _JINJA_TOKEN.search(text, position):
        if depth == 0 and text.startswith(end, token.start()):
            return token.start()
        if token["quote"] and token["rest"] is None:
            return -1
        depth += token[0] in _OPENING
        depth -= token[0] in _CLOSING and depth > 0
        position = token.end()
    return -1


def _refused(text: str, problem: str, allowed: str) -> ValueError:
    return ValueError(f"prompt is {shown(text)}, which {problem}; it must be {allowed}.")


def _count(parts: _Parts) -> int:
    count = 1
    for part in parts:
        if isinstance(part, _Group):
            count = min(count * part.count(), MOST_COUNTED)
    return count


def _expand(parts: _Parts) -> Iterator[Expansion]:
    groups = [part for part in parts if isinstance(part, _Group)]
    # The texts before, between and after the groups.
    between: list[list[str]] = [[]]
    for part in parts:
        if isinstance(part, _Group):
            between.append([])
        else:
            between[-1].append(part)
    texts = ["".join(each) for each in between]
    for chosen in itertools.product(*(list(group.texts()) for group in groups)):
        joined = itertools.chain.from_iterable(itertools.zip_longest(texts, chosen, fillvalue=""))
        yield Expansion("".join(joined), chosen)

"""What a person may choose among candidates, how an answer is read, and what is recorded of it. No I/O.

`QwenImageChooseOperator` asks through Airflow's human in the loop, whose request has a list of options and a form:

- The options are the first numbers of the candidates: ``"1"``, ``"2"``, … up to `MOST_OPTIONS`. The form has one
  optional text, `NUMBERS`. If it is not blank, it is the whole answer, whatever options are chosen: numbers with commas
  or spaces between them, such as ``"3, 70"``. So candidates beyond the options can be chosen, also those that are new
  after a Clear, when Airflow below 3.4 keeps the options of the first request.
- Airflow's route ``…/hitlDetails`` refuses an answer without options and one with options that it does not know. So a
  page sends the chosen numbers as options if it can, and otherwise as `NUMBERS`, with any one option.
- If an answer does not fit, the task asks again, and the XCom `QUESTION` says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from airflow_provider_qwenimage.contract import TaskStatus
from airflow_provider_qwenimage.text.messages import printable, shorten, shown
from airflow_provider_qwenimage.text.storable import storable_text

# The keys of the XComs of a task that chooses: what can be chosen, how it asks, and what was chosen.
CANDIDATES = "candidates"
QUESTION = "question"
VERDICT = "verdict"
# The field of a sidecar that lists the verdicts about its image.
VERDICTS = "verdicts"
# The name of the text in the form of the request.
NUMBERS = "numbers"

MOST_CANDIDATES = 1_000
# Airflow's page shows each option, and the body a picture for each.
MOST_OPTIONS = 50
# The newest verdicts that a sidecar keeps: one for each task instance that chose.
MOST_VERDICTS = 20
MOST_PROMPT_CHARACTERS = 200

# Chinese and Japanese keyboards write digits, commas and spaces of their own.
_FULL_WIDTH = str.maketrans(
    {0xFF10 + digit: str(digit) for digit in range(10)} | dict.fromkeys((0xFF0C, 0xFF1B, 0x3001, 0x3000), ",")
)
_NUMBER = re.compile(r"[0-9]{1,9}", re.ASCII)
# Longer than the numbers of all candidates.
_MOST_ANSWER_CHARACTERS = 10_000
_MOST_NAMED = 10
_MOST_REASON_CHARACTERS = 100


class UnfitAnswerError(ValueError):
    """An answer that cannot be used; its message tells the person who answered what to do."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A stored image that can be chosen, as the XCom `CANDIDATES` lists it.

    Attributes:
        task_id: The API's id of the image task.
        path: The path or URL of the image.
        prompt: Its beginning, at most `MOST_PROMPT_CHARACTERS`.
        seed: -1 for a random one. Like the size and the format, None if the sidecar does not have it.
        label: What the user calls the image, or None.
        image_url: The address of the image at the API.
        consumed_credits: What the task that returned it paid for its image task, or None if that is not known.
        reused: Whether that task found it stored.
    """

    task_id: str
    path: str
    prompt: str | None = None
    seed: int | None = None
    size: str | None = None
    output_format: str | None = None
    label: str | None = None
    image_url: str | None = None
    consumed_credits: float | None = None
    reused: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Candidate | None:
        """Read the result of `to_json`; None for anything else. Unknown fields are ignored."""
        if not isinstance(value, Mapping):
            return None
        known = {field.name: value[field.name] for field in fields(cls) if field.name in value}
        if not isinstance(known.get("task_id"), str) or not isinstance(known.get("path"), str):
            return None
        return cls(**known)

    def to_result(self) -> dict[str, Any]:
        """Return it as `QwenImageGenerateOperator` returns an image."""
        return {
            "task_id": self.task_id,
            "status": str(TaskStatus.SUCCESS),
            "image_urls": [] if self.image_url is None else [self.image_url],
            "paths": [self.path],
            "consumed_credits": self.consumed_credits,
            "seed": self.seed,
            "size": self.size,
            "output_format": self.output_format,
            "reused": self.reused,
        }


@dataclass(frozen=True, kw_only=True)
class Question:
    """How a task asks, as its XCom `QUESTION` says.

    Attributes:
        at_least: How many candidates have to be chosen, from 1 upwards.
        at_most: How many may be, or None for any number.
        deadline: When `response_timeout` ends, in epoch seconds; None if the task waits for an answer for ever.
        problem: Why the last answer was not taken, as a sentence for whoever answers next; None if there was none.
    """

    at_least: int
    at_most: int | None
    deadline: float | None = None
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON."""
        return asdict(self)

    def check(self, numbers: Sequence[int], count: int) -> None:
        """Check that an answer fits.

        Args:
            numbers: The chosen candidates, counted from 1, without duplicates.
            count: How many candidates there are.

        Raises:
            UnfitAnswerError: If it does not fit.
        """
        unknown = [number for number in numbers if not 1 <= number <= count]
        if unknown:
            named = ", ".join(map(str, unknown[:_MOST_NAMED]))
            more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
            raise UnfitAnswerError(f"There is no candidate {named}{more}; {_allowed_numbers(count)}.")
        if not self.at_least <= len(numbers) <= (count if self.at_most is None else self.at_most):
            raise UnfitAnswerError(f"{_counted(len(numbers))} chosen; choose {self.how_many}.")

    @property
    def how_many(self) -> str:
        """How many candidates to choose, in words."""
        return how_many(self.at_least, self.at_most)


def how_many(at_least: int, at_most: int | None) -> str:
    """Return how many candidates to choose, in words.

    Args:
        at_least: See `Question`.
        at_most: See `Question`.
    """
    if at_most is None:
        return f"at least {at_least}"
    return str(at_least) if at_least == at_most else f"{at_least} to {at_most}"


def _allowed_numbers(count: int) -> str:
    return "there is only candidate 1" if count == 1 else f"the candidates have the numbers 1 to {count}"


def _counted(count: int) -> str:
    return "1 candidate was" if count == 1 else f"{count} candidates were"


def options_of(count: int) -> list[str]:
    """Return the options of the request for so many candidates."""
    return [str(number) for number in range(1, min(count, MOST_OPTIONS) + 1)]


def read_answer(chosen_options: object, params_input: object) -> list[int]:
    """Return the numbers of an answer, ascending and without duplicates.

    Args:
        chosen_options: The chosen options.
        params_input: The filled-in form, or None.

    Raises:
        UnfitAnswerError: If it has something other than numbers.
    """
    written = params_input.get(NUMBERS) if isinstance(params_input, Mapping) else None
    if written is not None and (not isinstance(written, str) or written.strip()):
        return _numbers_of(written)
    return _numbers_of(chosen_options)


def unreadable_form(error: object) -> UnfitAnswerError:
    """Return the error for an answer whose form Airflow refused, which it does with many lines about its schema."""
    reason = shorten(printable(str(error)), _MOST_REASON_CHARACTERS)
    return UnfitAnswerError(f"The form could not be read ({reason}); write numbers as a text, such as 3, 7.")


def _numbers_of(value: object) -> list[int]:
    if isinstance(value, str):
        if len(value) > _MOST_ANSWER_CHARACTERS:
            raise UnfitAnswerError(f"The answer has {len(value)} characters; write the numbers of candidates.")
        parts: Iterable[Any] = re.split(r"[\s,;]+", value.translate(_FULL_WIDTH).strip(" \t\r\n,;"))
    elif isinstance(value, list | tuple):
        if len(value) > _MOST_ANSWER_CHARACTERS:
            raise UnfitAnswerError(f"The answer has {len(value)} entries; choose among the candidates.")
        parts = value
    else:
        parts = [value]
    return sorted({_number_of(part) for part in parts})


def _number_of(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return int(value)
    raise UnfitAnswerError(f"{shown(value)} is not the number of a candidate; write numbers such as 3, 7.")


def read_defaults(value: object) -> list[int] | None:
    """Return the argument `defaults` as numbers, ascending; None for none.

    Raises:
        ValueError: If it is not a number from 1 upwards, its text, or a list of them.
    """
    if value is None:
        return None
    try:
        numbers = _numbers_of(value)
    except UnfitAnswerError:
        numbers = []
    if not numbers or numbers[0] < 1 or numbers[-1] > MOST_CANDIDATES:
        raise ValueError(
            f"defaults is {shown(value)}; it must be the number of a candidate (from 1), a list of them, or None."
        )
    return numbers


def new_verdict(numbers: Sequence[int], *, by: Mapping[str, str] | None, at: str, timed_out: bool) -> dict[str, Any]:
    """Return the XCom `VERDICT`.

    Args:
        numbers: The chosen candidates, counted from 1.
        by: The id and the name of the user who chose, or None if the defaults were taken.
        at: When, in ISO 8601.
        timed_out: Whether the defaults were taken because nobody answered in time.
    """
    return {"chosen": list(numbers), "by": None if by is None else dict(by), "at": at, "timed_out": timed_out}


def entry_of(verdict: Mapping[str, Any], number: int, task: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the sidecar of a candidate records of a verdict.

    Args:
        verdict: The XCom `VERDICT`.
        number: The number of the candidate.
        task: The task instance that chose.
    """
    return {
        "chosen": number in verdict["chosen"],
        "by": verdict["by"],
        "at": verdict["at"],
        "timed_out": verdict["timed_out"],
        "task": dict(task),
    }


def with_entry(entries: object, entry: Mapping[str, Any]) -> list[Any]:
    """Return the verdicts of a sidecar with one more, which replaces an earlier one of the same task instance.

    Args:
        entries: The verdicts that it has. Anybody may have edited them.
        entry: The result of `entry_of`.

    Returns:
        The newest `MOST_VERDICTS`, the newest last.
    """
    others = [
        each
        for each in (entries if isinstance(entries, list) else ())
        if isinstance(each, Mapping) and each.get("task") != entry["task"]
    ]
    return [*others, dict(entry)][-MOST_VERDICTS:]


def user_of(value: object) -> dict[str, str] | None:
    """Return the id and the name of a user of Airflow, as texts that can be stored anywhere; None for none."""
    if isinstance(value, Mapping):
        found = {name: value.get(name) for name in ("id", "name")}
    else:
        found = {name: getattr(value, name, None) for name in ("id", "name")}
    if all(each is None for each in found.values()):
        return None
    return {name: storable_text(shorten(str("" if each is None else each))) for name, each in found.items()}


def digest_text(candidates: Sequence[Candidate]) -> str:
    """Return a text that is the same for the same candidates in the same order."""
    return json.dumps([[each.task_id, each.path] for each in candidates])

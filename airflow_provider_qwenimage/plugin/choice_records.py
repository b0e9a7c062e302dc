"""Decides what the gallery shows of a task in which a person chooses among images, from its XComs. No I/O.

Anybody who can write an XCom may have written these values; see `bounds`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from airflow_provider_qwenimage.plugin.bounds import (
    MOST_NAME,
    label_of,
    mapping,
    path,
    request_fields,
    sequence,
    text,
    whole,
)
from airflow_provider_qwenimage.plugin.image_records import (
    ChoiceRecord,
    ImageRecord,
    Mark,
    Outcome,
    Records,
    Status,
    TaskInstance,
    UnreadableXCom,
    Verdict,
)
from airflow_provider_qwenimage.rules.choices import CANDIDATES, MOST_CANDIDATES, QUESTION, VERDICT

# The year 9999.
_MOST_SECONDS = 253_370_764_800
_RANKS = {outcome: rank for rank, outcome in enumerate(Outcome)}


def records_of_choice(task: TaskInstance, xcoms: Mapping[str, Any]) -> Records:
    """Return a choice and its candidates.

    Args:
        task: The choosing task instance.
        xcoms: What it pushed, by key.
    """
    offered = sequence(xcoms.get(CANDIDATES), MOST_CANDIDATES)
    question = mapping(xcoms.get(QUESTION))
    pushed = mapping(xcoms.get(VERDICT))
    # The values of an earlier try are there until the next one starts.
    has_ended = task.state == "success" and bool(pushed)
    chosen = _numbers(pushed.get("chosen"), len(offered)) if has_ended else set()
    candidates = [
        _candidate(task, number, fields, _outcome(number, chosen, has_ended=has_ended))
        for number, fields in enumerate(map(mapping, offered), start=1)
    ]
    at_least = _count(question.get("at_least"), 1)
    choice = ChoiceRecord(
        task=task,
        candidates=candidates,
        note=text(question.get("problem")),
        at_least=at_least,
        at_most=max(at_least, _count(question.get("at_most"), max(1, len(candidates)))),
        deadline=_seconds(question.get("deadline")),
        verdict=_verdict(pushed, len(chosen)) if has_ended else None,
        problem=_problem_of(xcoms.get(CANDIDATES)),
    )
    return Records(choices=[choice])


def _candidate(task: TaskInstance, number: int, fields: Mapping[str, Any], outcome: Outcome) -> ImageRecord:
    return ImageRecord(
        task=task,
        number=number,
        status=Status.DONE,
        state="success",
        request=request_fields(fields),
        label=label_of(fields),
        image_task_id=text(fields.get("task_id"), MOST_NAME),
        path=path(fields.get("path")),
        # The task that drew it has the credits.
        consumed_credits=None,
        # It may be an image of another DAG, which only users who may read that DAG see.
        reused=True,
        mark=Mark(outcome, number, task),
    )


def _problem_of(value: object) -> str | None:
    if isinstance(value, str):
        return "The candidates of this task are not in Airflow's database, so the gallery cannot list them."
    return value.reason if isinstance(value, UnreadableXCom) else None


def _outcome(number: int, chosen: Collection[int], *, has_ended: bool) -> Outcome:
    if not has_ended:
        return Outcome.OFFERED
    return Outcome.CHOSEN if number in chosen else Outcome.NOT_CHOSEN


def _verdict(pushed: Mapping[str, Any], chosen: int) -> Verdict:
    by = mapping(pushed.get("by"))
    return Verdict(
        chosen=chosen,
        by=text(by.get("name"), MOST_NAME) or text(by.get("id"), MOST_NAME),
        at=text(pushed.get("at"), MOST_NAME),
        timed_out=pushed.get("timed_out") is True,
    )


def _numbers(value: object, most: int) -> set[int]:
    known = (whole(number) for number in sequence(value, MOST_CANDIDATES))
    return {number for number in known if number is not None and 1 <= number <= most}


def _count(value: object, otherwise: int) -> int:
    known = whole(value)
    return otherwise if known is None or not 1 <= known <= MOST_CANDIDATES else known


def _seconds(value: object) -> float | None:
    """Return epoch seconds that a browser can show as a date, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _MOST_SECONDS:
        return None
    return float(value)


def marked(images: Sequence[ImageRecord], choices: Collection[ChoiceRecord]) -> Sequence[ImageRecord]:
    """Return the images of a run, those that a task of the run offers with a mark.

    If several tasks offer an image, the mark is the most important one: chosen, then still offered.
    """
    marks: dict[tuple[str | None, str | None], Mark] = {}
    for choice in choices:
        for candidate in choice.candidates:
            key, mark = (candidate.path, candidate.image_task_id), candidate.mark
            known = marks.get(key)
            if mark is not None and (known is None or _RANKS[mark.outcome] > _RANKS[known.outcome]):
                marks[key] = mark
    if not marks:
        return images
    found = (marks.get((image.path, image.image_task_id)) if image.path is not None else None for image in images)
    return [image if mark is None else replace(image, mark=mark) for image, mark in zip(images, found, strict=True)]

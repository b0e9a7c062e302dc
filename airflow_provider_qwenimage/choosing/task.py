"""The Airflow task that has a person choose: finds the candidates, asks, and takes the answer or asks again."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

import pendulum

from airflow_provider_qwenimage.choosing.candidates import find_candidates
from airflow_provider_qwenimage.choosing.request import body_of
from airflow_provider_qwenimage.choosing.verdicts import record_verdict
from airflow_provider_qwenimage.links import PendingLinks
from airflow_provider_qwenimage.rules.choices import (
    CANDIDATES,
    MOST_CANDIDATES,
    QUESTION,
    VERDICT,
    Candidate,
    Question,
    UnfitAnswerError,
    digest_text,
    new_verdict,
    read_answer,
    unreadable_form,
    user_of,
)
from airflow_provider_qwenimage.rules.made_by import description_of, instance_of, iteration_of, writer_of
from airflow_provider_qwenimage.rules.numbers import number_or_nan
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.tasks.failures import logging_errors, reporting_failures
from airflow_provider_qwenimage.tasks.opening import try_of
from airflow_provider_qwenimage.tasks.stores import TaskStateStore

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

    from airflow_provider_qwenimage.choosing.operator import QwenImageChooseOperator

# Airflow refuses a time limit of nothing.
_SHORTEST_WAIT_SECONDS = 1.0
# The name of what the task state keeps of the answer.
_ANSWERED = "answered"


class Choosing:
    """The task, in one of its processes. Call `run` or `resume`.

    Args:
        operator: The operator, with its templates rendered.
        context: The task's context.

    Attributes:
        facts: What is known of the chosen images; for lineage.
        folders: The folders of the candidates; for lineage.
    """

    def __init__(self, operator: QwenImageChooseOperator, context: Context) -> None:
        self._operator = operator
        self._context = context
        self._ti: Any = context["ti"]
        self._log = operator.log
        self.facts: dict[str, Any] = {}
        self.folders: list[str] = []

    def run(self) -> list[dict[str, Any]]:
        """Find the candidates and ask.

        Returns:
            The chosen images, if an earlier try has the answer, or nobody can be asked.
        """
        operator = self._operator
        with reporting_failures(self._ti):
            operator.check_rendered()
            candidates = find_candidates(operator.images)
            question = operator.question
            self._check(question, len(candidates))
            PendingLinks(operator).store_gallery(self._ti)
            self._push(CANDIDATES, [candidate.to_json() for candidate in candidates])
            if operator.default_numbers is not None and _is_dag_test():
                self._log.warning("Nobody can answer in dag.test(), so the defaults are chosen at once.")
                return self._conclude(candidates, operator.default_numbers, {"timedout": True})
            verdict = self._verdict_of_an_earlier_try(candidates)
            if verdict is not None:
                self._log.info("An earlier try of this task was answered, and did not end; its answer is taken.")
                return self._return(candidates, verdict)
            timeout = operator.response_timeout
            deadline = None if timeout is None else time.time() + timeout.total_seconds()
            return self._ask(candidates, replace(question, deadline=deadline))

    def resume(self, event: Any) -> list[dict[str, Any]]:
        """Take the answer, or ask again.

        Args:
            event: What Airflow has of the answer.

        Returns:
            The chosen images.
        """
        with reporting_failures(self._ti):
            shown = self._shown()
            if shown is None:
                self._log.warning("The XCom %r of this task is gone, so it asks again.", CANDIDATES)
                return self.run()
            return self._take(*shown, event)

    def _check(self, question: Question, count: int) -> None:
        if count < question.at_least:
            raise ValueError(
                f"at_least is {question.at_least}; it must be at most the number of stored images, {count}."
            )
        if self._operator.default_numbers is not None:
            try:
                question.check(self._operator.default_numbers, count)
            except UnfitAnswerError as error:
                raise ValueError(
                    f"defaults is {self._operator.default_numbers}; it must be the numbers of candidates: {error}"
                ) from error

    def _ask(self, candidates: Sequence[Candidate], question: Question) -> NoReturn:
        self._push(QUESTION, question.to_json())
        seconds = None
        if question.deadline is not None:
            seconds = max(question.deadline - time.time(), _SHORTEST_WAIT_SECONDS)
        body = body_of(self._ti, len(candidates))
        self._operator.ask(self._context, question, len(candidates), body, seconds)

    def _take(self, candidates: Sequence[Candidate], question: Question, event: Any) -> list[dict[str, Any]]:
        answer: Mapping[str, Any] = event if isinstance(event, Mapping) else {}
        if answer.get("timedout") or answer.get("error_type") == "timeout":
            return self._take_defaults(candidates, answer)
        try:
            if "error" in answer and answer.get("error_type") != "validation":
                self._operator.process_trigger_event_error(dict(answer))
            numbers = _read(answer, question, len(candidates))
        except UnfitAnswerError as error:
            if question.deadline is not None and question.deadline <= time.time():
                return self._take_defaults(candidates, answer)
            self._log.warning("The answer does not fit, so the task asks again: %s", error)
            return self._ask(candidates, replace(question, problem=str(error)))
        return self._conclude(candidates, numbers, answer)

    def _take_defaults(self, candidates: Sequence[Candidate], answer: Mapping[str, Any]) -> list[dict[str, Any]]:
        # Airflow keeps the defaults of the first request of a task instance; these are today's.
        numbers = self._operator.default_numbers
        if numbers is None:
            message = "Nobody answered within response_timeout, and the task has no defaults. Clear it to ask again."
            self._operator.process_trigger_event_error({"error": message, "error_type": "timeout"})
        self._check(self._operator.question, len(candidates))
        return self._conclude(candidates, numbers, {"responded_at": answer.get("responded_at"), "timedout": True})

    def _conclude(
        self, candidates: Sequence[Candidate], numbers: Sequence[int], answer: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        verdict = new_verdict(
            numbers,
            by=user_of(answer.get("responded_by_user")),
            at=_time_of(answer.get("responded_at")),
            timed_out=bool(answer.get("timedout")),
        )
        with logging_errors("the answer for a retry"):
            self._remember(candidates, verdict)
        return self._return(candidates, verdict)

    def _return(self, candidates: Sequence[Candidate], verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
        task: dict[str, Any] = dict(instance_of(self._ti)._asdict())
        iteration = iteration_of(self._ti)
        if iteration is not None:
            task["iteration"] = iteration
        record_verdict(candidates, verdict, task, writer_of(description_of(self._ti)))
        self._push(VERDICT, verdict)
        chosen = [candidates[number - 1] for number in verdict["chosen"]]
        self.folders = list(dict.fromkeys(candidate.path.rpartition("/")[0] for candidate in candidates))
        self.facts = {"task_ids": [candidate.task_id for candidate in chosen], "images": len(chosen)}
        return [candidate.to_result() for candidate in chosen]

    def _shown(self) -> tuple[list[Candidate], Question] | None:
        """Return the candidates that were shown and how they were asked for, or None if that is not known."""
        listed = self._pushed(CANDIDATES)
        if not isinstance(listed, list) or not 0 < len(listed) <= MOST_CANDIDATES:
            return None
        candidates = [Candidate.from_json(each) for each in listed]
        found = [candidate for candidate in candidates if candidate is not None]
        if len(found) != len(candidates):
            return None
        asked = self._pushed(QUESTION)
        deadline = number_or_nan(asked.get("deadline") if isinstance(asked, Mapping) else None)
        return found, replace(self._operator.question, deadline=deadline if math.isfinite(deadline) else None)

    def _remember(self, candidates: Sequence[Candidate], verdict: Mapping[str, Any]) -> None:
        store = self._store()
        if store is not None:
            fact = {"candidates": _digest(candidates), "try": try_of(self._context).to_json(), "verdict": dict(verdict)}
            store.write(_ANSWERED, fact, is_last=True)

    def _verdict_of_an_earlier_try(self, candidates: Sequence[Candidate]) -> Mapping[str, Any] | None:
        """Return the verdict of a try that was killed before it could return it, about the same candidates."""
        store = self._store()
        fact = None if store is None else store.read(_ANSWERED)
        if not isinstance(fact, Mapping):
            return None
        earlier, this = Try.from_json(fact.get("try")), try_of(self._context)
        is_retry = (
            earlier is not None
            and earlier.number < this.number
            and not this.was_cleared_since(earlier, ended_for_good=True)
        )
        verdict = fact.get("verdict")
        is_known = is_retry and fact.get("candidates") == _digest(candidates) and isinstance(verdict, Mapping)
        return verdict if is_known else None

    def _store(self) -> TaskStateStore | None:
        accessor = self._context.get("task_state_store")
        return None if accessor is None else TaskStateStore(accessor)

    def _push(self, key: str, value: Any) -> None:
        self._ti.xcom_push(key=key, value=value)

    def _pushed(self, key: str) -> Any:
        return self._ti.xcom_pull(task_ids=self._ti.task_id, key=key, map_indexes=self._ti.map_index)


def _read(answer: Mapping[str, Any], question: Question, count: int) -> list[int]:
    """Return the numbers of an answer that fits."""
    if "error" in answer:
        raise unreadable_form(answer["error"])
    numbers = read_answer(answer.get("chosen_options"), answer.get("params_input"))
    question.check(numbers, count)
    return numbers


def _digest(candidates: Sequence[Candidate]) -> str:
    return hashlib.sha256(digest_text(candidates).encode()).hexdigest()


def _time_of(value: object) -> str:
    if isinstance(value, str):
        return value
    return (value if isinstance(value, datetime) else pendulum.now("UTC")).isoformat()


def _is_dag_test() -> bool:
    """Whether this process runs the DAG with `dag.test()`: its supervisor is in the same process then."""
    from airflow.sdk.execution_time import task_runner

    return type(getattr(task_runner, "SUPERVISOR_COMMS", None)).__name__ == "InProcessSupervisorComms"

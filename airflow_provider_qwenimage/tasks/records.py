"""Keeps the submissions of one image in one store: each fact under a name of its own, so that none replaces another."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.rules.submission_facts import (
    End,
    Fact,
    Intent,
    Submission,
    read_earlier_version,
    read_id,
    read_note,
)
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.tasks.stores import FolderStore, Store

_PART_CHARACTERS = 12


class Records:
    """The submissions of one image in Airflow's task state, where nothing is removed.

    Args:
        store: Where the facts are.
        prefix: What their names begin with.
        instance: The description of the Airflow task that reads and writes; see `made_by.description_of`.
        earlier_name: The name of the record that an earlier version of this package wrote, or None for none.

    Attributes:
        history: The submissions, once they are read; the last one is the last in time.
    """

    def __init__(
        self, store: Store, prefix: str, instance: Mapping[str, Any], *, earlier_name: str | None = None
    ) -> None:
        self._store = store
        self._prefix = prefix
        self._instance = instance
        self._writer = writer_of(instance)
        self._earlier_name = earlier_name
        self.history: list[Submission] = []

    def read(self, made_in: Try) -> None:
        """Read the submissions into `history`, as far as a decision in a try needs them."""
        self.history = []
        for number in count(1):
            written = self._store.read(self._intent_name(number))
            if written is None:
                break
            self.history.append(self._complete(Submission(number=number, intent=Intent.from_json(written)), made_in))
            # The next one is only submitted after the end of this one.
            if self.history[-1].end is None:
                break
        # The first try of a task has a record of an earlier version only if it was deferred by that version.
        if self._earlier_name is not None and (made_in.number > 1 or not self.history):
            earlier = read_earlier_version(self._store.read(self._earlier_name))
            if earlier is not None:
                earlier = replace(earlier, intent=replace(earlier.intent, by=self._instance))
                self.history.insert(0, self._complete(earlier, made_in))

    def find(self, submission_id: str) -> Submission | None:
        """Return the submission with an id, if it is recorded here."""
        return next((one for one in self.history if one.intent.submission_id == submission_id), None)

    def add(self, intent: Intent) -> bool:
        """Record the intent of the next submission; False if another task has recorded one in between."""
        submission = Submission(number=self.history[-1].number + 1 if self.history else 1, intent=intent)
        # Before it is written: an interrupted write may have landed.
        self.history.append(submission)
        if self._store.create(self._intent_name(submission.number), intent.to_json()):
            return True
        self.history.pop()
        return False

    def follows(self, earlier: Submission | None) -> bool:
        """Whether the last submission still follows an earlier one: nobody has removed that in between.

        Args:
            earlier: The one before the last, as it was read, or None if there was none.
        """
        if earlier is None or earlier.number == 0:
            return True
        written = Intent.from_json(self._store.read(self._intent_name(earlier.number)))
        return written.submission_id == earlier.intent.submission_id

    def write_id(self, submission_id: str, image_task_id: str) -> None:
        """Record the API's id of the image task of a submission."""
        self._write(submission_id, Fact.ID, {"image_task_id": image_task_id})
        self._change(submission_id, image_task_id=image_task_id)

    def write_end(self, submission_id: str, end: End) -> None:
        """Record the end of a submission."""
        self._write(submission_id, Fact.END, end.to_json())
        self._change(submission_id, end=end)

    def write_note(self, submission_id: str, fact: Fact, made_in: Try) -> None:
        """Record that something became known in a try."""
        self._write(submission_id, fact, {"try": made_in.to_json()})

    def read_note(self, submission_id: str, fact: Fact) -> Try | None:
        """Return the try in which something became known, or None."""
        submission = self.find(submission_id)
        return None if submission is None else read_note(self._read_fact(submission, fact))

    def read_id(self, submission: Submission) -> str | None:
        """Return the API's id of the image task of a submission, if it is recorded here."""
        return read_id(self._read_fact(submission, Fact.ID))

    def withdraw(self, submission_id: str, end: End) -> None:
        """Record that a submission was not accepted."""
        self.write_end(submission_id, end)

    def settle(self, submission_id: str, end: End) -> None:
        """Record that nothing is left to do for a submission."""
        self._write(submission_id, Fact.END, end.to_json(), is_last=True)
        self._change(submission_id, end=end)

    def remove_leftovers(self, names: Iterable[str]) -> None:
        """Remove facts without an intent. There are none where nothing is removed."""

    def _intent_name(self, number: int) -> str:
        return f"{self._prefix}-{number}-{Fact.INTENT}"

    def _name(self, submission: Submission, fact: Fact) -> str:
        return f"{self._prefix}-{submission.number}-{fact}"

    def _read_fact(self, submission: Submission, fact: Fact) -> object:
        written = self._store.read(self._name(submission, fact))
        if not isinstance(written, Mapping) or written.get("submission") != submission.intent.submission_id:
            # A write that came late, of another submission.
            return None
        return written

    def _write(self, submission_id: str, fact: Fact, content: dict[str, Any], *, is_last: bool = False) -> None:
        submission = self.find(submission_id)
        if submission is not None:
            content = {"submission": submission_id, "writer": self._writer, **content}
            self._store.write(self._name(submission, fact), content, is_last=is_last)

    def _complete(self, submission: Submission, made_in: Try) -> Submission:
        """Read the other facts about a submission, as far as they matter."""
        written = self._read_fact(submission, Fact.END)
        end = End.from_json(written) or submission.end
        maker = writer_of(submission.intent.by)
        if end is not None and isinstance(written, Mapping) and written.get("writer") != maker:
            # The tries of another task tell nothing about a Clear of the one that pays.
            end = replace(end, made_in=submission.intent.made_in)
        if end is not None:
            known = submission.image_task_id or end.image_task_id
            return replace(submission, end=end, image_task_id=known or self.read_id(submission))
        task_id = submission.image_task_id or self.read_id(submission)
        submission = replace(submission, image_task_id=task_id)
        if task_id is None:
            reported = read_note(self._read_fact(submission, Fact.REPORTED)) or submission.reported
            return replace(submission, reported=reported)
        if self._writer == maker and made_in.number == submission.intent.made_in.number:
            return submission
        return replace(submission, missed=read_note(self._read_fact(submission, Fact.MISSED)) or submission.missed)

    def _change(self, submission_id: str, **facts: Any) -> None:
        self.history = [
            replace(one, **facts) if one.intent.submission_id == submission_id else one for one in self.history
        ]


class FolderRecords(Records):
    """The submissions of one image in hidden files of its folder, which are removed once the image is stored.

    Args:
        store: Where the facts are.
        prefix: What their names begin with.
        instance: See `Records`.
        writer: See `made_by.writer_of`.
        earlier_name: See `Records`.
        known: The names of the facts that the folder has, if they were listed: no others are read.
    """

    def __init__(
        self,
        store: FolderStore,
        prefix: str,
        instance: Mapping[str, Any],
        *,
        writer: str,
        earlier_name: str | None = None,
        known: Collection[str] | None = None,
    ) -> None:
        super().__init__(store, prefix, instance, earlier_name=earlier_name)
        self._folder_store = store
        self._writer = writer
        self._known = known
        self._was_empty = True

    def read(self, made_in: Try) -> None:
        """Read the submissions into `history`, as far as a decision in a try needs them."""
        names = [self._intent_name(1), *([self._earlier_name] if self._earlier_name else [])]
        if self._known is not None and not any(name in self._known for name in names):
            self.history = []
        else:
            super().read(made_in)
        self._was_empty = not self.history

    def withdraw(self, submission_id: str, end: End) -> None:
        """Remove a submission that was not accepted, or has failed, so that another task may submit."""
        submission = self.find(submission_id)
        if submission is None:
            return
        try:
            self._remove_intent(submission)
            if submission.image_task_id is not None:
                self._store.remove(self._name(submission, Fact.ID))
        except PermissionError:
            # Without the right to delete it stays, with its end: the next one gets the next number.
            self.write_end(submission_id, end)
        else:
            self.history.remove(submission)

    def settle(self, submission_id: str, end: End) -> None:
        """Remove every fact, because the image and its sidecar are stored."""
        try:
            self._remove_all()
        except PermissionError:
            super().settle(submission_id, end)

    def remove_leftovers(self, names: Iterable[str]) -> None:
        """Remove the facts about the image whose intent a killed process has removed.

        Args:
            names: The names of the facts, as they were listed.
        """
        for name in names:
            number, is_fact, _ = name.removeprefix(f"{self._prefix}-").partition("-")
            # The intent is stored before the other facts: if it is missing after they were listed, it was removed.
            if is_fact and self._store.read(f"{self._prefix}-{number}") is None:
                self._store.remove(name)

    def _remove_all(self) -> None:
        history = self.history
        # The intents first: what is left without them means nothing.
        for submission in history:
            self._remove_intent(submission)
        self.history = []
        if self._earlier_name is not None and any(submission.number == 0 for submission in history):
            self._store.remove(self._earlier_name)
        if self._was_empty and len(history) == 1:
            names = [self._name(history[0], Fact.ID)]
        else:
            # Earlier submissions and tries may have left any other fact.
            theirs = tuple(self._name(submission, Fact.ID).removesuffix(Fact.ID) for submission in history)
            names = [name for name in self._folder_store.names(f"{self._prefix}-") if name.startswith(theirs)]
        for name in names:
            self._store.remove(name)

    def _remove_intent(self, submission: Submission) -> None:
        """Remove an intent, unless its name is that of a later submission by now."""
        name = self._intent_name(submission.number)
        written = self._store.read(name)
        if written is not None and Intent.from_json(written).submission_id == submission.intent.submission_id:
            self._store.remove(name)

    def _intent_name(self, number: int) -> str:
        return _claim(self._prefix, number)

    def _name(self, submission: Submission, fact: Fact) -> str:
        # With the submission: the number may be used again once everything is removed, and a write may come late.
        name = f"{self._prefix}-{submission.number}-{part_of_name(submission.intent.submission_id)}-{fact}"
        return f"{name}-{self._writer}" if fact in (Fact.REPORTED, Fact.LOST, Fact.MISSED) else name


def names_by_key(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the facts about each image, by its key; see `ImageIdentity`.

    Args:
        names: The names of the facts that a folder has.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.partition("-")[0], []).append(name)
    return found


def names_by_submission(names: Iterable[str]) -> dict[str, list[tuple[Fact, str]]]:
    """Return the names of the ids and ends of submissions in a folder, by the part of their ids that is in the names.

    Args:
        names: The names of the facts that the folder has.
    """
    facts = {str(fact): fact for fact in (Fact.ID, Fact.END)}
    found: dict[str, list[tuple[Fact, str]]] = {}
    for name in names:
        _, _, rest = name.partition("-")
        _, _, rest = rest.partition("-")
        part, _, fact = rest.partition("-")
        if fact in facts:
            found.setdefault(part, []).append((facts[fact], name))
    return found


def part_of_name(submission_id: str) -> str:
    """Return the part of a submission's id that is in the names of the facts about it."""
    return submission_id[:_PART_CHARACTERS]


def _claim(key: str, number: int) -> str:
    return f"{key}-{number}"

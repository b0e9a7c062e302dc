"""The facts that are recorded about a submission, and how they are read from any store. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.rules.callbacks import is_digest
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.image_names import check_image_name
from airflow_provider_qwenimage.rules.task_ids import is_usable, printable_id
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.text.messages import printable, shorten
from airflow_provider_qwenimage.text.storable import MAX_MESSAGE_CHARACTERS, storable

# Nobody spends more on one task.
_MOST_CREDITS = 10**12
_MOST_ID_CHARACTERS = 64
_UNREADABLE = "unreadable"


class Fact(StrEnum):
    """The kinds of facts about a submission; each is recorded under a name of its own."""

    INTENT = "intent"
    ID = "id"
    END = "end"
    # An error has told the user that the submission may have been accepted, so that a Clear is consent.
    REPORTED = "reported"
    # The image could not be fetched; and again, after the task was cleared.
    LOST = "lost"
    MISSED = "missed"


class EndKind(StrEnum):
    """How a submission ended."""

    NOT_ACCEPTED = "not_accepted"
    SERVER_ERROR = "server_error"
    FAILED = "failed"
    REFUSED = "refused"
    GIVEN_UP = "given_up"
    DONE = "done"


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A submission that is about to be sent. Plain JSON, without the key and the callback URL.

    Attributes:
        submission_id: Tells it from every other submission.
        request: The requested image, as in `GenerateRequest.description`.
        fingerprint: See `ImageIdentity`.
        variant: See `ImageIdentity`.
        name: See `ImageIdentity`.
        intended_at: When it was recorded, in ISO 8601.
        made_in: The try that recorded it.
        by: The Airflow task that recorded it; see `made_by.description_of`.
        callback: The digest of the secret in its callback URL, or None; see `callbacks.digest_of`.
    """

    submission_id: str
    request: Mapping[str, Any]
    fingerprint: str
    intended_at: str
    made_in: Try
    variant: int = 0
    name: str | None = None
    by: Mapping[str, Any] = field(default_factory=dict)
    callback: str | None = None

    @property
    def is_readable(self) -> bool:
        """Whether the record could be read; one that could not still means that something was submitted."""
        return self.fingerprint != _UNREADABLE

    @property
    def identity(self) -> ImageIdentity:
        """The image that was asked for.

        Raises:
            ValueError: If the record could not be read.
        """
        return ImageIdentity(GenerateRequest(**self.request), self.variant, self.name)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON that every store accepts."""
        written: dict[str, Any] = storable(
            {
                "submission": self.submission_id,
                "request": dict(self.request),
                "fingerprint": self.fingerprint,
                "variant": self.variant,
                "name": self.name,
                "intended_at": self.intended_at,
                "try": self.made_in.to_json(),
                "by": dict(self.by),
            }
            | ({} if self.callback is None else {"callback": self.callback})
        )
        return written

    @classmethod
    def from_json(cls, value: object) -> Intent:
        """Read the result of `to_json`; anything else becomes an intent that is not readable."""
        if isinstance(value, Mapping) and isinstance(value.get("request"), Mapping):
            try:
                return cls._read(value)
            except (TypeError, ValueError, KeyError):
                pass
        return cls.unreadable()

    @classmethod
    def unreadable(cls) -> Intent:
        """Return the intent of a record that cannot be read."""
        return cls(
            submission_id="", request={}, fingerprint=_UNREADABLE, intended_at="", made_in=Try(number=0, max_tries=0)
        )

    @classmethod
    def _read(cls, value: Mapping[str, Any]) -> Intent:
        made_in = Try.from_json(value["try"])
        variant, name, by = value.get("variant", 0), value.get("name"), value.get("by")
        callback = value.get("callback")
        is_valid = (
            made_in is not None
            and isinstance(value["submission"], str)
            and value["submission"].isalnum()
            and len(value["submission"]) <= _MOST_ID_CHARACTERS
            and isinstance(value["fingerprint"], str)
            and isinstance(value["intended_at"], str)
            and isinstance(variant, int)
            # It becomes part of a path.
            and check_image_name("name", name) == name
        )
        if not is_valid or made_in is None:
            raise ValueError(value)
        # Others can write to a shared folder, and texts of it go into logs and errors.
        intent = cls(
            submission_id=value["submission"],
            request=dict(value["request"]),
            fingerprint=line(value["fingerprint"]),
            variant=variant,
            name=name,
            intended_at=line(value["intended_at"]),
            made_in=made_in,
            by={line(str(key)): line(part) if isinstance(part, str) else storable(part) for key, part in by.items()}
            if isinstance(by, Mapping)
            else {},
            callback=callback if is_digest(callback) else None,
        )
        _ = intent.identity
        return intent


@dataclass(frozen=True, kw_only=True)
class End:
    """The end of a submission.

    Attributes:
        kind: How it ended.
        made_in: The try that recorded it.
        reason: The API's reason, if the image task FAILED.
        consumed_credits: What an image task that FAILED has cost.
        image_task_id: The API's id of the image task, if it is known.
    """

    kind: EndKind
    made_in: Try
    reason: str = ""
    consumed_credits: float = 0.0
    image_task_id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON that every store accepts."""
        written: dict[str, Any] = storable(
            {
                "end": str(self.kind),
                "try": self.made_in.to_json(),
                "reason": self.reason,
                "consumed_credits": self.consumed_credits,
                "image_task_id": self.image_task_id,
            }
        )
        return written

    @classmethod
    def from_json(cls, value: object) -> End | None:
        """Read the result of `to_json`; None for anything else: then it is not known to have ended."""
        if not isinstance(value, Mapping):
            return None
        made_in = Try.from_json(value.get("try"))
        spent = value.get("consumed_credits", 0.0)
        kind, reason = value.get("end"), value.get("reason", "")
        is_valid = isinstance(kind, str) and kind in list(EndKind) and isinstance(reason, str) and _is_cost(spent)
        if made_in is None or not is_valid:
            return None
        return cls(
            kind=EndKind(str(kind)),
            made_in=made_in,
            reason=line(reason),
            consumed_credits=spent,
            image_task_id=read_id(value),
        )


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What is recorded about one submission.

    Attributes:
        number: Its number among the submissions of this image; 0 for one of an earlier version of this package.
        intent: The intent.
        image_task_id: The API's id of the image task, once the API has answered.
        end: Its end, or None.
        reported: The try whose error reported that it may have been accepted.
        lost: The first try that could not fetch its image.
        missed: The first try after a Clear that could not fetch it either.
        spent_before: Credits that were spent before it, in the record of an earlier version.
    """

    number: int
    intent: Intent
    image_task_id: str | None = None
    end: End | None = None
    reported: Try | None = None
    lost: Try | None = None
    missed: Try | None = None
    spent_before: float = 0.0


def read_id(value: object) -> str | None:
    """Return the id of an image task from a record, or None if it has none that can be sent."""
    if not isinstance(value, Mapping):
        return None
    task_id = value.get("image_task_id")
    return printable_id(task_id) if is_usable(task_id) else None


def read_note(value: object) -> Try | None:
    """Return the try from a record that only has a try, or None."""
    return Try.from_json(value.get("try")) if isinstance(value, Mapping) else None


def read_earlier_version(value: object) -> Submission | None:
    """Read the record of an earlier version of this package: one object that was written anew at each step.

    Returns:
        The submission; one that is not readable if the record is not. None for a record that is empty.
    """
    if value is None:
        return None
    intent = Intent.unreadable()
    if not isinstance(value, Mapping):
        return Submission(number=0, intent=intent)
    task_id = value.get("image_task_id")
    numbers = value.get("try_number"), value.get("max_tries")
    spent = value.get("spent", 0.0)
    if not all(type(number) is int for number in numbers) or not _is_cost(spent):
        return Submission(number=0, intent=intent)
    made_in = Try(number=value["try_number"], max_tries=value["max_tries"])
    fields = {**value, "submission": "earlier", "try": made_in.to_json(), "name": None, "variant": 0, "by": {}}
    intent = Intent.from_json(fields)
    if not intent.is_readable or not (task_id is None or is_usable(task_id)):
        return Submission(number=0, intent=Intent.unreadable())
    failure, end = value.get("failure"), None
    if isinstance(failure, str):
        kind = EndKind.REFUSED if value.get("refused") is True else EndKind.FAILED
        end = End(kind=kind, made_in=made_in, reason=line(failure), consumed_credits=spent)
    elif value.get("finished") is True:
        end = End(kind=EndKind.DONE, made_in=made_in)
    return Submission(
        number=0,
        intent=intent,
        image_task_id=read_id(value),
        end=end,
        reported=made_in if value.get("reported") is True else None,
        lost=made_in if value.get("missed") is True else None,
        missed=made_in if value.get("missed") is True else None,
        spent_before=0.0 if isinstance(failure, str) else spent,
    )


def line(text: str) -> str:
    """Return a text as one line of bounded length, for logs and errors."""
    return printable(shorten(text, MAX_MESSAGE_CHARACTERS))


def _is_cost(value: object) -> bool:
    # False for NaN as well, which no limit would ever stop.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_CREDITS

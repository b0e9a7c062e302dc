"""The steps of a drawing: what is sent, what is recorded, and what other tasks do meanwhile."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowTaskTimeout
from PIL import Image

from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import (
    QwenImageAuthError,
    QwenImageConnectionError,
    QwenImageError,
    QwenImageImageError,
    QwenImageRateLimitError,
    QwenImageServerError,
    QwenImageSubmissionUnknownError,
    QwenImageTaskFailedError,
)
from airflow_provider_qwenimage.rules.callbacks import digest_of, is_secret
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.rules.made_by import description_of
from airflow_provider_qwenimage.rules.retries import RequestRetries
from airflow_provider_qwenimage.rules.submissions import Submit
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.rules.verification import verify_image
from airflow_provider_qwenimage.storage.images import StoredImages, store_image
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks import drawing as drawing_module
from airflow_provider_qwenimage.tasks import ledger as ledger_module
from airflow_provider_qwenimage.tasks.drawing import (
    LOOK_SECONDS,
    Answer,
    Drawing,
    DrawingOptions,
    Found,
    Pause,
    Post,
    Submitted,
    advance,
)
from tests.ledgers import OTHER, PLACES, REQUEST, Place, ti_of

Answering = Callable[[GenerateRequest], Answer]


def server_error() -> QwenImageServerError:
    return QwenImageServerError("code 500: try again", code=500, from_api=True)


def rate_limit() -> QwenImageRateLimitError:
    return QwenImageRateLimitError("code 429: slow down", code=429, from_api=True)


def unknown() -> QwenImageSubmissionUnknownError:
    return QwenImageSubmissionUnknownError("no clear response")


@dataclass
class Api:
    """Answers submissions, one after the other, with what a test has prepared; then with new ids."""

    answers: list[Answer | BaseException | Answering] = field(default_factory=list)
    posts: list[GenerateRequest] = field(default_factory=list)

    def answer(self, request: GenerateRequest) -> Answer:
        self.posts.append(request)
        answer = self.answers.pop(0) if self.answers else f"n{len(self.posts)}"
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, BaseException) and not isinstance(answer, QwenImageError):
            raise answer
        return answer


@dataclass
class Tasks:
    """The tasks of a test: all ask for the same image, in the same place."""

    place: Place
    api: Api = field(default_factory=Api)
    checked: list[Submit] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    during_a_pause: list[Callable[[], object]] = field(default_factory=list)

    def drawing(self, try_number: int = 1, max_tries: int = 2, task: str = "draw", **fields: Any) -> Drawing:
        retries = RequestRetries(limit=fields.pop("limit", 3), delay_seconds=0.0)
        request = fields.pop("request", REQUEST)
        options: dict[str, Any] = {
            "instance": description_of(ti_of(task_id=task, max_tries=max_tries)),
            "made_in": Try(number=try_number, max_tries=max_tries),
            "folder": open_output_path(f"file://{self.place.path}") if "files" in self.place.kind else None,
            "answer_seconds": 0.0,
        }
        return Drawing(
            ImageIdentity(request, 0, fields.pop("name", None)),
            self.place.opened(try_number, max_tries, task=task),
            DrawingOptions(**options | fields),
            check=self.checked.append,
            pause_before_resend=lambda error, again, errors: retries.pause(error, again, server_errors=errors),
        )

    def run(self, drawing: Drawing) -> StoredImages | Submitted:
        """Take all steps of a drawing, as a task does."""
        steps, answer = drawing.steps(), None
        while not isinstance(action := advance(steps, answer), Found):
            answer = None
            if isinstance(action, Post):
                answer = self.api.answer(action.request)
                continue
            assert isinstance(action, Pause)
            self.pauses.append(action.seconds)
            assert len(self.pauses) < 20
            if self.during_a_pause:
                self.during_a_pause.pop(0)()
        return action.result

    def draw(self, *args: Any, **fields: Any) -> StoredImages | Submitted:
        return self.run(self.drawing(*args, **fields))

    def submitted(self, *args: Any, **fields: Any) -> Submitted:
        result = self.draw(*args, **fields)
        assert isinstance(result, Submitted)
        return result

    def store(self, submitted: Submitted, request: GenerateRequest = REQUEST) -> None:
        """Store the image of an image task."""
        stream = BytesIO()
        Image.new("RGB", request.pixel_size, "red").save(stream, "jpeg")
        content = stream.getvalue()
        snapshot = TaskSnapshot(
            task_id=submitted.image_task_id,
            status=TaskStatus.SUCCESS,
            image_urls=("https://images.example.com/1.jpg",),
            consumed_credits=5,
        )
        store_image(
            content,
            verify_image(content, request),
            snapshot,
            submitted.identity,
            open_output_path(f"file://{self.place.path}"),
            number=1,
            made_by=submitted.made_by,
        )

    def finish(self, drawing: Drawing, submitted: Submitted) -> None:
        """Store the image of a drawing's image task, and remove its records."""
        self.store(submitted)
        drawing.ledger.finish()


@pytest.fixture(params=PLACES)
def tasks(request: pytest.FixtureRequest, tmp_path: Path) -> Tasks:
    return Tasks(Place(request.param, tmp_path))


@pytest.fixture(params=[kind for kind in PLACES if "files" in kind])
def sharing(request: pytest.FixtureRequest, tmp_path: Path) -> Tasks:
    return Tasks(Place(request.param, tmp_path))


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_WRITE_PAUSE_SECONDS", 0.0)


def test_an_image_is_submitted_once_and_resumed_by_the_next_try(tasks: Tasks) -> None:
    first = tasks.submitted()
    assert (first.image_task_id, first.is_own, first.is_new, first.unrecorded) == ("n1", True, True, None)
    again = tasks.submitted(2)
    assert (again.image_task_id, again.is_own, again.is_new) == ("n1", True, False)
    assert again.identity.request.description() == REQUEST.description()
    assert tasks.api.posts == [REQUEST]
    assert tasks.checked == [Submit()]


def test_a_submission_that_is_refused_with_429_is_sent_again(tasks: Tasks) -> None:
    tasks.api.answers = [rate_limit(), rate_limit()]
    assert tasks.submitted().image_task_id == "n3"
    assert len(tasks.pauses) == 2
    assert tasks.checked == [Submit()] * 3
    assert tasks.submitted(2).image_task_id == "n3"


def test_a_process_that_is_killed_in_the_pause_after_429_leaves_nothing_that_may_be_paid(tasks: Tasks) -> None:
    tasks.api.answers = [rate_limit()]
    for error in (AirflowTaskTimeout("60 s"), KeyboardInterrupt()):

        def interrupt(error: BaseException = error) -> None:
            raise error

        tasks.during_a_pause = [interrupt]
        with pytest.raises(type(error)):
            tasks.draw()
        tasks.api.answers = [rate_limit()]
    tasks.api.answers = []
    assert tasks.submitted(2).is_new


@pytest.mark.parametrize("error", [QwenImageAuthError("no key"), QwenImageConnectionError("never reached")])
def test_a_refused_submission_is_raised_and_the_next_try_submits(tasks: Tasks, error: QwenImageError) -> None:
    tasks.api.answers = [error]
    with pytest.raises(type(error)) as caught:
        tasks.draw(limit=0)
    assert caught.value is error
    assert tasks.submitted(2).image_task_id == "n2"
    assert tasks.checked == [Submit()] * 2


def test_a_plain_code_500_is_sent_again_once_over_all_tries(tasks: Tasks) -> None:
    tasks.api.answers = [server_error(), server_error()]
    with pytest.raises(QwenImageServerError) as first:
        tasks.draw(limit=0)
    assert not first.value.permanent
    with pytest.raises(QwenImageServerError) as second:
        tasks.draw(2)
    assert second.value.permanent
    assert "2 submissions" in str(second.value)
    with pytest.raises(QwenImageSubmissionUnknownError, match="code 500"):
        tasks.draw(3)
    assert len(tasks.api.posts) == 2
    assert [step.at_risk for step in tasks.checked] == [0, 5]
    # A Clear is consent.
    assert tasks.submitted(3, 5).image_task_id == "n3"


def test_a_plain_code_500_and_an_acceptance_book_the_first_as_at_risk(tasks: Tasks) -> None:
    tasks.api.answers = [server_error()]
    assert tasks.submitted().image_task_id == "n2"
    assert [step.at_risk for step in tasks.checked] == [0, 5]
    assert tasks.submitted(2).image_task_id == "n2"


def test_a_code_500_and_then_429_do_not_add_up_to_two_code_500(tasks: Tasks) -> None:
    tasks.api.answers = [server_error(), rate_limit(), rate_limit()]
    assert tasks.submitted().image_task_id == "n4"
    assert [step.at_risk for step in tasks.checked] == [0, 5, 5, 5]


def test_a_submission_without_a_clear_answer_is_never_sent_again_without_a_clear(tasks: Tasks) -> None:
    tasks.api.answers = [unknown()]
    with pytest.raises(QwenImageSubmissionUnknownError, match="no clear response"):
        tasks.draw()
    for try_number in (2, 3):
        with pytest.raises(QwenImageSubmissionUnknownError, match="clear the task"):
            tasks.draw(try_number)
    assert len(tasks.api.posts) == 1
    assert tasks.submitted(3, 5).image_task_id == "n2"
    assert tasks.submitted(4, 5).image_task_id == "n2"


def test_a_process_that_dies_during_a_submission_is_awaited_and_then_reported(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks.api.answers = [KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        tasks.draw()
    clock = [time.time()]
    monkeypatch.setattr(drawing_module, "time", SimpleNamespace(time=lambda: clock[-1]))
    tasks.during_a_pause = [lambda later=later: clock.append(clock[0] + later) for later in (30, 68, 71)]  # type: ignore[misc]
    with pytest.raises(QwenImageSubmissionUnknownError, match="clear the task"):
        tasks.draw(2, answer_seconds=70.0)
    assert len(tasks.pauses) == 3
    assert max(tasks.pauses) <= LOOK_SECONDS
    assert len(tasks.api.posts) == 1


def test_a_task_that_is_ended_from_outside_before_it_sends_anything_has_paid_nothing(tasks: Tasks) -> None:
    tasks.api.answers = [None]
    with pytest.raises(AirflowException, match="nothing is paid"):
        tasks.draw()
    assert tasks.submitted(2).is_new


def test_a_check_that_refuses_leaves_no_record(tasks: Tasks) -> None:
    drawing = tasks.drawing()

    def refuse(step: Submit) -> None:
        raise ValueError("max_credits is 4")

    drawing._check = refuse
    with pytest.raises(ValueError, match="max_credits"):
        tasks.run(drawing)
    assert tasks.place.facts() == {}
    assert tasks.api.posts == []


def test_a_failed_image_is_submitted_again_with_what_it_cost(tasks: Tasks) -> None:
    drawing = tasks.drawing()
    tasks.run(drawing)
    snapshot = TaskSnapshot(task_id="n1", status=TaskStatus.FAILED, consumed_credits=2.5)
    drawing.ledger.fail(QwenImageTaskFailedError("failed", snapshot=snapshot))
    assert tasks.submitted(2).image_task_id == "n2"
    assert tasks.checked == [Submit(), Submit(spent=2.5, charged=2.5)]


@pytest.mark.parametrize("error", [OSError("The disk is full."), AirflowTaskTimeout("Too late.")])
def test_an_id_that_cannot_be_recorded_is_told_and_not_lost(sharing: Tasks, error: BaseException) -> None:
    drawing = sharing.drawing()

    def refuse(image_task_id: str) -> None:
        raise error

    drawing.ledger.accept = refuse  # type: ignore[method-assign]
    result = sharing.run(drawing)
    assert isinstance(result, Submitted)
    assert (result.image_task_id, result.unrecorded) == ("n1", f"{type(error).__name__}: {error}")


def test_an_end_that_cannot_be_recorded_does_not_hide_the_error_of_the_submission(
    tasks: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    drawing = tasks.drawing()

    def full() -> None:
        raise OSError("The disk is full.")

    drawing.ledger.report = full  # type: ignore[method-assign]
    tasks.api.answers = [unknown()]
    with pytest.raises(QwenImageSubmissionUnknownError, match="no clear response"):
        tasks.run(drawing)
    assert "Could not record the end of the submission" in caplog.text


# With a folder: what is stored there, and who else draws there.


def test_a_stored_image_is_found_and_nothing_is_sent(sharing: Tasks) -> None:
    drawing = sharing.drawing()
    result = sharing.run(drawing)
    assert isinstance(result, Submitted)
    sharing.finish(drawing, result)
    assert [name for name in sharing.place.files() if name.startswith(".")] == []
    for task, try_number in (("draw", 2), ("paint", 1)):
        stored = sharing.draw(try_number, task=task)
        assert isinstance(stored, StoredImages)
        assert stored.image_task_id == "n1"
    assert len(sharing.api.posts) == 1


def test_an_image_that_was_stored_before_a_kill_is_found_and_its_records_are_removed(sharing: Tasks) -> None:
    sharing.store(sharing.submitted())
    assert [name for name in sharing.place.files() if name.startswith(".")]
    stored = sharing.draw(2)
    assert isinstance(stored, StoredImages)
    assert sharing.drawing().is_own(stored)
    assert len(sharing.api.posts) == 1


def test_a_new_image_is_drawn_over_a_stored_one_once(sharing: Tasks) -> None:
    drawing = sharing.drawing()
    result = sharing.run(drawing)
    assert isinstance(result, Submitted)
    sharing.finish(drawing, result)
    new = sharing.submitted(task="paint", overwrite=True)
    assert new.image_task_id == "n2"
    assert sharing.submitted(2, task="paint", overwrite=True).image_task_id == "n2"


def test_a_new_image_is_drawn_if_another_task_was_killed_before_it_removed_its_records(sharing: Tasks) -> None:
    sharing.store(sharing.submitted())
    new = sharing.submitted(task="paint", overwrite=True)
    assert (new.image_task_id, new.is_own) == ("n2", True)


def test_what_another_task_has_submitted_is_awaited_and_not_paid_again(sharing: Tasks) -> None:
    sharing.submitted()
    theirs = sharing.submitted(task="paint")
    assert (theirs.image_task_id, theirs.is_own, theirs.is_new) == ("n1", False, False)
    assert theirs.made_by["task_id"] == "draw"
    assert len(sharing.api.posts) == 1
    assert sharing.checked == [Submit()]


def between_look_and_claim(drawing: Drawing, happening: Callable[[], object]) -> None:
    """Have something happen after the next look, before the claim."""
    intend = drawing.ledger.intend

    def late(asking: Any, callback: str | None = None) -> bool:
        drawing.ledger.intend = intend  # type: ignore[method-assign]
        happening()
        return intend(asking, callback)

    drawing.ledger.intend = late  # type: ignore[method-assign]


def test_a_claim_that_appears_between_look_and_claim_is_followed(sharing: Tasks) -> None:
    late = sharing.drawing(task="paint")
    between_look_and_claim(late, sharing.submitted)
    result = sharing.run(late)
    assert isinstance(result, Submitted)
    assert (result.image_task_id, result.is_own) == ("n1", False)
    assert len(sharing.api.posts) == 1
    # Its own records say that nothing was sent.
    assert sharing.submitted(2, task="paint").image_task_id == "n1"


def test_a_claim_without_an_answer_that_appears_between_look_and_claim_is_awaited(sharing: Tasks) -> None:
    late = sharing.drawing(task="paint", answer_seconds=70.0)
    other = sharing.drawing()
    steps = other.steps()
    between_look_and_claim(late, lambda: advance(steps, None))
    sharing.during_a_pause = [lambda: None, lambda: advance(steps, "n9")]
    result = sharing.run(late)
    assert isinstance(result, Submitted)
    assert (result.image_task_id, result.is_own) == ("n9", False)
    assert sharing.api.posts == []


@pytest.mark.parametrize("had_failed", [False, True])
def test_an_image_that_is_finished_between_look_and_claim_is_found(sharing: Tasks, had_failed: bool) -> None:
    if had_failed:
        first = sharing.drawing()
        sharing.run(first)
        first.ledger.fail(QwenImageTaskFailedError("failed"))

    def finish() -> None:
        other = sharing.drawing(2)
        result = sharing.run(other)
        assert isinstance(result, Submitted)
        sharing.finish(other, result)

    late = sharing.drawing(task="paint")
    between_look_and_claim(late, finish)
    result = sharing.run(late)
    assert isinstance(result, StoredImages)
    assert len(sharing.api.posts) == 1 + had_failed
    # No record is left that would make anybody wait.
    sharing.place.path.joinpath(Path(result.paths[0]).name).unlink()
    assert sharing.submitted(3, 5, task="third").is_new


def test_a_file_of_somebody_else_stops_before_anything_is_paid(sharing: Tasks) -> None:
    file = sharing.place.path / "fox.jpg"
    sharing.place.path.mkdir(exist_ok=True)
    file.write_bytes(b"mine")
    with pytest.raises(QwenImageImageError, match=r"fox\.jpg exists .*Nothing was submitted"):
        sharing.draw(name="fox")
    assert sharing.api.posts == []
    assert sharing.place.files() == ["fox.jpg"]
    assert sharing.submitted(name="fox", overwrite=True).is_new


def test_a_file_of_somebody_else_that_appears_between_look_and_claim_stops_too(sharing: Tasks) -> None:
    drawing = sharing.drawing(name="fox")
    between_look_and_claim(drawing, lambda: (sharing.place.path / "fox.jpg").write_bytes(b"mine"))
    with pytest.raises(QwenImageImageError, match="Nothing was submitted"):
        sharing.run(drawing)
    assert sharing.api.posts == []
    (sharing.place.path / "fox.jpg").unlink()
    assert sharing.submitted(2, name="fox").is_new


def test_a_file_of_somebody_else_does_not_keep_a_paid_image_from_being_fetched(sharing: Tasks) -> None:
    sharing.submitted(name="fox")
    (sharing.place.path / "fox.jpg").write_bytes(b"mine")
    for try_number, max_tries, task in ((2, 2, "draw"), (2, 4, "draw"), (1, 2, "paint")):
        assert sharing.submitted(try_number, max_tries, task=task, name="fox").image_task_id == "n1"


def test_a_name_under_which_another_task_draws_another_image_stops_before_anything_is_paid(sharing: Tasks) -> None:
    sharing.submitted(name="fox")
    with pytest.raises(ValueError, match="image_name is 'fox'.*Nothing was submitted"):
        sharing.draw(task="paint", name="fox", request=OTHER)
    assert len(sharing.api.posts) == 1
    assert sharing.submitted(task="paint", name="fox", request=OTHER, overwrite=True).image_task_id == "n2"


@pytest.mark.parametrize("error", [AirflowTaskTimeout("60 s"), KeyboardInterrupt(), OSError("unreadable")], ids=repr)
def test_an_interruption_between_claim_and_submission_leaves_nothing_that_may_be_paid(
    sharing: Tasks, error: BaseException
) -> None:
    drawing = sharing.drawing()
    find, looks = drawing._find, []

    def interrupted(identity: ImageIdentity) -> Any:
        looks.append(identity)
        if drawing.ledger.current is not None:
            raise error
        return find(identity)

    drawing._find = interrupted  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        sharing.run(drawing)
    assert sharing.api.posts == []
    assert sharing.submitted(2).is_new


def test_an_image_that_was_looked_for_already_is_looked_for_again_only_after_the_claim(sharing: Tasks) -> None:
    drawing = sharing.drawing()
    find, looks = drawing._find, []

    def counted(identity: ImageIdentity) -> Any:
        looks.append(drawing.ledger.current is not None)
        return find(identity)

    drawing._find = counted  # type: ignore[method-assign]
    action = advance(drawing.steps(was_looked_for=True), None)
    assert isinstance(action, Post)
    assert looks == [True]


def test_a_changed_row_that_is_cleared_leaves_the_earlier_image_task_and_names_it(
    sharing: Tasks, caplog: pytest.LogCaptureFixture
) -> None:
    if sharing.place.kind == "shared files":
        pytest.skip("the rows of a batch are found by their request")
    sharing.submitted()
    assert sharing.submitted(2, 4, request=OTHER).image_task_id == "n2"
    assert "n1, may be paid" in caplog.text
    # Who else asks for the first one gets it for nothing.
    theirs = sharing.submitted(task="paint")
    assert (theirs.image_task_id, theirs.is_own) == ("n1", False)


SECRET_URL = "https://airflow.example.com/qwenimage/callback/7/{}".format
ASKED = GenerateRequest(prompt="A red fox")


def test_the_callback_url_of_a_submission_has_a_secret_whose_digest_is_recorded_first(tasks: Tasks) -> None:
    recorded: list[str] = []

    def answer(_: GenerateRequest) -> str:
        recorded.append(json.dumps(tasks.place.facts()))
        return "n1"

    tasks.api.answers = [server_error(), answer]
    submitted = tasks.submitted(request=ASKED, callback_url=SECRET_URL)
    first, second = (str(post.callback_url) for post in tasks.api.posts)
    # The response that refused the first may have quoted its secret.
    assert first != second
    secret = second.rpartition("/")[2]
    assert second == SECRET_URL(secret)
    assert is_secret(secret)
    assert submitted.callback == digest_of(secret)
    if tasks.place.facts():
        assert all(digest_of(secret) in facts for facts in recorded)
    assert secret not in repr(submitted) + repr(tasks.api.posts) + json.dumps(tasks.place.facts())
    assert submitted.identity.request == ASKED


def test_each_image_has_a_secret_of_its_own(tasks: Tasks) -> None:
    digests = {
        tasks.submitted(request=ASKED, callback_url=SECRET_URL, task=f"draw{n}", name=f"fox{n}").callback
        for n in (1, 2)
    }
    assert None not in digests
    assert len(digests) == 2


def test_a_task_with_a_callback_url_of_its_own_keeps_it(tasks: Tasks) -> None:
    assert REQUEST.callback_url is not None
    assert tasks.submitted(callback_url=SECRET_URL).callback is None
    assert [post.callback_url for post in tasks.api.posts] == [REQUEST.callback_url]


def test_a_retry_waits_for_the_callback_of_its_first_try_and_another_task_does_not(tasks: Tasks) -> None:
    first = tasks.submitted(request=ASKED, callback_url=SECRET_URL)
    again = tasks.submitted(2, request=ASKED, callback_url=SECRET_URL)
    assert (again.image_task_id, again.callback) == (first.image_task_id, first.callback)
    assert len(tasks.api.posts) == 1
    if "shared" in tasks.place.kind or tasks.place.kind == "files":
        other = tasks.submitted(request=ASKED, callback_url=SECRET_URL, task="paint")
        assert (other.image_task_id, other.callback) == (first.image_task_id, None)

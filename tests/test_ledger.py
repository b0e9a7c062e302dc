"""The ledger: the next try, in a new process, finds what this one has submitted, wherever that is recorded."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowTaskTimeout

from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules.callbacks import digest_of, new_secret
from airflow_provider_qwenimage.rules.made_by import description_of
from airflow_provider_qwenimage.rules.snapshots import task_failure
from airflow_provider_qwenimage.rules.submissions import LookAgain, Resume, Stop, Submit
from airflow_provider_qwenimage.rules.tries import Try
from airflow_provider_qwenimage.tasks import ledger as ledger_module
from airflow_provider_qwenimage.tasks.ledger import Ledger
from tests.ledgers import (
    FOLDER_PLACES,
    OTHER,
    PLACES,
    REQUEST,
    STATE_PLACES,
    Facts,
    Place,
    asking_of,
    ledger_of,
    step_of,
    ti_of,
)


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


@pytest.fixture(params=[kind for kind in PLACES if "files" in kind])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, tmp_path)


def failed(credits_consumed: float | None, reason: str = "Out of paint") -> QwenImageTaskFailedError:
    return task_failure(
        TaskSnapshot(task_id="n43", status=TaskStatus.FAILED, consumed_credits=credits_consumed, error_message=reason)
    )


def test_a_first_try_submits(place: Place) -> None:
    ledger = place.opened()
    assert ledger.remembers
    assert step_of(ledger, asking_of()) == Submit()
    assert ledger.current is None


def test_a_retry_after_a_crash_before_the_intent_submits(place: Place) -> None:
    place.step()
    assert place.facts() == {}
    assert place.step(2) == Submit()


def test_a_retry_after_a_crash_between_intent_and_answer_stops_until_a_clear_after_the_report(place: Place) -> None:
    place.intended()
    # Before the first report, a clear is no consent: the user could not know that it may cost credits.
    for try_number, max_tries in ((2, 4), (3, 4), (4, 4)):
        step = place.step(try_number, max_tries)
        assert isinstance(step, Stop)
        assert isinstance(step.error, QwenImageSubmissionUnknownError)
    step = place.step(5, 6)
    assert isinstance(step, Submit)
    assert "cleared" in str(step.notice)


def test_the_answer_to_an_intent_is_awaited_while_it_may_come(place: Place) -> None:
    place.intended()
    step = place.step(2, now=time.time())
    assert isinstance(step, LookAgain)
    assert 50 < step.seconds <= 71
    # It is no report, so a clear is no consent either.
    assert isinstance(place.step(3, 4), Stop)


def test_a_clear_consents_to_only_one_submission(place: Place) -> None:
    place.intended()
    place.step(2)
    place.intended(3, 4)
    assert isinstance(place.step(4, 4), Stop)
    assert isinstance(place.step(5, 4), Stop)
    assert isinstance(place.step(6, 8), Submit)


def test_a_reported_lost_answer_is_submitted_again_only_after_a_clear(place: Place) -> None:
    place.intended().report()
    assert isinstance(place.step(2), Stop)
    assert isinstance(place.step(2, 4), Submit)


@pytest.mark.parametrize("request_now", [REQUEST, OTHER])
def test_a_retry_after_a_crash_resumes_the_submitted_image_task(tmp_path: Path, request_now: GenerateRequest) -> None:
    # The rows of a batch are found by their request alone.
    for kind in [kind for kind in PLACES if kind != "shared files"]:
        place = Place(kind, tmp_path / kind)
        place.submitted()
        step = place.step(2, request=request_now)
        assert isinstance(step, Resume)
        assert step.is_own
        assert step.image_task_id == "n43"
        assert step.submission.intent.identity.request == GenerateRequest(prompt="A red fox")
        assert "try 1" in step.notice


def test_the_digest_of_a_callback_is_recorded_before_the_submission_and_read_by_the_next_try(place: Place) -> None:
    ledger = place.opened()
    step_of(ledger, asking_of())
    digest = digest_of(new_secret())
    assert ledger.intend(asking_of(), digest)
    ledger.accept("n43")
    assert digest in json.dumps(place.facts())
    step = place.step(2)
    assert isinstance(step, Resume)
    assert step.submission.intent.callback == digest


@pytest.mark.parametrize("forged", [None, 5, "", [], {"a": 1}, "g" * 64, "a" * 65, "A" * 64, "a" * 63 + "\n"])
def test_a_record_without_a_digest_or_with_a_forged_one_has_none(place: Place, forged: Any) -> None:
    ledger = place.opened()
    step_of(ledger, asking_of())
    ledger.intend(asking_of(), forged)
    ledger.accept("n43")
    step = place.step(2)
    assert isinstance(step, Resume)
    assert step.submission.intent.callback is None


def test_a_clear_resumes_and_after_two_failures_the_next_clear_submits(place: Place) -> None:
    assert not place.submitted().record_lost()
    for try_number, max_tries, is_missed in ((2, 2, False), (3, 5, True), (4, 5, True)):
        ledger = place.resumed(try_number, max_tries)
        assert ledger.record_lost() == is_missed
        assert isinstance(place.step(try_number + 1, max_tries), Resume)
    assert isinstance(place.step(5, 7), Submit)


def test_an_image_that_was_lost_only_after_a_clear_is_fetched_again_once_more(place: Place) -> None:
    place.submitted()
    assert not place.resumed(2, 4).record_lost()
    assert isinstance(place.step(3, 6), Resume)


def test_a_clear_with_a_changed_request_submits_the_new_one(tmp_path: Path) -> None:
    for kind in PLACES:
        place = Place(kind, tmp_path / kind)
        place.submitted()
        assert isinstance(place.step(2, 4, OTHER), Submit)


def test_equal_requests_of_mapped_tasks_are_distinguished(place: Place) -> None:
    place.submitted(variant=1)
    assert isinstance(place.step(2, 4, variant=1), Resume)
    assert isinstance(place.step(2, 4, variant=2), Submit)


def test_a_withdrawn_intent_is_no_submission(place: Place) -> None:
    ledger = place.intended()
    ledger.withdraw()
    assert ledger.current is None
    assert step_of(ledger, asking_of()) == place.step(2) == Submit()
    assert not any("intended_at" in fact for name, fact in place.facts().items() if name.startswith("."))


def test_a_withdrawn_intent_leaves_what_was_recorded_before(place: Place) -> None:
    place.submitted().fail(failed(5))
    place.intended(2).withdraw()
    assert place.step(3) == Submit(spent=5, charged=5)


def test_the_same_process_may_submit_again_after_a_refusal(place: Place) -> None:
    ledger = place.intended()
    for _ in range(3):
        ledger.withdraw()
        assert ledger.intend(asking_of())
    ledger.accept("n44")
    step = place.step(2)
    assert isinstance(step, Resume)
    assert step.image_task_id == "n44"


def test_consent_is_not_used_up_by_a_refused_submission(place: Place) -> None:
    place.intended().report()
    place.intended(2, 4).withdraw()
    assert isinstance(place.step(3, 4), Submit)


def test_credits_of_failed_images_add_up_until_a_clear(place: Place) -> None:
    for try_number, cost in ((1, 5), (2, None), (3, 2.5)):
        place.submitted(try_number, task_id=f"n{try_number}").fail(failed(cost))
    assert place.step(4) == Submit(spent=7.5, charged=2.5)
    assert place.step(4, 6) == Submit()


def test_a_failure_without_a_snapshot_adds_no_credits(place: Place) -> None:
    place.submitted().fail(QwenImageTaskFailedError("failed"))
    assert place.step(2) == Submit()


def test_a_refused_prompt_is_submitted_again_only_after_a_clear(place: Place) -> None:
    place.submitted().fail(failed(0, "Content policy violation detected"))
    step = place.step(2)
    assert isinstance(step, Stop)
    assert "Content policy violation detected" in str(step.error)
    assert place.step(2, 4) == Submit()


def test_an_answer_with_code_500_is_at_risk_and_the_second_one_stops_until_a_clear(place: Place) -> None:
    ledger = place.intended()
    ledger.answer_server_error()
    step = place.step(2)
    assert step == Submit(server_errors=1)
    assert isinstance(step, Submit)
    assert step.at_risk == 5
    place.intended(2).answer_server_error()
    assert isinstance(place.step(3), Stop)
    assert place.step(3, 5) == Submit()


def test_what_is_at_risk_stays_so_while_the_next_submission_is_refused_or_resumed(place: Place) -> None:
    place.intended().answer_server_error()
    place.intended(2).withdraw()
    assert place.step(3) == Submit(server_errors=1)
    place.submitted(3)
    assert isinstance(place.step(4), Resume)


def test_a_clear_after_a_finished_submission_submits_again(place: Place) -> None:
    place.submitted().finish()
    assert place.step(2, 4) == Submit()


def test_a_finished_ledger_stays_finished(place: Place) -> None:
    ledger = place.submitted()
    ledger.finish()
    before = place.facts()
    ledger.finish()
    assert place.facts() == before


def test_what_was_never_submitted_is_not_recorded(place: Place) -> None:
    for ledger in (place.opened(), place.resumed()):
        ledger.finish()
        ledger.withdraw()
        ledger.report()
        ledger.accept("n43")
        ledger.fail(failed(5))
        assert not ledger.record_lost()
    assert place.facts() == {}


def test_a_finished_image_leaves_no_hidden_file(folder: Place) -> None:
    """Neither the facts of earlier submissions of the image nor those about failures to fetch it."""
    folder.intended().report()
    folder.submitted(2, 4).fail(failed(5))
    folder.intended(3, 4).answer_server_error()
    folder.submitted(4, 4, task_id="n44").record_lost()
    folder.resumed(5, 8).record_lost()
    folder.resumed(6, 8).finish()
    assert folder.files() == []


def test_an_image_that_is_finished_at_once_leaves_no_hidden_file(folder: Place) -> None:
    ledger = folder.intended()
    assert all(name.startswith(".submission-") for name in folder.files())
    ledger.accept("n43")
    assert any("n43" in json.dumps(fact) for fact in folder.facts().values())
    ledger.finish()
    assert folder.files() == []


def test_neither_the_callback_url_nor_its_token_is_recorded(place: Place) -> None:
    place.submitted().fail(failed(5))
    recorded = json.dumps(place.facts())
    assert "A red fox" in recorded
    assert "callback" not in recorded
    assert "secret" not in recorded


def test_another_task_that_asks_for_the_same_waits_for_the_same_image_task(folder: Place) -> None:
    first = folder.intended()
    assert isinstance(folder.step(task="paint", now=time.time()), LookAgain)
    stopped = folder.step(task="paint")
    assert isinstance(stopped, Stop)
    assert "task draw of DAG foxes" in str(stopped.error)
    first.accept("n43")
    step = folder.step(task="paint")
    assert isinstance(step, Resume)
    assert not step.is_own
    assert step.image_task_id == "n43"
    folder.resumed(task="paint").finish()
    assert folder.step(task="paint", max_tries=3) == Submit()


def test_a_report_to_one_task_is_no_consent_of_another(folder: Place) -> None:
    folder.intended()
    assert isinstance(folder.step(2, task="paint"), Stop)
    # Its owner has not heard of it, so that a clear is no consent.
    assert isinstance(folder.step(2, 4), Stop)
    assert isinstance(folder.step(3, 5, task="paint"), Submit)


def test_of_two_tasks_that_give_up_the_same_unknown_submission_at_once_one_submits(folder: Place) -> None:
    folder.intended()
    folder.step(2)
    folder.step(2, task="paint")
    own, other = folder.opened(3, 5), folder.opened(3, 5, task="paint")
    for ledger in (own, other):
        assert isinstance(step_of(ledger, asking_of(REQUEST, 3, 5)), Submit)
    assert own.intend(asking_of(REQUEST, 3, 5))
    assert not other.intend(asking_of(REQUEST, 3, 5))
    own.accept("n44")
    step = folder.step(3, 5, task="paint")
    assert isinstance(step, Resume)
    assert step.image_task_id == "n44"


@pytest.mark.parametrize("history", ["nothing", "failed"])
def test_a_task_that_looked_before_another_one_has_finished_does_not_submit_on_what_it_saw(
    folder: Place, history: str
) -> None:
    if history == "failed":
        folder.submitted().fail(failed(0))
    late = folder.opened(2, task="paint")
    assert isinstance(step_of(late, asking_of(REQUEST, 2)), Submit)
    first = folder.submitted(2, task_id="n44")
    if history == "failed":
        assert not late.intend(asking_of(REQUEST, 2))
        late = folder.opened(2, task="paint")
        assert isinstance(step_of(late, asking_of(REQUEST, 2)), Resume)
        return
    assert not late.intend(asking_of(REQUEST, 2))
    first.finish()
    assert folder.files() == []


def test_a_claim_on_records_that_are_removed_meanwhile_is_withdrawn(folder: Place) -> None:
    folder.intended().answer_server_error()
    late = folder.opened(2, task="paint")
    assert isinstance(step_of(late, asking_of(REQUEST, 2)), Submit)
    folder.submitted(2, task_id="n44").finish()
    # The records that it saw are gone: the image is stored, so that it has to look again.
    assert not late.intend(asking_of(REQUEST, 2))
    assert folder.files() == []


@pytest.mark.skipif("task states and shared files" not in PLACES, reason="Airflow below 3.3 has no task states")
def test_a_failed_image_leaves_no_file_if_airflow_has_its_end(tmp_path: Path) -> None:
    place = Place("task states and shared files", tmp_path)
    place.submitted().fail(failed(5))
    assert place.files() == []
    step = place.step(2)
    assert isinstance(step, Submit)
    assert step.spent == 5


def test_an_owner_that_finishes_late_leaves_the_records_of_a_later_submission_alone(folder: Place) -> None:
    late = folder.submitted()
    folder.resumed(task="paint").finish()
    new = folder.intended(task="third", max_tries=9)
    late.finish()
    assert isinstance(folder.step(task="fourth"), Stop)
    new.accept("n44")
    step = folder.step(task="fourth")
    assert isinstance(step, Resume)
    assert step.image_task_id == "n44"


def test_a_late_failure_of_another_task_takes_no_id_and_no_end_back(folder: Place) -> None:
    folder.submitted()
    other = folder.resumed(task="paint")
    folder.resumed(2).fail(failed(5))
    other.record_lost()
    other.fail(failed(5))
    step = folder.step(3)
    assert isinstance(step, Submit)
    assert step.spent == 5


def test_the_credits_of_an_image_whose_failure_another_task_recorded_count_for_the_task_that_pays(
    tmp_path: Path,
) -> None:
    place = Place("shared files", tmp_path)
    place.submitted(max_tries=2)
    place.resumed(max_tries=0, task="paint").fail(failed(5))
    assert place.step(2, 2) == Submit(spent=5, charged=5)


def test_a_refusal_that_another_task_recorded_is_not_sent_again_by_a_retry(tmp_path: Path) -> None:
    place = Place("shared files", tmp_path)
    place.submitted(max_tries=2)
    place.resumed(max_tries=0, task="paint").fail(failed(0, "Content policy violation detected"))
    assert isinstance(place.step(2, 2), Stop)


def test_another_tasks_image_that_cannot_be_fetched_is_submitted_by_the_clear_that_was_announced(
    tmp_path: Path,
) -> None:
    """Also if the number of the try that submitted it is that of the try that asks."""
    place = Place("shared files", tmp_path)
    place.submitted(3, 3)
    assert not place.resumed(1, 0, task="paint").record_lost()
    assert place.resumed(2, 1, task="paint").record_lost()
    assert isinstance(place.step(3, 2, task="paint"), Submit)


@pytest.mark.skipif(not STATE_PLACES, reason="this Airflow has no task states")
def test_a_state_store_that_was_emptied_is_made_up_for_by_the_folder(tmp_path: Path) -> None:
    place = Place("task states and shared files", tmp_path)
    place.submitted()
    place.states.clear()
    step = place.step(2, 4)
    assert isinstance(step, Resume)
    assert (step.image_task_id, step.is_own) == ("n43", True)


@pytest.mark.skipif(not STATE_PLACES, reason="this Airflow has no task states")
def test_a_folder_that_this_host_does_not_have_is_made_up_for_by_the_state_store(tmp_path: Path) -> None:
    place = Place("task states and shared files", tmp_path / "one")
    place.submitted()
    place.path = tmp_path / "other"
    assert isinstance(place.step(2), Resume)
    place.resumed(2).finish()
    assert isinstance(place.step(3), Resume)


@pytest.mark.parametrize("kind", FOLDER_PLACES)
def test_only_the_states_of_airflow_remember_a_finished_image(tmp_path: Path, kind: str) -> None:
    place = Place(kind, tmp_path)
    place.submitted().finish()
    assert place.step(2) == Submit()


@pytest.mark.parametrize("kind", STATE_PLACES)
def test_a_retry_after_a_kill_at_the_end_does_not_pay_again_with_airflows_store(tmp_path: Path, kind: str) -> None:
    place = Place(kind, tmp_path)
    place.submitted().finish()
    assert isinstance(place.step(2), Resume)
    assert place.step(2, 4) == Submit()
    place.submitted(2, 4, task_id="n44").finish()
    step = place.step(3, 4)
    assert isinstance(step, Resume)
    assert step.image_task_id == "n44"


def test_a_submission_is_found_again_by_its_id_after_a_deferral(tmp_path: Path) -> None:
    for kind in [kind for kind in PLACES if kind != "shared files"]:
        place = Place(kind, tmp_path / kind)
        assert place.opened().find(None) is None
        assert place.opened().is_empty
        place.submitted(task_id="n1").fail(failed(0))
        place.submitted(2, task_id="n2")
        for image_task_id, expected in ((None, "n2"), ("n2", "n2"), ("n1", "n1")):
            found = place.opened(2).find(image_task_id)
            assert found is not None
            assert found.image_task_id == expected
        ledger = place.opened(2)
        assert ledger.find("n3") is None
        assert not ledger.is_empty
        ledger = place.opened(2)
        ledger.find("n2")
        ledger.finish()
        # In Airflow's task state nothing is removed.
        assert place.files() == []


# Faults of the stores.


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_WRITE_PAUSE_SECONDS", 0.0)


def after(own: Facts | None, shared: Facts | None, try_number: int = 2, **fields: Any) -> Any:
    return step_of(ledger_of(own, shared, try_number, **fields), asking_of(REQUEST, try_number))


def began(own: Facts | None, shared: Facts | None, **fields: Any) -> Ledger:
    ledger = ledger_of(own, shared, **fields)
    step_of(ledger, asking_of())
    assert ledger.intend(asking_of())
    return ledger


def test_an_intent_that_cannot_be_recorded_is_an_error_and_nothing_is_submitted() -> None:
    for failing in ("own", "shared"):
        own, shared = Facts(), Facts()
        {"own": own, "shared": shared}[failing].fail(1)
        with pytest.raises(OSError, match="The disk is full"):
            began(own, shared)
        assert after(own, shared) == Submit()


@pytest.mark.parametrize("error", [AirflowTaskTimeout("60 s"), KeyboardInterrupt(), SystemExit(1)], ids=repr)
@pytest.mark.parametrize("is_written", [False, True])
@pytest.mark.parametrize("failing", ["own", "shared"])
def test_an_intent_whose_recording_is_interrupted_says_that_nothing_is_paid(
    error: BaseException, is_written: bool, failing: str
) -> None:
    own, shared = Facts(), Facts()
    store = {"own": own, "shared": shared}[failing]

    def interrupt(name: str) -> None:
        store.before_writing = lambda _: None
        if is_written:
            # It had landed already.
            store.written[name] = json.dumps(ledger.current.intent.to_json())
        raise error

    ledger = ledger_of(own, shared)
    step_of(ledger, asking_of())
    store.before_writing = interrupt
    with pytest.raises(type(error)):
        ledger.intend(asking_of())
    assert ledger.current is None
    assert after(own, shared) == Submit()


@pytest.mark.parametrize("failures", [1, 2])
@pytest.mark.parametrize("failing", ["own", "shared"])
def test_recording_a_paid_id_is_retried(failures: int, failing: str, caplog: pytest.LogCaptureFixture) -> None:
    own, shared = Facts(), Facts()
    ledger = began(own, shared)
    {"own": own, "shared": shared}[failing].fail(failures)
    ledger.accept("n43")
    assert [record.levelname for record in caplog.records] == ["WARNING"] * failures
    assert "trying again: The disk is full." in caplog.text
    for places in ((own, shared), (own, None), (None, shared)):
        assert isinstance(after(*places), Resume)


@pytest.mark.parametrize("failing", ["own", "shared"])
def test_an_id_is_recorded_in_each_place_before_any_is_tried_again(failing: str) -> None:
    stores = {"own": Facts(), "shared": Facts()}
    ledger = began(stores["own"], stores["shared"])
    (other,) = stores.keys() - {failing}
    tried: list[str] = []

    def fail(_: str) -> None:
        tried.append(failing)
        raise OSError("The disk is full.")

    stores[failing].before_writing = fail
    stores[other].before_writing = lambda _: tried.append(other)
    ledger.accept("n43")
    # The process may be killed in the pauses between the attempts.
    assert sorted(tried[:2]) == ["own", "shared"]
    assert tried[2:] == [failing, failing]


@pytest.mark.parametrize("failing", ["own", "shared"])
def test_an_id_that_can_be_recorded_in_one_place_only_is_found_there(failing: str) -> None:
    own, shared = Facts(), Facts()
    ledger = began(own, shared)
    {"own": own, "shared": shared}[failing].fail(3)
    ledger.accept("n43")
    step = after(own, shared)
    assert isinstance(step, Resume)
    assert (step.image_task_id, step.is_own) == ("n43", True)


def test_an_id_that_was_recorded_in_one_place_only_is_in_the_end_that_both_get() -> None:
    own, shared = Facts(), Facts()
    ledger = began(own, shared)
    own.fail(3)
    ledger.accept("n43")
    ledger.finish()
    step = after(own, None)
    assert isinstance(step, Resume)
    assert step.image_task_id == "n43"


def test_an_id_that_can_be_recorded_nowhere_is_an_error_and_its_intent_stays_recorded() -> None:
    own, shared = Facts(), Facts()
    ledger = began(own, shared)
    own.fail(3)
    shared.fail(3)
    with pytest.raises(OSError, match="The disk is full"):
        ledger.accept("n43")
    # This process knows it all the same.
    assert ledger.current is not None
    assert ledger.current.image_task_id == "n43"
    assert isinstance(after(own, shared), Stop)


def test_a_note_that_cannot_be_recorded_is_an_error_and_has_no_effect() -> None:
    own = Facts()
    ledger = began(own, None)
    for change in (ledger.report, ledger.record_lost, lambda: ledger.fail(failed(5))):
        own.fail(1)
        with pytest.raises(OSError, match="The disk is full"):
            change()
    assert isinstance(after(own, None), Stop)


def test_a_late_write_of_an_intent_does_not_take_the_id_back() -> None:
    """Airflow's client sends a write again after some seconds, and the first one may land last."""
    own, shared = Facts(), Facts()
    ledger = began(own, shared)
    first = {store: dict(store.written) for store in (own, shared)}
    ledger.accept("n43")
    for store, written in first.items():
        store.written |= written
    step = after(own, shared)
    assert isinstance(step, Resume)
    assert step.image_task_id == "n43"


def test_any_write_that_comes_late_takes_nothing_back() -> None:
    own, shared = Facts(), Facts()
    ledger = began(own, shared)
    changes = (ledger.report, lambda: ledger.accept("n43"), ledger.record_lost, lambda: ledger.fail(failed(5)))
    written: list[tuple[Facts, dict[str, str]]] = []
    for change in changes:
        change()
        written += [(store, dict(store.written)) for store in (own, shared)]
    for store, facts in reversed(written):
        store.written |= facts
        assert after(own, shared) == Submit(spent=5, charged=5)


def test_without_a_store_nothing_is_recorded() -> None:
    instance = description_of(ti_of())
    made_in = Try(number=1, max_tries=2)
    ledger = Ledger(instance, made_in, own=None, shared=None)
    assert not ledger.remembers
    assert ledger.is_empty
    assert step_of(ledger, asking_of()) == Submit()
    assert ledger.intend(asking_of())
    ledger.accept("n43")
    ledger.report()
    assert not ledger.record_lost()
    ledger.fail(failed(5))
    ledger.finish()
    assert step_of(Ledger(instance, made_in, own=None, shared=None), asking_of()) == Submit()

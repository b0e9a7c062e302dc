"""The ledger: the next try, in a new process, finds the record of the last one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.exceptions import QwenImageSubmissionUnknownError, QwenImageTaskFailedError
from airflow_provider_qwenimage.rules.snapshots import task_failure
from airflow_provider_qwenimage.rules.submissions import Resume, Stop, Submit
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks import ledger as ledger_module
from airflow_provider_qwenimage.tasks.stores import FileStore, NoStore, Store, TaskStateStore
from tests.airflows import HAS_TASK_STATES
from tests.ledgers import OTHER, REQUEST, TaskStates, opened, submitted


@pytest.fixture(params=["file", "task states"] if HAS_TASK_STATES else ["file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "file":
        return FileStore(open_output_path(f"file://{tmp_path}") / ".submission-0.json")
    return TaskStateStore(TaskStates())


def failed(credits_consumed: float | None, reason: str = "Out of paint") -> QwenImageTaskFailedError:
    return task_failure(
        TaskSnapshot(task_id="n43", status=TaskStatus.FAILED, consumed_credits=credits_consumed, error_message=reason)
    )


def test_a_first_try_submits(store: Store) -> None:
    ledger = opened(store)
    assert ledger.next_step(REQUEST) == Submit()
    assert ledger.remembers
    assert not ledger.is_cleared
    assert ledger.spent == 0


def test_a_retry_after_a_crash_before_the_intent_submits(store: Store) -> None:
    opened(store).next_step(REQUEST)
    assert store.read() is None
    assert opened(store, try_number=2).next_step(REQUEST) == Submit()


def test_a_retry_after_a_crash_between_intent_and_answer_stops_until_a_clear_after_the_report(store: Store) -> None:
    opened(store).intend(REQUEST)
    # Before the first report, a clear is no consent: the user could not know that it may cost credits.
    for try_number, max_tries in ((2, 2), (3, 2), (4, 2)):
        step = opened(store, try_number, max_tries).next_step(REQUEST)
        assert isinstance(step, Stop)
        assert isinstance(step.error, QwenImageSubmissionUnknownError)
    assert isinstance(opened(store, 5, 6).next_step(REQUEST), Submit)


def test_a_clear_during_a_submission_does_not_submit_again_before_the_report(store: Store) -> None:
    opened(store).intend(REQUEST)
    assert isinstance(opened(store, 2, 4).next_step(REQUEST), Stop)
    assert isinstance(opened(store, 3, 4).next_step(REQUEST), Stop)
    assert isinstance(opened(store, 4, 6).next_step(REQUEST), Submit)


def test_a_clear_consents_to_only_one_submission(store: Store) -> None:
    opened(store).intend(REQUEST)
    opened(store, 2).report()
    cleared = opened(store, 3, 4)
    assert isinstance(cleared.next_step(REQUEST), Submit)
    cleared.intend(REQUEST)
    assert isinstance(opened(store, 4, 4).next_step(REQUEST), Stop)


def test_a_reported_lost_answer_is_submitted_again_only_after_a_clear(store: Store) -> None:
    ledger = opened(store)
    ledger.intend(REQUEST)
    ledger.report()
    assert isinstance(opened(store, 2).next_step(REQUEST), Stop)
    assert isinstance(opened(store, 2, 4).next_step(REQUEST), Submit)


@pytest.mark.parametrize("request_now", [REQUEST, OTHER])
def test_a_retry_after_a_crash_resumes_the_submitted_image_task(store: Store, request_now: GenerateRequest) -> None:
    submitted(store)
    step = opened(store, try_number=2).next_step(request_now)
    assert isinstance(step, Resume)
    assert (step.image_task_id, step.request) == ("n43", GenerateRequest(prompt="A red fox"))
    assert "try 1" in step.notice


def test_a_clear_resumes_and_after_a_failed_resume_the_next_clear_submits(store: Store) -> None:
    submitted(store)
    cleared = opened(store, 2, 4)
    assert cleared.is_cleared
    assert isinstance(cleared.next_step(REQUEST), Resume)
    cleared.record_failed_resume()
    assert isinstance(opened(store, 3, 4).next_step(REQUEST), Resume)
    assert isinstance(opened(store, 4, 6).next_step(REQUEST), Submit)


def test_a_clear_with_a_changed_request_submits_the_new_one(store: Store) -> None:
    submitted(store)
    assert isinstance(opened(store, 2, 4).next_step(OTHER), Submit)


def test_a_task_stays_cleared_when_its_images_are_counted(store: Store) -> None:
    submitted(store)
    cleared = opened(store, 2, 4)
    assert cleared.count()
    assert cleared.is_cleared
    assert opened(store, 3, 4).is_cleared


def test_equal_requests_of_mapped_tasks_are_distinguished(store: Store) -> None:
    submitted(store, variant=1)
    assert isinstance(opened(store, 2, 4, variant=1).next_step(REQUEST), Resume)
    assert isinstance(opened(store, 2, 4, variant=2).next_step(REQUEST), Submit)


def test_a_withdrawn_intent_leaves_no_record(store: Store) -> None:
    ledger = opened(store)
    ledger.intend(REQUEST)
    ledger.withdraw()
    assert store.read() is None
    assert ledger.next_step(REQUEST) == opened(store, 2).next_step(REQUEST) == Submit()


def test_a_withdrawn_intent_restores_the_record_before_it(store: Store) -> None:
    first = submitted(store)
    first.fail(failed(5))
    before = store.read()
    second = opened(store, 2)
    second.intend(REQUEST, 5)
    second.withdraw()
    assert store.read() == before
    assert opened(store, 3).next_step(REQUEST) == Submit(5)


def test_consent_is_not_used_up_by_a_refused_submission(store: Store) -> None:
    opened(store).intend(REQUEST)
    opened(store, 2).report()
    cleared = opened(store, 3, 4)
    cleared.intend(REQUEST)
    cleared.withdraw()
    assert isinstance(opened(store, 4, 4).next_step(REQUEST), Submit)


def test_credits_of_failed_images_add_up_until_a_clear(store: Store) -> None:
    for try_number, cost in ((1, 5), (2, None), (3, 2.5)):
        ledger = opened(store, try_number)
        step = ledger.next_step(REQUEST)
        assert isinstance(step, Submit)
        ledger.intend(REQUEST, step.spent)
        ledger.accept(f"n{try_number}")
        ledger.fail(failed(cost))
    assert opened(store, 4).next_step(REQUEST) == Submit(7.5)
    assert opened(store, 4).spent == 7.5
    assert opened(store, 4, 6).next_step(REQUEST) == Submit(0)


def test_a_failure_without_a_snapshot_adds_no_credits(store: Store) -> None:
    submitted(store).fail(QwenImageTaskFailedError("failed"))
    assert opened(store, 2).next_step(REQUEST) == Submit(0)


def test_a_refused_prompt_is_submitted_again_only_after_a_clear(store: Store) -> None:
    submitted(store).fail(failed(0, "Content policy violation detected"))
    step = opened(store, 2).next_step(REQUEST)
    assert isinstance(step, Stop)
    assert "Content policy violation detected" in str(step.error)
    assert opened(store, 2, 4).next_step(REQUEST) == Submit()


def test_an_image_is_counted_once_over_all_tries(store: Store) -> None:
    assert submitted(store).count()
    for max_tries in (2, 4):
        again = opened(store, 2, max_tries)
        assert isinstance(again.next_step(REQUEST), Resume)
        assert not again.count()
    new = opened(store, 3)
    new.intend(REQUEST)
    new.accept("n44")
    assert new.count()
    assert not new.count()


def test_an_image_that_was_never_submitted_is_counted_but_not_recorded(store: Store) -> None:
    assert opened(store).count()
    opened(store).finish()
    opened(store).record_failed_resume()
    assert store.read() is None


def test_a_clear_after_a_finished_submission_submits_again(store: Store) -> None:
    submitted(store).finish()
    assert opened(store, 2, 4).next_step(REQUEST) == Submit()


class FaultyStore(NoStore):
    """A store whose next `failures` writes fail."""

    def __init__(self) -> None:
        self.failures = 0
        self.content: dict[str, Any] | None = None

    def read(self) -> object:
        return self.content

    def write(self, value: dict[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("The disk is full.")
        self.content = value


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> FaultyStore:
    monkeypatch.setattr(ledger_module, "_WRITE_PAUSE_SECONDS", 0.0)
    return FaultyStore()


def test_an_intent_that_cannot_be_recorded_is_an_error(faulty: FaultyStore) -> None:
    faulty.failures = 1
    with pytest.raises(OSError, match="The disk is full"):
        opened(faulty).intend(REQUEST)
    assert opened(faulty, 2).next_step(REQUEST) == Submit()


@pytest.mark.parametrize("failures", [1, 2])
def test_recording_a_paid_id_is_retried(faulty: FaultyStore, failures: int, caplog: pytest.LogCaptureFixture) -> None:
    ledger = opened(faulty)
    ledger.intend(REQUEST)
    faulty.failures = failures
    ledger.accept("n43")
    assert isinstance(opened(faulty, 2).next_step(REQUEST), Resume)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * failures
    assert "trying again: The disk is full." in caplog.text


def test_a_paid_id_that_cannot_be_recorded_is_an_error_and_its_intent_stays_recorded(faulty: FaultyStore) -> None:
    ledger = opened(faulty)
    ledger.intend(REQUEST)
    faulty.failures = 3
    with pytest.raises(OSError, match="The disk is full"):
        ledger.accept("n43")
    assert isinstance(opened(faulty, 2).next_step(REQUEST), Stop)


def test_a_change_that_cannot_be_recorded_has_no_effect(faulty: FaultyStore) -> None:
    ledger = opened(faulty)
    ledger.intend(REQUEST)
    for change in (ledger.record_failed_resume, ledger.report, lambda: ledger.fail(failed(5))):
        faulty.failures = 1
        with pytest.raises(OSError, match="The disk is full"):
            change()
    assert ledger.spent == 0
    assert isinstance(ledger.next_step(REQUEST), Stop)


def test_without_a_store_nothing_is_recorded() -> None:
    ledger = submitted(NoStore())
    assert not ledger.remembers
    ledger.finish()
    ledger.report()
    assert opened(NoStore(), 2).next_step(REQUEST) == Submit()


def test_a_ledger_without_a_store_knows_the_spent_credits_within_its_process() -> None:
    ledger = submitted(NoStore())
    ledger.fail(failed(5))
    assert ledger.spent == 5
    assert ledger.count()
    assert not ledger.count()

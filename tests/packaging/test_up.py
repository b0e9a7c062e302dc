"""`make up` reports each example that failed or did not end, with where to read why."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import up
from scripts.progress import Progress


class Airflow:
    """Answers for Airflow's API with runs that end as their DAG's name says."""

    def dag_ids(self) -> list[str]:
        return ["success", "failed", "running", "run before", "success of an asset", "never started"]

    def scheduled_dag_ids(self) -> list[str]:
        return ["success of an asset", "never started"]

    def first_run(self, dag_id: str) -> str | None:
        if dag_id == "success of an asset" and self.asked_for_states:
            return "asset_triggered__2026-01-01T00:00:00+00:00"
        return ""

    def run_once(self, dag_id: str) -> str | None:
        assert dag_id not in self.scheduled_dag_ids()
        return None if dag_id == "run before" else "manual__2026-01-01T00:00:00+00:00"

    asked_for_states = 0

    def run_state(self, dag_id: str, run_id: str) -> str:
        self.asked_for_states += 1
        return dag_id.partition(" ")[0]

    def totals(self) -> tuple[int, float]:
        return 1, 5.0


def test_what_failed_or_still_runs_is_reported_with_its_log(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_EXAMPLES_SECONDS", 1.2)
    unsuccessful = up._run_examples(Airflow(), Progress())
    up._report(unsuccessful, 8080, Path("/logs"))
    shown = capsys.readouterr().out
    assert "2 of 4 runs succeeded, 1 images, 5 credits" in shown
    assert "The example failed failed.\n  Run     http://127.0.0.1:8080/dags/failed/runs/manual__2026-01-01T00" in shown
    assert "  Logs    /logs/dag_id=failed/run_id=manual__2026-01-01T00:00:00+00:00\n" in shown
    assert "The example running has not ended after 1 s; it may be retrying." in shown
    assert "The example never started has not been started by its asset after 1 s." in shown
    assert "dag_id=success" not in shown


class AirflowAgain(Airflow):
    def run_once(self, dag_id: str) -> str | None:
        return None


def test_a_second_start_waits_for_no_example() -> None:
    airflow = AirflowAgain()
    assert up._run_examples(airflow, Progress()) == {}
    assert airflow.asked_for_states == 0

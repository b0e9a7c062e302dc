"""A running Airflow, started once, in which people answer over Airflow's REST API."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_qwenimage
from airflow_provider_qwenimage.contract import GenerateRequest
from airflow_provider_qwenimage.hooks import QwenImageHook
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage.images import save_images
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.airflows import AIRFLOW
from tests.answering import answer_to
from tests.integration.standalone import StandaloneAirflow, wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(AIRFLOW < (3, 1), reason="Airflow 3.1 and later can ask a person"),
]

_SECRET = secrets.token_hex(32)
# No event takes this long, unless it never happens.
_PATIENCE_SECONDS = 200
# The scheduler takes a task that ended its wait sooner for a crashed one; nobody reads a question that fast.
_READING_SECONDS = 3
_DAGS = '''
import json
import os
import signal
from datetime import timedelta
from pathlib import Path

from airflow.sdk import dag, task

from airflow_provider_qwenimage import QwenImageChooseOperator

HERE = Path(__file__).parent


class Crashing(QwenImageChooseOperator):
    """Its process is killed after it was answered."""

    def execute_complete(self, context, event=None):
        taken = super().execute_complete(context, event)
        if context["ti"].try_number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return taken


@task
def list_images():
    return json.loads((HERE / "images.json").read_text())


@task
def use(chosen):
    return [path for each in chosen for path in each["paths"]]


def choosing(dag_id, operator=QwenImageChooseOperator, **arguments):
    @dag(dag_id=dag_id, schedule=None)
    def build():
        chosen = operator(task_id="choose", images=list_images(), subject="Which?", **arguments)
        use(chosen.output)

    build()


choosing("pick")
choosing("assigned", assigned_users={"id": "user", "name": "User"})
choosing("with_defaults", at_most=3, defaults=[2, 3], response_timeout=1)
choosing("without_defaults", response_timeout=timedelta(seconds=1))
choosing("crashing", Crashing, retries=1, retry_delay=timedelta(0))
'''


@dataclass
class People:
    """People who answer the tasks of an Airflow."""

    airflow: StandaloneAirflow
    images: Sequence[dict[str, Any]]

    def ask(self, dag_id: str, images: Sequence[dict[str, Any]] | None = None) -> str:
        """Start a run with these images, four by default, and return its id."""
        self.offer(self.images[:4] if images is None else images)
        return self.airflow.trigger(dag_id, {})

    def offer(self, images: Sequence[dict[str, Any]]) -> None:
        (self.airflow.dags / "images.json").write_text(json.dumps(images))

    def wait_until_asked(self, dag_id: str, run_id: str) -> None:
        """Wait until the task waits for an answer that it does not have."""

        def is_asked() -> bool:
            state = self.airflow.states(dag_id, run_id)["choose", -1]
            return state in ("awaiting_input", "deferred") and not self.request(dag_id, run_id)["response_received"]

        wait_for(f"the question of {dag_id}", is_asked, _PATIENCE_SECONDS)
        time.sleep(_READING_SECONDS)

    def request(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return self.airflow.hitl_detail(dag_id, run_id, "choose")

    def answer(self, dag_id: str, run_id: str, *numbers: int, role: str = "ADMIN") -> int:
        """Answer as the gallery does, and return the HTTP status."""
        request = self.request(dag_id, run_id)
        body = answer_to(request["options"], numbers, multiple=request["multiple"])
        return self.airflow.answer(dag_id, run_id, "choose", body, token_of(role))

    def pushed(self, dag_id: str, run_id: str, key: str) -> Any:
        return self.airflow.pushed(dag_id, run_id, "choose", key)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    home = tmp_path_factory.mktemp("airflow")
    folder = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch, Sandbox(seconds_per_image=0) as sandbox:
        patch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", sandbox.connection_json)
        with QwenImageHook() as hook:
            images = [_stored(hook, folder, seed) for seed in range(6)]
    settings = {
        "AIRFLOW__API_AUTH__JWT_SECRET": _SECRET,
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "False",
        "AIRFLOW__SCHEDULER__TRIGGER_TIMEOUT_CHECK_INTERVAL": "1",
    }
    airflow = StandaloneAirflow(home, Path(airflow_provider_qwenimage.__file__).parents[1], settings)
    (airflow.dags / "choosing.py").write_text(_DAGS)
    airflow.use_token(token_of("ADMIN"))
    airflow.prepare("{}")
    try:
        airflow.start("pick", "assigned", "with_defaults", "without_defaults", "crashing")
        yield People(airflow, images)
    finally:
        airflow.stop()


def token_of(role: str) -> str:
    """Return a token of a user who is named as the role is."""
    from airflow.api_fastapi.auth.tokens import JWTGenerator

    generator = JWTGenerator(secret_key=_SECRET, audience="apache-airflow", valid_for=3600)
    return generator.generate({"sub": role.lower(), "role": role})


def _stored(hook: QwenImageHook, folder: Path, seed: int) -> dict[str, Any]:
    """Store an image, and return what `QwenImageGenerateOperator` returns about it."""
    request = GenerateRequest(prompt="A tin robot", seed=seed)
    snapshot = hook.wait_for_completion(hook.submit(request), poll_interval=0.05)
    (file,) = save_images(snapshot, ImageIdentity(request), open_output_path(str(folder)))
    return {
        "task_id": snapshot.task_id,
        "status": "SUCCESS",
        "image_urls": list(snapshot.image_urls),
        "paths": [file.path],
        "consumed_credits": 5,
        "seed": seed,
        "size": request.size,
        "output_format": request.output_format,
        "reused": False,
    }


def _verdicts(image: dict[str, Any]) -> list[Any]:
    sidecar = json.loads(Path(image["paths"][0].removeprefix("file://")).with_suffix(".json").read_text())
    return list(sidecar.get("verdicts", []))


def test_what_is_chosen_goes_downstream_and_a_cleared_task_offers_what_is_there_now(people: People) -> None:
    run_id = people.ask("pick")
    people.wait_until_asked("pick", run_id)
    first = people.request("pick", run_id)
    assert first["options"] == ["1", "2", "3", "4"]
    assert first["multiple"] is False
    assert "candidates/4?map_index=-1" in first["body"]
    assert people.answer("pick", run_id, 3) == 200
    people.airflow.wait_for_run("pick", run_id, _PATIENCE_SECONDS)

    (chosen,) = people.airflow.returned("pick", run_id, "choose")
    assert chosen == people.images[2]
    assert people.airflow.returned("pick", run_id, "use") == people.images[2]["paths"]
    verdict = people.pushed("pick", run_id, "verdict")
    assert verdict["chosen"] == [3]
    assert verdict["by"] == {"id": "admin", "name": "admin"}
    assert verdict["timed_out"] is False
    task = {"dag_id": "pick", "run_id": run_id, "task_id": "choose", "map_index": -1}
    mine = [[entry for entry in _verdicts(image) if entry["task"] == task] for image in people.images[:4]]
    assert [entry["chosen"] for (entry,) in mine] == [False, False, True, False]
    assert mine[2][0] == {"chosen": True, **{name: verdict[name] for name in ("by", "at", "timed_out")}, "task": task}

    # More images, in another order.
    people.offer(people.images[::-1])
    people.airflow.clear("pick", run_id)
    people.wait_until_asked("pick", run_id)
    assert [each["seed"] for each in people.pushed("pick", run_id, "candidates")] == [5, 4, 3, 2, 1, 0]
    # Before Airflow 3.4, the first request is kept.
    kept = first["options"] if AIRFLOW < (3, 4) else ["1", "2", "3", "4", "5", "6"]
    assert people.request("pick", run_id)["options"] == kept
    assert people.answer("pick", run_id, 6) == 200
    people.airflow.wait_for_run("pick", run_id, _PATIENCE_SECONDS)
    assert people.airflow.returned("pick", run_id, "choose") == [people.images[0]]
    mine = [[entry for entry in _verdicts(image) if entry["task"] == task] for image in people.images]
    assert [entry["chosen"] for (entry,) in mine] == [True, *[False] * 5]


def test_an_answer_that_does_not_fit_is_asked_for_again(people: People) -> None:
    run_id = people.ask("pick")
    people.wait_until_asked("pick", run_id)
    assert people.answer("pick", run_id, 1, 2, 9) == 200
    wait_for("the problem", lambda: people.pushed("pick", run_id, "question")["problem"], _PATIENCE_SECONDS)
    assert (
        people.pushed("pick", run_id, "question")["problem"]
        == "There is no candidate 9; the candidates have the numbers 1 to 4."
    )
    people.wait_until_asked("pick", run_id)
    assert people.answer("pick", run_id, 1) == 200
    people.airflow.wait_for_run("pick", run_id, _PATIENCE_SECONDS)
    assert people.airflow.returned("pick", run_id, "choose") == [people.images[0]]
    # It took none of its tries for that.
    assert people.airflow.tasks("pick", run_id)["choose", -1]["try_number"] == 1


def test_who_may_answer_is_decided_by_airflow(people: People) -> None:
    run_id = people.ask("assigned")
    people.wait_until_asked("assigned", run_id)
    assert people.answer("assigned", run_id, 1, role="ADMIN") == 403
    assert people.answer("assigned", run_id, 1, role="VIEWER") == 403
    assert people.answer("assigned", run_id, 1, role="USER") == 200
    people.airflow.wait_for_run("assigned", run_id, _PATIENCE_SECONDS)
    assert people.pushed("assigned", run_id, "verdict")["by"] == {"id": "user", "name": "user"}


def test_the_defaults_are_chosen_after_the_timeout_and_without_them_the_task_fails(people: People) -> None:
    runs = {dag_id: people.ask(dag_id) for dag_id in ("with_defaults", "without_defaults")}
    for dag_id, run_id in runs.items():
        people.airflow.wait_for_run(dag_id, run_id, _PATIENCE_SECONDS)
    assert people.airflow.returned("with_defaults", runs["with_defaults"], "choose") == people.images[1:3]
    verdict = people.pushed("with_defaults", runs["with_defaults"], "verdict")
    assert (verdict["chosen"], verdict["by"], verdict["timed_out"]) == ([2, 3], None, True)
    assert people.airflow.states("without_defaults", runs["without_defaults"])["choose", -1] == "failed"
    error = people.pushed("without_defaults", runs["without_defaults"], "error")
    assert error["error"] == "HITLTimeoutError"
    assert "Clear it to ask again" in error["message"]


def _killed_after_its_answer(people: People) -> str:
    """Return the id of a run in which the first try was answered, and killed."""
    run_id = people.ask("crashing")
    people.wait_until_asked("crashing", run_id)
    assert people.answer("crashing", run_id, 2) == 200
    wait_for(
        "the second try",
        lambda: people.airflow.tasks("crashing", run_id)["choose", -1]["try_number"] == 2,
        _PATIENCE_SECONDS,
    )
    return run_id


@pytest.mark.airflow_feature("choosing", "yes")
def test_a_try_that_is_killed_after_its_answer_does_not_ask_again(people: People) -> None:
    run_id = _killed_after_its_answer(people)
    people.airflow.wait_for_run("crashing", run_id, _PATIENCE_SECONDS)
    assert people.airflow.returned("crashing", run_id, "choose") == [people.images[1]]


@pytest.mark.airflow_feature("choosing", "in the triggerer")
def test_a_retry_asks_again_if_nothing_outlives_the_try(people: People) -> None:
    run_id = _killed_after_its_answer(people)
    people.wait_until_asked("crashing", run_id)
    assert people.answer("crashing", run_id, 3) == 200
    people.airflow.wait_for_run("crashing", run_id, _PATIENCE_SECONDS)
    assert people.airflow.returned("crashing", run_id, "choose") == [people.images[2]]

"""A running Airflow with scheduler, triggerer and workers, started once. The last test searches it for the key."""

import base64
import contextlib
import json
import secrets
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import requests
from PIL import Image

import airflow_provider_qwenimage
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import AIRFLOW, AIRFLOW_3
from tests.events import finish_images
from tests.integration.dag_runs import WAITS
from tests.integration.standalone import StandaloneAirflow, wait_for
from tests.same_answer import SameAnswer
from tests.traces import TraceServer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not AIRFLOW_3, reason="starts Airflow 3"),
]

# With characters that base64 and URLs encode differently, so that the search covers those forms.
_API_KEY = f"sk-leaktest-{secrets.token_hex(8)}+/=&"
_WRONG_KEY = f"sk-leakwrong-{secrets.token_hex(8)}+/=&"

_SENSE = """
import datetime
import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageStatusSensor

WAITS = {waits!r}
# The default interval would take longer than the rest of this module.
SECONDS = {{"poke_interval": 2}}

with DAG(
    "sense",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1),
    params={params!r},
    # Limits the processes that run at once: see `_end`.
    max_active_tasks=5,
    default_args={{"retries": {retries}, "retry_delay": datetime.timedelta(0)}} | SECONDS,
):
    for wait, arguments in WAITS.items():
        for case in ("success", "failed"):
            QwenImageStatusSensor(
                task_id=f"{{case}}_{{wait}}",
                image_task_id=f"{{{{{{{{ params.{{case}}_{{wait}} }}}}}}}}",
                **arguments,
            )
        QwenImageStatusSensor(
            task_id=f"not_found_{{wait}}",
            image_task_id="n43nobodyknowsqwenimg",
            max_consecutive_failures=1,
            retries=0,
            **arguments,
        )
        QwenImageStatusSensor(
            task_id=f"wrong_key_{{wait}}",
            image_task_id=f"{{{{{{{{ params.success_{{wait}} }}}}}}}}",
            qwenimage_conn_id="wrong_key",
            max_consecutive_failures=1,
            retries=0,
            **arguments,
        )
        QwenImageStatusSensor(
            task_id=f"flaky_{{wait}}",
            image_task_id=f"{{{{{{{{ params.flaky_{{wait}} }}}}}}}}",
            qwenimage_conn_id=f"flaky_{{wait}}",
            **arguments,
        )
        QwenImageStatusSensor(
            task_id=f"deadline_{{wait}}",
            image_task_id="{{{{ params.endless }}}}",
            qwenimage_conn_id="endless",
            timeout=10,
            **arguments,
        )
"""

_DRAW = """
import datetime
import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageGenerateOperator, QwenImageStatusSensor

with DAG(
    "draw",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1),
    default_args={{"retries": 2, "retry_delay": datetime.timedelta(0)}},
):
    submit = QwenImageGenerateOperator.partial(task_id="submit", qwenimage_conn_id="quick").expand(
        prompt=["One boat", "Two boats"]
    )
    QwenImageStatusSensor.partial(task_id="sense", qwenimage_conn_id="quick", poke_interval=1).expand(
        image_task_id=submit.output
    )
    QwenImageGenerateOperator.partial(
        task_id="draw", qwenimage_conn_id="quick", output_path={folder!r}, deferrable=True, seed=3, poll_interval=1
    ).expand(prompt=["A tin robot", "A paper moon"])
    QwenImageGenerateOperator(
        task_id="refused",
        prompt="A celebrity [policy]",
        qwenimage_conn_id="quick",
        output_path={folder!r},
        deferrable=True,
        poll_interval=1,
    )
    QwenImageGenerateOperator(task_id="wrong_key", prompt="A kite", qwenimage_conn_id="wrong_key")
"""

_CROWD = """
import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageStatusSensor

with DAG("crowd", schedule=None, start_date=pendulum.datetime(2024, 1, 1), params={{"image_task_ids": []}}):
    for number in range({waits!r}):
        QwenImageStatusSensor(
            task_id=f"wait_{{number}}",
            image_task_id=f"{{{{{{{{ params.image_task_ids[{{number}}] }}}}}}}}",
            qwenimage_conn_id="crowd",
            poke_interval=1,
            timeout=3600,
        )
"""

_OUTLAST = """
import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageStatusSensor

with DAG("outlast", schedule=None, start_date=pendulum.datetime(2024, 1, 1), params={{"slow": "", "endless": ""}}):
    QwenImageStatusSensor(
        task_id="finishes",
        image_task_id="{{{{ params.slow }}}}",
        qwenimage_conn_id="slow",
        poke_interval={pace!r},
        timeout=3600,
    )
    QwenImageStatusSensor(
        task_id="times_out",
        image_task_id="{{{{ params.endless }}}}",
        qwenimage_conn_id="endless",
        poke_interval={pace!r},
        timeout={timeout!r},
    )
"""

_ODD = """
import pendulum
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_qwenimage import QwenImageStatusSensor

with DAG("odd", schedule=None, start_date=pendulum.datetime(2024, 1, 1)):
    QwenImageStatusSensor(
        task_id="wait", image_task_id="n43odd", qwenimage_conn_id="odd", poke_interval=1, timeout=3600
    )

with DAG("beside", schedule=None, start_date=pendulum.datetime(2024, 1, 1), params={"image_task_id": ""}):
    QwenImageStatusSensor(
        task_id="wait",
        image_task_id="{{ params.image_task_id }}",
        qwenimage_conn_id="beside",
        poke_interval=1,
        timeout=3600,
    )
"""

_TIMEOUT_SECONDS = 20.0
_PACE_SECONDS = 1.0
_CROWD_WAITS = 5
# The number of images that the DAG "draw" submits.
_DRAWN = 5
# No test needs a retry; these replace the tries that Airflow counts by mistake, see `_end`.
_RETRIES = 20


@dataclass(frozen=True)
class World:
    """A running Airflow and the sandbox APIs of its connections, by connection id."""

    airflow: StandaloneAirflow
    apis: dict[str, Sandbox]
    odd_api: SameAnswer
    folder: Path
    traces: TraceServer

    def submit(self, conn_id: str, prompt: str = "A boat") -> str:
        """Submit an image without Airflow, and return its image task id."""
        answer = requests.post(
            f"{self.apis[conn_id].url}/api/generate",
            json={"prompt": prompt},
            headers={"Authorization": f"Bearer {_API_KEY}"},
            timeout=60,
        )
        return str(answer.json()["data"]["task_id"])

    def polls(self, conn_id: str) -> Counter[str | None]:
        """Return the number of successful polls of each image task."""
        requests_seen = self.apis[conn_id].requests
        return Counter(
            request.task_id for request in requests_seen if request.route == "status" and request.code == 200
        )


@dataclass(frozen=True)
class Finished:
    """The ids of the finished runs of the DAGs "sense" and "draw"."""

    sense: str
    draw: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home, folder = tmp_path_factory.mktemp("airflow"), tmp_path_factory.mktemp("images")
    traces = TraceServer()
    settings = traces.settings if AIRFLOW >= (3, 2) else {}
    airflow = StandaloneAirflow(home, Path(airflow_provider_qwenimage.__file__).parents[1], settings)
    params = dict.fromkeys(
        ["endless", *(f"{case}_{wait}" for case in ("success", "failed", "flaky") for wait in WAITS)]
    )
    sense = _SENSE.format(waits=WAITS, params=params, retries=_RETRIES)
    (airflow.dags / "sense.py").write_text(sense)
    (airflow.dags / "draw.py").write_text(_DRAW.format(folder=str(folder)))
    (airflow.dags / "crowd.py").write_text(_CROWD.format(waits=_CROWD_WAITS))
    (airflow.dags / "odd.py").write_text(_ODD)
    (airflow.dags / "outlast.py").write_text(_OUTLAST.format(timeout=_TIMEOUT_SECONDS, pace=_PACE_SECONDS))
    # The tests finish these images themselves, except the endless one.
    seconds_per_image = dict.fromkeys(("endless", "slow", "quick", "watched", "crowd", "beside"), 3600.0)
    seconds_per_image |= {f"flaky_{wait}": 0.5 for wait in WAITS}
    with contextlib.ExitStack() as stack:
        apis = {
            conn_id: stack.enter_context(Sandbox(api_keys=(_API_KEY,), seconds_per_image=seconds))
            for conn_id, seconds in seconds_per_image.items()
        }
        connections = {
            conn_id: {"conn_type": "qwenimage", "host": api.url, "password": _API_KEY} for conn_id, api in apis.items()
        }
        odd_api = stack.enter_context(SameAnswer())
        connections["odd"] = {"conn_type": "qwenimage", "host": odd_api.url, "password": _API_KEY}
        connections["qwenimage_default"] = connections["watched"]
        connections["wrong_key"] = connections["watched"] | {"password": _WRONG_KEY}
        stack.enter_context(traces)
        airflow.prepare(json.dumps(connections))
        stack.callback(airflow.stop)
        airflow.start("sense", "draw", "crowd", "odd", "beside", "outlast")
        yield World(airflow, apis, odd_api, folder, traces)


@pytest.fixture(scope="module")
def finished(world: World) -> Finished:
    for wait in WAITS:
        world.apis[f"flaky_{wait}"].script("status", ("server_error", 5))
    watched = {f"success_{wait}": world.submit("watched") for wait in WAITS}
    watched |= {f"failed_{wait}": world.submit("watched", "Fog [fail]") for wait in WAITS}
    others = {conn_id: world.submit(conn_id) for conn_id in ("endless", *(f"flaky_{wait}" for wait in WAITS))}
    sense = world.airflow.trigger("sense", watched | others)
    # The worker makes the first poll of each image; from the second on, the sensor waits in its own mode.
    _finish_after_polls(world, "watched", len(watched))
    draw = world.airflow.trigger("draw", {})
    _finish_after_polls(world, "quick", _DRAWN)
    for dag_id, run_id in {"sense": sense, "draw": draw}.items():
        world.airflow.wait_for_run(dag_id, run_id)
    return Finished(sense, draw)


def _finish_after_polls(world: World, conn_id: str, images: int) -> None:
    """Finish the images of an API once each was polled twice."""
    wait_for(
        f"two polls of each image of {conn_id}",
        lambda: sum(polls >= 2 for polls in world.polls(conn_id).values()) == images,
    )
    finish_images(world.apis[conn_id])


def _end(world: World, finished: Finished, task_id: str) -> tuple[str, int]:
    """Return the state of a sensor, and how often it failed.

    The number of tries is less reliable: on a busy machine the scheduler may read the message that a task was
    rescheduled only after the task is queued again, mistake it for a crash, and count a try, several times in a row.
    A failure in such an additional try is not the sensor's.
    """
    state = world.airflow.tasks("sense", finished.sense)[task_id, -1]["state"]
    log = world.airflow.log("sense", finished.sense, task_id)
    failures = log.count("Task failed with exception")
    if failures > 1:
        mistaken = world.airflow.mistaken_crashes("sense", finished.sense, task_id)
        # If one try started two processes, Airflow ends the first, which may have failed by then.
        mistaken += log.count("Server indicated the task shouldn't be running anymore")
        assert failures <= 1 + mistaken, f"{failures} failures, {mistaken} by Airflow's mistake:\n{log}"
        failures = 1
    return state, failures


def test_a_mistake_of_the_scheduler_is_found(world: World, finished: Finished) -> None:
    fields = {"dag_id": "sense", "task_id": "imagined", "run_id": finished.sense, "event": "state mismatch"}
    with contextlib.closing(sqlite3.connect(world.airflow.database, timeout=60)) as database, database:
        database.execute(
            "INSERT INTO log (dttm, dag_id, task_id, run_id, map_index, event) "
            "VALUES (datetime('now'), :dag_id, :task_id, :run_id, -1, :event)",
            fields,
        )
    assert world.airflow.mistaken_crashes("sense", finished.sense, "imagined") == 1


in_every_mode = pytest.mark.parametrize("wait", WAITS)


@in_every_mode
def test_a_sensor_returns_the_urls_of_an_image(world: World, finished: Finished, wait: str) -> None:
    assert _end(world, finished, f"success_{wait}") == ("success", 0)
    (url,) = world.airflow.returned("sense", finished.sense, f"success_{wait}")
    assert requests.get(url, timeout=60).headers["Content-Type"] == "image/jpeg"


@in_every_mode
def test_a_sensor_fails_at_once_with_the_reason_of_a_failed_image(world: World, finished: Finished, wait: str) -> None:
    assert _end(world, finished, f"failed_{wait}") == ("failed", 1)
    assert "The image could not be drawn" in world.airflow.log("sense", finished.sense, f"failed_{wait}")


@in_every_mode
def test_a_sensor_fails_on_an_unknown_image_task_after_the_allowed_reads(
    world: World, finished: Finished, wait: str
) -> None:
    assert _end(world, finished, f"not_found_{wait}") == ("failed", 1)
    assert "code 404" in world.airflow.log("sense", finished.sense, f"not_found_{wait}")


@in_every_mode
def test_a_sensor_fails_at_once_on_a_wrong_key(world: World, finished: Finished, wait: str) -> None:
    assert _end(world, finished, f"wrong_key_{wait}") == ("failed", 1)
    assert "code 401" in world.airflow.log("sense", finished.sense, f"wrong_key_{wait}")


@in_every_mode
def test_a_sensor_survives_an_api_that_fails_five_times(world: World, finished: Finished, wait: str) -> None:
    assert _end(world, finished, f"flaky_{wait}") == ("success", 0)
    requests_seen = world.apis[f"flaky_{wait}"].requests
    codes = [request.code for request in requests_seen if request.route == "status"]
    # A try that Airflow counts by mistake, see `_end`, may start after the end and poll once more.
    tries = world.airflow.tasks("sense", finished.sense)[f"flaky_{wait}", -1]["try_number"]
    assert codes[:6] == [500] * 5 + [200]
    assert codes[6:] == [200] * len(codes[6:])
    assert len(codes[6:]) < tries


@in_every_mode
def test_a_sensor_fails_without_a_retry_at_its_deadline(world: World, finished: Finished, wait: str) -> None:
    assert _end(world, finished, f"deadline_{wait}") == ("failed", 1)
    assert "SensorTimeout" in world.airflow.log("sense", finished.sense, f"deadline_{wait}")


def test_each_mapped_sensor_waits_for_its_own_submission(world: World, finished: Finished) -> None:
    for index in (0, 1):
        task_id = world.airflow.returned("draw", finished.draw, "submit", index)
        (url,) = world.airflow.returned("draw", finished.draw, "sense", index)
        assert task_id in url


def test_deferred_operators_store_an_image_for_each_mapped_prompt(world: World, finished: Finished) -> None:
    names = []
    for index in (0, 1):
        result = world.airflow.returned("draw", finished.draw, "draw", index)
        (path,) = result["paths"]
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.size) == ("JPEG", (1024, 1024))
        sidecar = json.loads(Path(path).with_suffix(".json").read_text())
        assert sidecar["task_id"] == result["task_id"]
        names.append(Path(path).name.rsplit("-", 1)[0])
    assert names == ["a-tin-robot", "a-paper-moon"]
    assert len(list(world.folder.iterdir())) == 4


@pytest.mark.skipif(AIRFLOW < (3, 2), reason="this Airflow gives a task no span")
def test_a_deferred_image_leaves_its_spans_below_those_of_the_worker_and_the_trigger(
    world: World, finished: Finished
) -> None:
    task_id = world.airflow.returned("draw", finished.draw, "draw", 0)["task_id"]

    def names_below(name: str) -> list[str]:
        below = world.traces.below(name)
        return sorted(span.name for span in below if span.attributes.get("qwenimage.task_id") == task_id)

    steps = ["download", "store", "submit", "verify", "wait"]
    wait_for(
        "the spans of the worker", lambda: names_below("worker.draw[0]") == [f"qwenimage.{step}" for step in steps]
    )
    wait_for("the span of the trigger", lambda: names_below("trigger.draw_0") == ["qwenimage.wait"])
    (waited,) = (span for span in world.traces.below("trigger.draw_0") if span.name == "qwenimage.wait")
    assert waited.attributes["qwenimage.credits"] == 5
    # All of one run are in one trace.
    assert len({span.trace for name in ("worker.draw[0]", "trigger.draw_0") for span in world.traces.below(name)}) == 1


def test_every_image_was_submitted_once(world: World, finished: Finished) -> None:
    prompts = sorted(submission.request["prompt"] for submission in world.apis["quick"].submissions)
    assert prompts == ["A celebrity [policy]", "A paper moon", "A tin robot", "One boat", "Two boats"]


@pytest.mark.parametrize("task_id", ["refused", "wrong_key"])
def test_an_error_that_a_retry_cannot_fix_is_not_retried(world: World, finished: Finished, task_id: str) -> None:
    assert world.airflow.tasks("draw", finished.draw)[task_id, -1]["state"] == "failed"
    assert world.airflow.log("draw", finished.draw, task_id).count("Task failed with exception") == 1


def test_deferred_waits_use_no_slot_and_survive_a_killed_triggerer(world: World, finished: Finished) -> None:
    airflow = world.airflow
    ids = {"slow": world.submit("slow"), "endless": world.submit("endless")}
    run_id = airflow.trigger("outlast", ids)

    def all_deferred() -> bool:
        return set(airflow.states("outlast", run_id).values()) == {"deferred"}

    wait_for("the deferral", all_deferred)
    pool = airflow.pool()
    assert (pool["deferred_slots"], pool["running_slots"], pool["occupied_slots"]) == (2, 0, 0)

    # Enough polls to take longer than the last poll may be late.
    wait_for("polls of a triggerer", lambda: all(world.polls(name)[ids[name]] >= 5 for name in ids))
    airflow.kill_triggerer()
    killed_at = time.time()
    airflow.start_triggerer()
    wait_for("a poll of both", lambda: all(_poll_times(world, name, killed_at) for name in ids))
    finish_images(world.apis["slow"])
    airflow.wait_for_run("outlast", run_id)

    assert airflow.states("outlast", run_id) == {("finishes", -1): "success", ("times_out", -1): "failed"}
    tasks = airflow.tasks("outlast", run_id)
    assert [task["try_number"] for task in tasks.values()] == [1, 1]
    assert "SensorTimeout" in airflow.log("outlast", run_id, "times_out")
    # The last poll is made at the deadline, or at once if the deadline has passed. If the deadline restarted with the
    # new triggerer, it would poll more often, and longer.
    polls = _poll_times(world, "endless", killed_at)
    assert len(polls) == 1 or polls[-1] < killed_at + _TIMEOUT_SECONDS


def _poll_times(world: World, conn_id: str, since: float) -> list[float]:
    return [request.time for request in world.apis[conn_id].requests if request.code and request.time > since]


def test_an_odd_answer_to_one_wait_ends_neither_the_triggerer_nor_the_waits_of_another_dag(world: World) -> None:
    airflow, api = world.airflow, world.odd_api
    data = {"task_id": "n43odd", "status": "IN_PROGRESS"}
    api.answer({"code": 200, "message": "success", "data": data})
    odd = airflow.trigger("odd", {})
    image_task_id = world.submit("beside")
    beside = airflow.trigger("beside", {"image_task_id": image_task_id})
    # The worker makes the first poll of each image, before the task is deferred.
    wait_for("polls of a triggerer", lambda: api.requests >= 2 and world.polls("beside")[image_task_id] >= 2)

    half = "a fox \ud83d\x00"
    api.answer(
        {
            "code": 200,
            "message": half,
            "data": data
            | {
                "status": "SUCCESS",
                "consumed_credits": 10**31,
                "error_message": half,
                "request": {"prompt": half, half: float("nan")},
                "response": ["https://cdn.example.com/fox.png"],
                "queue": [10**31, float("inf"), half],
            },
        }
    )
    airflow.wait_for_run("odd", odd)
    assert airflow.returned("odd", odd, "wait") == ["https://cdn.example.com/fox.png"]
    finish_images(world.apis["beside"])
    airflow.wait_for_run("beside", beside)
    assert set(airflow.states("beside", beside).values()) == {"success"}


def test_all_waits_of_a_connection_share_a_client_in_a_triggerer(world: World) -> None:
    ids = [world.submit("crowd") for _ in range(_CROWD_WAITS)]
    run_id = world.airflow.trigger("crowd", {"image_task_ids": ids})

    def ports_in_triggerer() -> dict[str, list[int | None]]:
        ports: dict[str, list[int | None]] = {image_task_id: [] for image_task_id in ids}
        for request in world.apis["crowd"].requests:
            if request.route == "status":
                ports[str(request.task_id)].append(request.client_port)
        # The worker makes the first poll of each image, before the task is deferred.
        return {image_task_id: found[1:] for image_task_id, found in ports.items()}

    def one_client() -> bool:
        """Whether the waits are all linked by connections that they share."""
        apart = [set(found) for found in ports_in_triggerer().values()]
        together = apart.pop()
        while reached := [ports for ports in apart if ports & together]:
            apart = [ports for ports in apart if not ports & together]
            together = together.union(*reached)
        return not apart

    wait_for(
        "polls over shared connections", lambda: min(map(len, ports_in_triggerer().values())) >= 5 and one_client()
    )
    finish_images(world.apis["crowd"])
    world.airflow.wait_for_run("crowd", run_id)
    assert set(world.airflow.states("crowd", run_id).values()) == {"success"}
    # The client opens another connection only if all of its connections are waiting for an answer.
    assert len(set().union(*ports_in_triggerer().values())) <= _CROWD_WAITS


def _forms(secret: str) -> list[bytes]:
    """Return a secret unchanged and encoded for URLs, for JSON and in base64 at each of its three offsets."""
    forms = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"x" * before + secret.encode()).decode()
            # The first and the last group also depend on the surrounding bytes.
            forms.add(encoded[4 if before else 0 : -4])
    # Without its last characters, which other encodings may drop or escape.
    forms.add(secret[:24])
    return [form.encode() for form in forms]


def test_the_api_key_appears_only_in_the_stored_connections(world: World, finished: Finished) -> None:
    """Search the database except the connections, all of Airflow's files, the folder of the images, and the traces."""
    airflow = world.airflow
    places: dict[str, bytes] = {}
    for number, (table, column, value) in enumerate(airflow.rows()):
        if table != "connection" and value is not None:
            places[f"{table}.{column}#{number}"] = value if isinstance(value, bytes) else str(value).encode()
    in_database = len(places)
    databases = {f"{airflow.database}{suffix}" for suffix in ("", "-wal", "-shm", "-journal")}
    for folder in (airflow.home, world.folder):
        for file in folder.rglob("*"):
            if file.is_file() and str(file) not in databases:
                places[str(file)] = file.read_bytes()

    places |= {f"trace {number}": body for number, body in enumerate(world.traces.bodies)}

    def where(needle: bytes) -> list[str]:
        return [place for place, content in places.items() if needle in content]

    # First check that the search works: an image task id is in XComs, logs and sidecars.
    task_id = world.airflow.returned("draw", finished.draw, "draw", 0)["task_id"].encode()
    found = where(task_id)
    assert any(place.startswith("xcom.") for place in found)
    assert any("/logs/" in place for place in found)
    assert any(place.endswith(".json") and place.startswith(str(world.folder)) for place in found)
    assert in_database > 1000

    for secret in (_API_KEY, _WRONG_KEY):
        for form in _forms(secret):
            assert where(form) == [], form

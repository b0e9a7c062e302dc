"""The operator in a DAG run: its return value, its stored files and its cost."""

import hashlib
import json
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from airflow_provider_qwenimage import QwenImageGenerateOperator
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.triggers import QwenImageStatusTrigger
from tests.airflows import AIRFLOW_3
from tests.integration.dag_runs import DagRun, TaskEnd, TestDag, dag_that_draws, stored_files

in_both_ways = pytest.mark.parametrize("deferrable", [False, True], ids=["in the worker", "deferred"])


def _run(dag: TestDag | None = None, **arguments: Any) -> DagRun:
    return dag_that_draws(dag, **arguments).run()


def _draw(**arguments: Any) -> TaskEnd:
    return _run(**arguments)["draw"]


def test_without_waiting_it_returns_and_pushes_the_task_id(connected_api: Sandbox) -> None:
    draw = _draw()

    (submission,) = connected_api.submissions
    assert draw.state == "success"
    assert draw.xcoms == {
        "request": submission.request,
        "task_id": submission.task_id,
        "return_value": submission.task_id,
    }
    assert [request.route for request in connected_api.requests] == ["generate"]


@in_both_ways
def test_waiting_returns_the_image_and_its_cost(
    connected_api: Sandbox, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    deferred = []
    run = QwenImageStatusTrigger.run

    def note(self: QwenImageStatusTrigger) -> Any:
        deferred.append(self.image_task_id)
        return run(self)

    monkeypatch.setattr(QwenImageStatusTrigger, "run", note)
    draw = _draw(wait_for_completion=True, deferrable=deferrable, seed=11, size="768*1024", output_format="webp")

    (submission,) = connected_api.submissions
    (url,) = draw.returned["image_urls"]
    assert submission.task_id in url
    assert draw.returned == {
        "task_id": submission.task_id,
        "status": "SUCCESS",
        "image_urls": [url],
        "paths": [],
        "consumed_credits": 5,
        "seed": 11,
        "size": "768*1024",
        "output_format": "webp",
        "reused": False,
    }
    assert draw.xcoms["task_id"] == submission.task_id
    assert draw.xcoms["consumed_credits"] == 5
    assert draw.tries == 1
    assert deferred == ([submission.task_id] if deferrable else [])


@pytest.mark.parametrize(("deferrable", "scheme"), [(False, "file://"), (True, "")], ids=["URL", "deferred, path"])
def test_an_image_is_stored_beside_its_sidecar(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, scheme: str
) -> None:
    folder = tmp_path / "new" / "images"
    draw = _draw(output_path=f"{scheme}{folder}", deferrable=deferrable, seed=5, size="1024*768", output_format="png")

    (submission,) = connected_api.submissions
    (path,) = draw.returned["paths"]
    image = folder / Path(path).name
    assert image.name.startswith("a-red-kite-over-the-sea-")
    assert stored_files(folder) == sorted([image.name, f"{image.stem}.json"])
    with Image.open(image) as opened:
        opened.load()
        assert (opened.format, opened.size) == ("PNG", (1024, 768))

    sidecar = json.loads((folder / f"{image.stem}.json").read_text())
    content = image.read_bytes()
    assert sidecar["image"] == image.name
    assert sidecar["task_id"] == submission.task_id
    assert sidecar["request"] == submission.request
    assert sidecar["consumed_credits"] == 5
    assert sidecar["image_url"] == draw.returned["image_urls"][0]
    assert (sidecar["width"], sidecar["height"], sidecar["output_format"]) == (1024, 768, "png")
    assert sidecar["sha256"] == hashlib.sha256(content).hexdigest()
    assert sidecar["size_bytes"] == len(content)


def test_every_size_and_format_can_be_stored(connected_api: Sandbox, tmp_path: Path) -> None:
    requests = [
        {"size": "1024*1024", "output_format": "jpeg"},
        {"size": "1024*1536", "output_format": "png"},
        {"size": "1536*1024", "output_format": "webp"},
        {"size": "768*1024", "output_format": "jpeg"},
        {"size": "1024*768", "output_format": "webp"},
    ]
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator.partial(
            task_id="draw", prompt="A boat", output_path=str(tmp_path), poll_interval=0.01
        ).expand_kwargs(requests)
    run = dag.run()

    stored = []
    for draw in run.mapped("draw"):
        with Image.open(draw.returned["paths"][0]) as image:
            stored.append({"size": "{}*{}".format(*image.size), "output_format": str(image.format).lower()})
    assert stored == requests


def test_the_image_host_never_sees_the_key(connected_api: Sandbox, tmp_path: Path, quick_downloads: None) -> None:
    connected_api.script("image", "redirect", "server_error")
    draw = _draw(output_path=str(tmp_path), deferrable=True)

    assert draw.state == "success"
    with_key = {(request.route, request.authorized_header) for request in connected_api.requests}
    assert with_key >= {("generate", True), ("status", True), ("image", False)}
    assert ("image", True) not in with_key
    assert ("redirected", True) not in with_key


@in_both_ways
def test_every_request_field_and_the_connection_and_the_path_are_templates(
    connected_api: Sandbox, tmp_path: Path, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_ANOTHER_ONE", connected_api.connection_json)
    monkeypatch.delenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT")
    params = {
        "animal": "An otter",
        "size": "1536*1024",
        "seed": 77,
        "format": "webp",
        "hook": f"{connected_api.url}/called-back",
        "connection": "another_one",
        "folder": str(tmp_path),
    }
    draw = _run(
        TestDag(params=params),
        prompt="{{ params.animal }} at noon",
        size="{{ params.size }}",
        seed="{{ params.seed }}",
        output_format="{{ params.format }}",
        callback_url="{{ params.hook }}",
        qwenimage_conn_id="{{ params.connection }}",
        output_path="{{ params.folder }}/{{ params.animal | length }}",
        deferrable=deferrable,
    )["draw"]

    assert draw.state == "success"
    (submission,) = connected_api.submissions
    assert submission.request == {
        "prompt": "An otter at noon",
        "size": "1536*1024",
        "seed": 77,
        "output_format": "webp",
        "callback_url": f"{connected_api.url}/called-back",
    }
    assert Path(draw.returned["paths"][0]).parent == tmp_path / "8"
    assert draw.returned["seed"] == 77


@in_both_ways
def test_each_mapped_prompt_makes_an_image(connected_api: Sandbox, tmp_path: Path, deferrable: bool) -> None:
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator.partial(
            task_id="draw", output_path=str(tmp_path), poll_interval=0.01, deferrable=deferrable
        ).expand(prompt=["A tin robot", "A paper moon", "A glass apple"])
    run = dag.run()

    assert run.state == "success"
    paths = [Path(draw.returned["paths"][0]) for draw in run.mapped("draw")]
    assert [path.name.rsplit("-", 1)[0] for path in paths] == ["a-tin-robot", "a-paper-moon", "a-glass-apple"]
    assert len({path.read_bytes() for path in paths}) == 3
    assert len(connected_api.submissions) == 3


def test_equal_mapped_prompts_with_a_random_seed_overwrite_nothing(connected_api: Sandbox, tmp_path: Path) -> None:
    dag = TestDag()
    with dag:
        QwenImageGenerateOperator.partial(
            task_id="draw", output_path=str(tmp_path), poll_interval=0.01, deferrable=True
        ).expand(prompt=["A tin robot", "A tin robot"])
    run = dag.run()

    first, second = (Path(draw.returned["paths"][0]) for draw in run.mapped("draw"))
    assert first.name != second.name
    assert first.read_bytes() != second.read_bytes()
    assert len(stored_files(tmp_path)) == 4


def test_the_paid_image_is_kept_when_a_template_renders_differently_on_resuming(
    connected_api: Sandbox, tmp_path: Path
) -> None:
    seeds = count(100)
    dag = TestDag(user_defined_macros={"next_seed": seeds.__next__})
    draw = _run(
        dag, seed="{{ next_seed() }}", prompt="Number {{ next_seed() }}", output_path=str(tmp_path), deferrable=True
    )["draw"]

    (submission,) = connected_api.submissions
    # Airflow 2's dag.test() resumes with the values it rendered before.
    assert not AIRFLOW_3 or next(seeds) >= 104, "the templates were rendered only once, so this test proves nothing"
    assert draw.returned["seed"] == submission.seed
    sidecar = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert sidecar["request"] == submission.request
    assert sidecar["image"].startswith(f"number-{submission.request['prompt'].split()[1]}-")


@pytest.mark.parametrize(
    "argument",
    [
        {"prompt": " "},
        {"prompt": "x" * 2001},
        {"size": "512*512"},
        {"seed": -2},
        {"seed": "many"},
        {"output_format": "gif"},
        {"callback_url": "ftp://example.com/"},
        {"timeout": 0},
        {"poll_interval": 0},
        {"max_consecutive_failures": 0},
        {"max_image_bytes": 0},
        {"output_path": "/data/image.png"},
    ],
    ids=str,
)
def test_a_bad_literal_argument_fails_while_the_dag_is_built(argument: dict[str, Any]) -> None:
    (name,) = argument
    with TestDag(), pytest.raises(ValueError, match=name):
        QwenImageGenerateOperator(**{"task_id": "draw", "prompt": "A boat"} | argument)


def test_a_bad_rendered_argument_fails_the_task_without_a_submission(connected_api: Sandbox, tmp_path: Path) -> None:
    bad = {
        "prompt": "{{ ' ' }}",
        "size": "{{ '512*512' }}",
        "seed": "{{ 'many' }}",
        "output_format": "{{ 'gif' }}",
        "callback_url": "{{ 'ftp://example.com/' }}",
        "output_path": "{{ '/data/image.png' }}",
    }
    dag = TestDag()
    with dag:
        for name, value in bad.items():
            QwenImageGenerateOperator(**{"task_id": name, "prompt": "A boat"} | {name: value})
    run = dag.run()

    for name in bad:
        assert (run[name].state, run[name].tries) == ("failed", 1), name
        assert str(run[name].error).startswith(f"{name} is ")
    assert connected_api.requests == []

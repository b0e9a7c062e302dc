"""A strict type checker accepts users' DAGs and reports arguments that operators and sensor reject."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

IMPORTS = (
    "from datetime import timedelta",
    "from pathlib import Path",
    "from typing import Any",
    "from airflow.sdk import DAG, ObjectStoragePath, task",
    "from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator, QwenImageStatusSensor",
    "from airflow_provider_qwenimage import sweep",
    "from airflow_provider_qwenimage.decorators import qwenimage_batch_task, qwenimage_task",
    "from airflow_provider_qwenimage.hooks import QwenImageHook",
)
START = """

@task
def prompt() -> str:
    return "A fox"


@task
def rows() -> list[dict[str, Any]]:
    return [{"prompt": "A fox"}]


class Index:
    def __index__(self) -> int:
        return 7


def fox(animal: str) -> dict[str, Any]:
    return {"prompt": f"A {animal}"}


def number() -> int:
    return 7


submit = QwenImageGenerateOperator(task_id="submit", prompt="A fox")
mixed = ["A fox", {"prompt": "A hare", "seed": 7}]
"""

ACCEPTED = """
QwenImageGenerateOperator(task_id="a", prompt=prompt(), size=prompt(), seed=prompt(), output_path=prompt())
QwenImageGenerateOperator(task_id="a", prompt="{{ params.prompt }}", seed="{{ params.seed }}", size=None)
QwenImageGenerateOperator(task_id="a", prompt="A fox", seed=7, output_path=Path("/data"), retries=2)
QwenImageGenerateOperator(task_id="a", prompt="A fox", output_path=ObjectStoragePath("s3://a@b/c"), seed=Index())
QwenImageGenerateOperator(task_id="a", prompt="A fox", timeout=timedelta(hours=1), poll_interval=2.5, max_credits=100)
QwenImageGenerateOperator(task_id="a", prompt="A fox", timeout=Index(), max_image_bytes=Index(), max_credits=None)
QwenImageGenerateOperator(task_id="a", prompt=DAG("a").param("prompt"), output_path=DAG("a").param("folder", "/data"))
QwenImageGenerateOperator.partial(task_id="a", size="1024*768").expand(prompt=["A fox"])
QwenImageGenerateOperator.partial(task_id="a").expand_kwargs(rows())
QwenImageGenerateOperator.partial(task_id="a").expand_kwargs(sweep("a {red|blue} fox", seed=range(4)))
QwenImageGenerateOperator(task_id="a", prompt="A fox", label=prompt())
QwenImageBatchOperator(task_id="a", requests=sweep(["A fox", 7], size=["768*1024", None]), output_path="/data")
QwenImageBatchOperator(task_id="a", requests=sweep(prompt(), seed=Index(), limit=None), output_path="/data")
QwenImageStatusSensor(task_id="a", image_task_id=submit.output, timeout=timedelta(minutes=30))
QwenImageStatusSensor(task_id="a", image_task_id="n43abc", poke_interval=5, timeout=600.5, mode="poke")
QwenImageStatusSensor.partial(task_id="a").expand(image_task_id=submit.output)
QwenImageBatchOperator(task_id="a", requests=rows(), output_path="s3://a@b/c", max_in_flight=8)
QwenImageBatchOperator(task_id="a", requests=mixed, output_path=Path("/data"), timeout=timedelta(hours=1))
QwenImageBatchOperator(task_id="a", requests=["A fox", prompt()], output_path=submit.output)
QwenImageBatchOperator(task_id="a", requests=Path("prompts.csv"), output_path=ObjectStoragePath("file:///data"))
task.qwenimage(size="1024*768")(fox)("hare")
qwenimage_task(fox)("hare")
qwenimage_task(fox).partial(animal="hare").expand(animal=["fox"])
qwenimage_task(output_path=Path("/data"), seed=Index(), timeout=timedelta(hours=1), retries=2, pool="a")(fox)("hare")
qwenimage_task(size="{{ params.size }}", output_path=submit.output, task_id="a")(fox).override(task_id="b")("hare")
qwenimage_batch_task(output_path="/data", max_in_flight=8)(lambda: (text for text in ["A fox"]))()
qwenimage_batch_task(output_path="/data")(lambda: mixed)()
qwenimage_batch_task(output_path="/data")(lambda: Path("prompts.csv"))()
QwenImageHook().wait_for_completion("n43abc", timeout=timedelta(hours=1), poll_interval=2)
"""

REFUSED = """
QwenImageGenerateOperator(task_id="a")
QwenImageGenerateOperator(task_id="a", prompt=None)
QwenImageGenerateOperator(task_id="a", prompt="A fox", overwrite="False")
QwenImageGenerateOperator(task_id="a", prompt="A fox", timeout="60")
QwenImageGenerateOperator(task_id="a", prompt="A fox", max_consecutive_failures=0.5)
QwenImageGenerateOperator(task_id="a", prompt="A fox", output_path=5)
QwenImageGenerateOperator(task_id="a", prompt="A fox", label=["red"])
QwenImageBatchOperator(task_id="a", requests={"A fox"}, output_path="/data")
QwenImageBatchOperator(task_id="a", requests=(text for text in ["A fox"]), output_path="/data")
QwenImageBatchOperator(task_id="a", requests=["A fox"], output_path=None)
qwenimage_task(overrite=True)
qwenimage_task(prompt="A fox")
qwenimage_task(size=5)
qwenimage_task(timeout="60")
qwenimage_task(number)
qwenimage_task(fox)(7)
qwenimage_task(output_path="/data")(number)
qwenimage_batch_task(output_path="/data", requests=["A fox"])
qwenimage_batch_task(max_in_flight=8)
qwenimage_batch_task(output_path="/data")(number)
sweep(None)
sweep("A fox", size=7)
sweep("A fox", callback_url=["https://a.b"])
sweep("A fox", limit=2.5)
QwenImageStatusSensor(task_id="a", image_task_id=7)
QwenImageStatusSensor(task_id="a", image_task_id="n43abc", deferrable="no")
"""


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The errors of mypy --strict, without the settings of this project, by file and line."""
    folder = tmp_path_factory.mktemp("typing")
    for name, lines in {"accepted": ACCEPTED, "refused": REFUSED}.items():
        (folder / f"{name}.py").write_text("\n".join(IMPORTS) + START + lines)
    files = [*sorted(folder.glob("*.py")), *sorted((ROOT / "example_dags").glob("*.py"))]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={ROOT}/.mypy_cache/users", *files],
        cwd=folder,
        env={"MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=550,
    )
    assert checked.stderr == ""
    found = re.findall(r"^(\S+\.py):(\d+): error: (.*)$", checked.stdout, re.MULTILINE)
    return {f"{Path(file).name}:{line}": story for file, line, story in found}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_examples_and_valid_dags_have_no_errors(findings: dict[str, str]) -> None:
    assert {place: story for place, story in findings.items() if not place.startswith("refused.py")} == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_rejected_argument_is_a_type_error(findings: dict[str, str]) -> None:
    first = len(IMPORTS) + START.count("\n") + 1
    lines = range(first, first + len(REFUSED.strip().splitlines()))
    assert sorted(int(place.rpartition(":")[2]) for place in findings if place.startswith("refused.py")) == [*lines]


def test_no_setting_exempts_the_examples() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert settings["files"] == ["."]
    assert "exclude" not in settings
    assert not [each for each in settings["overrides"] if "example_dags" in str(each["module"])]
    assert "type: ignore" not in "".join(file.read_text() for file in (ROOT / "example_dags").glob("*.py"))

"""What is built is what users get: the right files, installable on its own."""

import os
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from importlib.metadata import version
from pathlib import Path

import pytest

from airflow_provider_qwenimage import __version__
from tests.packaging.conftest import ROOT

PACKAGE = "airflow_provider_qwenimage"


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=100,
    )
    return folder


@pytest.fixture(scope="session")
def wheel(distributions: Path) -> Path:
    (file,) = distributions.glob("*.whl")
    return file


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return message_from_string(archive.read(f"{PACKAGE}-{__version__}.dist-info/METADATA").decode())


def test_the_wheel_runs_on_every_platform(wheel: Path) -> None:
    assert wheel.name == f"{PACKAGE}-{__version__}-py3-none-any.whl"


def test_the_wheel_has_the_package_and_nothing_else(wheel_names: set[str]) -> None:
    ours = {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / PACKAGE).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    packed = {name for name in wheel_names if ".dist-info/" not in name}
    assert packed == ours
    assert f"{PACKAGE}/py.typed" in packed


def test_the_wheel_carries_the_license(wheel: Path, wheel_names: set[str], metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    (name,) = [name for name in wheel_names if name.endswith("/LICENSE")]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_metadata_says_what_is_needed(metadata: Message) -> None:
    assert metadata["Name"] == "airflow-provider-qwenimage"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Framework :: Apache Airflow :: Provider" in metadata.get_all("Classifier", [])
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">=")[0] for line in needed) == [
        "aiohttp",
        "apache-airflow",
        "apache-airflow-providers-common-compat",
        "pendulum",
        "pillow",
        "requests",
    ]
    assert metadata.get_all("Provides-Extra") == ["sandbox"]


def test_the_source_distribution_has_what_is_needed_to_work_on_it(distributions: Path) -> None:
    (file,) = distributions.glob("*.tar.gz")
    with tarfile.open(file) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints/airflow-2.11.txt",
        "constraints/airflow-3.3.txt",
        "example_dags/prompt_to_file.py",
        "pyproject.toml",
        "scripts/demo.py",
        "tests/packaging/test_distribution.py",
    }
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", ".airflow", ".demo"))]


def test_no_file_names_a_package_index() -> None:
    for file in [*(ROOT / "constraints").iterdir(), ROOT / "pyproject.toml", ROOT / "Makefile"]:
        lines = [line for line in file.read_text().splitlines() if "index-url" in line or "find-links" in line]
        assert lines == []
    for file in (ROOT / "constraints").iterdir():
        assert "://" not in file.read_text()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_wheel_installs_alone_into_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    constraints = "airflow-3.3.txt" if version("apache-airflow").startswith("3.") else "airflow-2.11.txt"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
    clean |= {"AIRFLOW_HOME": str(tmp_path / "airflow")}

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--python", sys.executable, str(environment))
    run(*uv, "pip", "install", "--python", str(python), "-c", str(ROOT / "constraints" / constraints), str(wheel))
    run(*uv, "pip", "check", "--python", str(python))

    names = "from airflow_provider_qwenimage import *; print(QwenImageGenerateOperator.__module__)"
    assert run(str(python), "-c", names).splitlines()[-1] == "airflow_provider_qwenimage.operators"
    assert "airflow-provider-qwenimage" in run(str(python), "-m", "airflow", "providers", "list", "-o", "plain")
    assert "--port" in run(str(python), "-m", "airflow_provider_qwenimage.sandbox", "--help")

"""The source distribution and the wheel have the right files, and the wheel can be installed alone."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from email import message_from_string
from email.message import Message
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

import pytest
from markdown_it import MarkdownIt

from airflow_provider_qwenimage._version import __version__
from tests.packaging.conftest import ROOT
from tests.packaging.test_index_readme import for_an_index

PACKAGE = "airflow_provider_qwenimage"
# The files of the package that are no modules.
DATA = {
    "plugin/static/airflow.js",
    "plugin/static/choice.js",
    "plugin/static/credits.css",
    "plugin/static/credits.js",
    "plugin/static/gallery.css",
    "plugin/static/gallery.js",
    "plugin/static/icon-dark.svg",
    "plugin/static/icon.svg",
    "plugin/templates/credits.html",
    "plugin/templates/credits_chart.svg",
    "plugin/templates/error.html",
    "plugin/templates/gallery.html",
    "py.typed",
}

Run: TypeAlias = Callable[..., str]


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source distribution, and the wheel from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=280,
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
    modules = {name for name in packed if name.endswith(".py")}
    assert {name.removeprefix(f"{PACKAGE}/") for name in packed - modules} == DATA
    assert f"{PACKAGE}/sandbox/pytest_plugin.py" in modules
    assert not [name for name in modules if Path(name).name.startswith(("test_", "conftest"))]


def test_the_wheel_has_the_files_of_a_wheel_and_no_more(wheel_names: set[str]) -> None:
    described = {name.partition(".dist-info/")[2] for name in wheel_names if ".dist-info/" in name}
    assert described == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def test_the_wheel_is_the_same_from_the_source_distribution_as_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        check=True,
        capture_output=True,
        timeout=280,
    )
    assert (tmp_path / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_description_has_no_links_into_the_repository(metadata: Message) -> None:
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == for_an_index((ROOT / "README.md").read_text())
    blocks = MarkdownIt("commonmark").enable("table").parse(metadata.get_payload())
    inline = [child for block in blocks for child in block.children or []]
    targets = [str(token.attrs[name]) for token in inline for name in ("href", "src") if name in token.attrs]
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    kinds = {token.type for token in blocks}
    assert {"heading_open", "table_open", "fence"} <= kinds, "the description has no sections, tables or code blocks"


def test_the_wheel_carries_the_license(wheel: Path, wheel_names: set[str], metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    (name,) = [name for name in wheel_names if name.endswith("/LICENSE")]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_the_metadata_has_the_requirements(metadata: Message) -> None:
    assert metadata["Name"] == "airflow-provider-qwenimage"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Framework :: Apache Airflow :: Provider" in metadata.get_all("Classifier", [])
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">=")[0] for line in needed) == [
        "aiohttp",
        "apache-airflow",
        "apache-airflow-providers-common-compat",
        "h11",
        "idna",
        "pendulum",
        "pillow",
        "requests",
    ]
    assert metadata.get_all("Provides-Extra") == ["books", "sandbox"]


@pytest.fixture(scope="session")
def source(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    (file,) = distributions.glob("*.tar.gz")
    assert file.name == f"{PACKAGE}-{__version__}.tar.gz"
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"{PACKAGE}-{__version__}"


def test_the_source_distribution_has_the_same_version(source: Path) -> None:
    assert message_from_string((source / "PKG-INFO").read_text())["Version"] == __version__


def test_the_source_distribution_has_what_is_needed_to_work_on_it(source: Path) -> None:
    names = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    assert names >= {
        ".ci/run",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "README.md",
        *(f"constraints/{file.name}" for file in (ROOT / "constraints").iterdir()),
        "docs/gallery.md",
        "example_dags/prompt_to_file.py",
        "pyproject.toml",
        "scripts/demo.py",
        "tests/packaging/test_distribution.py",
    }
    assert not [name for name in names if "__pycache__" in name or name.startswith((".venv", ".airflow", ".demo"))]


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a git repository")
def test_the_source_distribution_is_the_repository_without_its_benchmarks(source: Path) -> None:
    """Add a new file at the root to the list in pyproject.toml, or to .gitignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    there = {name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()}
    packed = {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    benchmarks = {name for name in there if name.startswith("benchmarks/")} - {"benchmarks/README.md"}
    assert packed == there - benchmarks | {"PKG-INFO"}


def test_no_file_names_a_package_index() -> None:
    for file in [*(ROOT / "constraints").iterdir(), ROOT / "pyproject.toml", ROOT / "Makefile"]:
        lines = [line for line in file.read_text().splitlines() if "index-url" in line or "find-links" in line]
        assert lines == []
    for file in (ROOT / "constraints").iterdir():
        assert "://" not in file.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_make_dist_leaves_only_the_checked_files_in_dist(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("twine")
    clone = tmp_path / "clone"
    shutil.copytree(source, clone)
    (clone / "dist").mkdir()
    (clone / "dist" / f"{PACKAGE}-0.0.1-py3-none-any.whl").write_text("a file of an earlier version")
    # The clone uses this environment, and no package index is reachable.
    made = ["make", "--no-print-directory", "-o", "env-dev", "dist", f"VENV={sys.prefix}"]
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        made,
        cwd=clone,
        env=os.environ | nowhere | {"PIP_NO_INDEX": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {f"{PACKAGE}-{__version__}.tar.gz", f"{PACKAGE}-{__version__}-py3-none-any.whl"}
    assert {file.name for file in (clone / "dist").iterdir()} == built
    assert done.stdout.count("PASSED") == 2
    shown = done.stdout[done.stdout.rindex("PASSED") :].splitlines()[1:]
    assert shown[0].startswith(f"{PACKAGE}-{__version__}-py3-none-any.whl: ")
    static = str(sum(name.startswith("plugin/static/") for name in DATA))
    assert any(line.split()[:3] == [f"{PACKAGE}/plugin/static", static, "files"] for line in shown)


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables without those of this repository."""
    named = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON", "MYPY"))}
    return named | {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.fixture(scope="session")
def run(clean: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a command outside the repository and return its output."""
    folder = tmp_path_factory.mktemp("elsewhere")

    def command(*words: str, code: int = 0) -> str:
        done = subprocess.run(words, cwd=folder, env=clean, capture_output=True, text=True, timeout=500, check=False)
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return command


@pytest.fixture(scope="session")
def python(wheel: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with the wheel and its requirements."""
    environment = tmp_path_factory.mktemp("installed") / "environment"
    python = environment / "bin" / "python"
    constraints = f"airflow-{version('apache-airflow').rpartition('.')[0]}.txt"
    uv = (sys.executable, "-m", "uv")
    run(*uv, "venv", "--python", sys.executable, str(environment))
    run(*uv, "pip", "install", "--python", str(python), "-c", str(ROOT / "constraints" / constraints), str(wheel))
    return str(python)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_installs_alone_into_an_empty_environment(run: Run, python: str) -> None:
    run(sys.executable, "-m", "uv", "pip", "check", "--python", python)
    names = "from airflow_provider_qwenimage import *; print(QwenImageGenerateOperator.__module__)"
    assert run(python, "-c", names).splitlines()[-1] == "airflow_provider_qwenimage.operators"
    shown = run(python, "-m", "airflow", "providers", "list", "-o", "plain")
    (line,) = [line for line in shown.splitlines() if line.startswith("airflow-provider-qwenimage")]
    assert line.split()[-1] == __version__
    assert "--port" in run(python, "-m", "airflow_provider_qwenimage.sandbox", "--help")


# Loads each entry point and prints its file.
LOAD = """
import inspect, json
from importlib.metadata import distribution
found = {}
for point in distribution("airflow-provider-qwenimage").entry_points:
    loaded = point.load()
    found[f"{point.group} {point.name}"] = [point.value, inspect.getfile(loaded)]
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_entry_point_of_the_installed_wheel_loads(run: Run, python: str) -> None:
    # The package does not require pytest.
    run(sys.executable, "-m", "uv", "pip", "install", "--python", python, f"pytest=={version('pytest')}")
    found = json.loads(run(python, "-c", LOAD).splitlines()[-1])
    assert {group: value for group, (value, _) in found.items()} == {
        "airflow.plugins qwenimage": "airflow_provider_qwenimage.plugin:QwenImagePlugin",
        "apache_airflow_provider provider_info": "airflow_provider_qwenimage.provider_info:get_provider_info",
        "pytest11 qwenimage_airflow": "airflow_provider_qwenimage.testing.pytest_plugin",
        "pytest11 qwenimage_sandbox": "airflow_provider_qwenimage.sandbox.pytest_plugin",
    }
    site_packages = Path(python).parent.parent / "lib"
    assert all(Path(file).is_relative_to(site_packages) for _, file in found.values())
    fixtures = run(python, "-m", "pytest", "--fixtures")
    assert all(name in fixtures for name in ("qwenimage_airflow", "qwenimage_sandbox"))


TYPED = """
from airflow_provider_qwenimage import QwenImageHook, QwenImageStatusSensor
from airflow_provider_qwenimage.contract import TaskSnapshot

reveal_type(QwenImageHook().get_status("n43"))
state: TaskSnapshot = QwenImageHook().generate("A fox")
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_type_checker_sees_the_types_of_the_installed_wheel(run: Run, python: str, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "uses.py").write_text(TYPED)
    checked = (sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--config-file", os.devnull)
    said = run(*checked, "--cache-dir", str(tmp_path), str(tmp_path / "uses.py"), code=1)
    assert f'Revealed type is "{PACKAGE}.contract.TaskSnapshot"' in said
    assert "[assignment]" in said
    assert "Found 1 error in 1 file" in said

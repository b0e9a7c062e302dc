"""Every command, link, table and code block of the README does what it says."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_qwenimage import exceptions
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.airflows import documented_features

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


TEST_COMMANDS = [
    'export AIRFLOW_HOME="$PWD/airflow" AIRFLOW__CORE__DAGS_FOLDER="$PWD/my_dags" AIRFLOW__CORE__LOAD_EXAMPLES=False',
    "airflow db migrate",
    "python -m pytest",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    shown = [line for block in blocks("console") for line in block.splitlines() if line]
    return shown + re.findall(r"`((?:[A-Z_]+=\S+ )?make [\w-]+)`", README)


def run(*words: str, **environment: str) -> str:
    result = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | environment, timeout=280, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def the_dag() -> str:
    """Return the README's DAG with the import that both Airflows have."""
    (dag, _) = blocks("python")
    source = dag.replace("airflow.sdk", "airflow.providers.common.compat.sdk")
    # Airflow 2 wants a start date.
    source = source.replace(', schedule="@daily"', ', schedule="@daily", start_date=START')
    return f"import pendulum\n\nSTART = pendulum.datetime(2024, 1, 1)\n{source}"


def test_it_is_short_enough_to_read() -> None:
    assert len(README.splitlines()) <= 170


def test_its_versions_are_those_that_the_tests_are_run_on() -> None:
    older, newest = re.findall(
        r"^(?:OLDER_AIRFLOWS|NEWEST_AIRFLOW) := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    versions = [*older.split(), newest]
    assert list(documented_features()) == versions
    constraints = {file.name for file in (ROOT / "constraints").iterdir()}
    assert constraints == {f"airflow-{version.rpartition('.')[0]}.txt" for version in versions}
    for version in versions:
        pins = (ROOT / "constraints" / f"airflow-{version.rpartition('.')[0]}.txt").read_text().splitlines()
        assert f"apache-airflow=={version}" in pins


def test_each_cell_of_its_table_of_versions_is_shown_by_a_test(
    features_shown: set[tuple[str, str]], request: pytest.FixtureRequest
) -> None:
    if request.config.args != request.config.getini("testpaths") or request.config.getoption("ignore"):
        pytest.skip("not all tests were collected")
    assert features_shown == {feature for row in documented_features().values() for feature in row.items()}


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_it_names_every_example() -> None:
    assert set(re.findall(r"example_dags/(\w+\.py)", README)) == {
        file.name for file in (ROOT / "example_dags").glob("*.py")
    }


def test_it_explains_every_error() -> None:
    named = set(re.findall(r"^\| `(QwenImage\w+Error)`", README, re.MULTILINE))
    families = {"QwenImageError", "QwenImageRequestError"}
    assert named == {name for name in vars(exceptions) if name.startswith("QwenImage")} - families


def test_its_make_commands_are_run_by_ci_or_by_a_test_of_their_own() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    made = {command.split("make ")[1] for command in commands() if "make " in command}
    assert made >= {"demo", "test", "check", "up", "help"}
    tested_elsewhere = {"help", "up"}
    for target in made - tested_elsewhere:
        assert re.search(rf"make {target}\b", ci), target


def test_its_other_commands_are_the_ones_that_are_tested_here() -> None:
    assert [command for command in commands() if "make " not in command] == [
        "pip install airflow-provider-qwenimage",
        "airflow connections add qwenimage_default --conn-type qwenimage --conn-password sk-YOUR-KEY --conn-port 443",
        'pip install "airflow-provider-qwenimage[sandbox]"',
        "python -m airflow_provider_qwenimage.sandbox --port 8512",
        "pip install pytest",
        *TEST_COMMANDS,
    ]


def test_make_help_lists_the_targets() -> None:
    listed = run("make", "-C", str(ROOT), "help")
    assert all(f"make {target} " in listed for target in ("demo", "up", "test", "check"))


def test_the_connection_command_adds_the_connection(airflow_database: None, airflow_home: Path) -> None:
    command = next(command for command in commands() if command.startswith("airflow connections add"))
    airflow = Path(sys.executable).with_name("airflow")
    run(str(airflow), *shlex.split(command)[1:])
    try:
        shown = run(str(airflow), "connections", "get", "qwenimage_default", "-o", "json")
        assert '"conn_type": "qwenimage"' in shown
    finally:
        run(str(airflow), "connections", "delete", "qwenimage_default")


def test_the_json_form_of_a_connection_comes_first_since_any_key_can_stand_in_it() -> None:
    assert README.index("AIRFLOW_CONN_QWENIMAGE_DEFAULT='{") < README.index("qwenimage://")


def test_the_percent_encoding_that_it_shows_makes_every_key_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    key = "sk-%a/b#c@d%2F"
    encoded = key
    table = re.findall(r"`(.)` as `(%..)`", README)
    # The sign of the encoding itself first.
    for plain, code in sorted(table, key=lambda row: row[0] != "%"):
        encoded = encoded.replace(plain, code)
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", f"qwenimage://:{encoded}@")
    assert QwenImageHook().settings.api_key == key


@pytest.mark.parametrize(
    "value",
    re.findall(r"AIRFLOW_CONN_QWENIMAGE_DEFAULT='([^']+)'", README) + re.findall(r"`(qwenimage://[^`]+)`", README),
)
def test_the_connections_that_it_shows_hold_the_key(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", value)
    settings = QwenImageHook().settings
    assert (settings.api_key, settings.base_url) == ("sk-YOUR-KEY", "https://qwen-image-2512.org")


def test_the_sandbox_command_starts_one() -> None:
    command = next(command for command in commands() if "sandbox --port" in command)
    with socket.socket() as listener:
        # Like the server itself, not put off by a connection that has just ended.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if listener.connect_ex(("127.0.0.1", 8512)) == 0:
            pytest.skip("something runs on port 8512 already")
    process = subprocess.Popen(
        [sys.executable, *shlex.split(command)[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        printed = "".join(line for line, _ in zip(process.stdout, range(4), strict=False))
        assert "http://127.0.0.1:8512" in printed
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.timeout(600)
def test_the_fixture_example_passes_in_an_empty_folder_by_the_commands_that_it_shows(tmp_path: Path) -> None:
    folder = tmp_path / "newcomer's folder"
    (folder / "my_dags").mkdir(parents=True)
    (folder / "my_dags" / "daily_fox.py").write_text(the_dag())
    (_, example) = blocks("python")
    # Twice: the second run would find the image of the first, were it not for a folder of its own.
    for name in ("test_daily_fox.py", "test_daily_fox_again.py"):
        (folder / name).write_text(example)
    plugin = "" if _is_installed() else "-p airflow_provider_qwenimage.sandbox.pytest_plugin"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(command for command in commands() if command in TEST_COMMANDS)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment
        | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTEST_ADDOPTS": f"-q --basetemp '{tmp_path / 'images'}' {plugin}",
        },
        timeout=550,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 2


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.name == "qwenimage_sandbox" for point in entry_points(group="pytest11"))


def test_the_fixture_is_the_sandbox(qwenimage_sandbox: Sandbox) -> None:
    assert isinstance(qwenimage_sandbox, Sandbox)

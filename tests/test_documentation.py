"""Every command, link, table and code block of the README and of `docs/` is correct."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_qwenimage import exceptions, provider_info
from airflow_provider_qwenimage.client.connection import ConnectionSettings
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.tasks.drawing import answer_seconds
from tests.airflow_features import FEATURES, versions
from tests.airflows import HAS_TASK_STATES
from tests.ledgers import Place

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text()
    for file in [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}
CONNECTION, ERRORS, PAYMENT, TESTING, VERSIONS = (
    PAGES[f"docs/{name}.md"] for name in ("connection", "errors", "what-you-pay-for", "testing", "versions")
)

TEST_COMMANDS = [
    'export AIRFLOW_HOME="$PWD/airflow" AIRFLOW__CORE__DAGS_FOLDER="$PWD/my_dags" AIRFLOW__CORE__LOAD_EXAMPLES=False',
    "airflow db migrate",
    "python -m pytest",
]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(*pages: str) -> list[str]:
    """Return the lines of the console blocks, and the make commands in the text."""
    shown = [line for page in pages for block in blocks(page, "console") for line in block.splitlines() if line]
    return shown + [make for page in pages for make in re.findall(r"`((?:[A-Z_]+=\S+ )?make [\w-]+)`", page)]


def table(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the table whose first column has this heading, the heading row first."""
    found = re.search(rf"^\| {heading} \|.*\n(?:\|.*\n)+", page, re.MULTILINE)
    assert found, f"no table {heading}"
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found[0].splitlines()]
    return [rows[0], *rows[2:]]


def run(*words: str, **environment: str) -> str:
    result = subprocess.run(
        words, capture_output=True, text=True, env=os.environ | environment, timeout=280, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def the_dag() -> str:
    """Return the README's DAG with an import that both Airflows have, and the start date that Airflow 2 needs."""
    (dag, _) = blocks(README, "python")
    source = dag.replace("airflow.sdk", "airflow.providers.common.compat.sdk")
    source = source.replace(', schedule="@daily"', ', schedule="@daily", start_date=START')
    return f"import pendulum\n\nSTART = pendulum.datetime(2024, 1, 1)\n{source}"


def anchors(page: str) -> set[str]:
    """Return the anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_supported_versions_are_those_that_the_tests_run_on() -> None:
    older, newest = re.findall(
        r"^(?:OLDER_AIRFLOWS|NEWEST_AIRFLOW) := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert versions() == [*older.split(), newest]
    constraints = {file.name for file in (ROOT / "constraints").glob("airflow-*.txt")}
    assert constraints == {f"airflow-{version.rpartition('.')[0]}.txt" for version in versions()}
    for version in versions():
        pins = (ROOT / "constraints" / f"airflow-{version.rpartition('.')[0]}.txt").read_text().splitlines()
        assert f"apache-airflow=={version}" in pins


def test_the_table_of_versions_lists_the_features_that_the_tests_show() -> None:
    assert table(VERSIONS, "Airflow") == [
        ["Airflow", *FEATURES],
        *([version, *(cells[version] for cells in FEATURES.values())] for version in versions()),
    ]


def test_each_feature_of_each_version_is_shown_by_a_test(
    features_shown: set[tuple[str, str]], request: pytest.FixtureRequest
) -> None:
    if request.config.args != request.config.getini("testpaths") or request.config.getoption("ignore"):
        pytest.skip("not all tests were collected")
    assert features_shown == {(feature, cell) for feature, cells in FEATURES.items() for cell in cells.values()}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_exist(page: str) -> None:
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGES[page]):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


def test_the_readme_lists_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w-]+\.md)", README))
    assert linked == {page for page in PAGES if page.startswith("docs/")}


def test_the_readme_lists_every_example() -> None:
    assert set(re.findall(r"example_dags/(\w+\.py)", README)) == {
        file.name for file in (ROOT / "example_dags").glob("*.py")
    }


def test_every_error_is_explained() -> None:
    named = set(re.findall(r"^\| `(QwenImage\w+Error)`", ERRORS, re.MULTILINE))
    families = {"QwenImageError", "QwenImageRequestError"}
    assert named == {name for name in vars(exceptions) if name.startswith("QwenImage")} - families


@pytest.mark.skipif(not HAS_TASK_STATES, reason="this Airflow has no task states")
def test_the_facts_about_a_submission_have_the_names_that_are_explained(tmp_path: Path) -> None:
    ((intent, *others),) = re.findall(r"`(qwenimage_submission_\w+)`, `…_(\w+)` and `…_(\w+)`", PAYMENT)
    (hidden,) = set(re.findall(r"`(\.submission-….json)`", PAYMENT))
    place = Place("task states and shared files", tmp_path)
    ledger = place.submitted()
    files = place.files()
    assert files
    assert all(re.fullmatch(re.escape(hidden).replace("…", ".+"), name) for name in files)
    ledger.finish()
    assert place.files() == []
    assert set(place.states["draw"].written) == {intent, *(intent.replace("intent", other) for other in others)}


def test_the_time_that_an_answer_may_take_is_the_one_explained() -> None:
    (seconds,) = re.findall(r"^(\d+) seconds by default", PAYMENT, re.MULTILINE)
    assert answer_seconds(ConnectionSettings("https://example.com", "sk-key")) == int(seconds)


def test_every_field_of_the_connection_is_explained() -> None:
    (_, *rows) = table(CONNECTION, "field")
    extra = re.findall(r"^Extra `(\w+)`$", "\n".join(row[0] for row in rows), re.MULTILINE)
    assert extra == list(provider_info.CONN_FIELDS)
    labels = {
        name.lower(): label for name, label in re.findall(r"^\| (\w+) \(\*(.+?)\*\) \|", CONNECTION, re.MULTILINE)
    }
    assert labels == dict(provider_info.RELABELING)


def test_the_readmes_make_commands_are_run_by_ci_or_by_a_test_of_their_own() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    made = {command.split("make ")[1] for command in commands(README) if "make " in command}
    assert made >= {"demo", "test", "check", "up", "help"}
    tested_elsewhere = {"help", "up"}
    for target in made - tested_elsewhere:
        assert re.search(rf"make {target}\b", ci), target


def test_the_other_commands_are_the_ones_that_are_tested_here() -> None:
    connect = (
        "airflow connections add qwenimage_default --conn-type qwenimage --conn-password sk-YOUR-KEY --conn-port 443"
    )
    shown = commands(README, CONNECTION, TESTING)
    assert [command for command in shown if "make " not in command] == [
        "pip install airflow-provider-qwenimage",
        connect,
        connect,
        'pip install "airflow-provider-qwenimage[sandbox]"',
        "python -m airflow_provider_qwenimage.sandbox --port 8512",
        "pip install pytest",
        *TEST_COMMANDS,
    ]


def test_make_help_lists_the_targets() -> None:
    listed = run("make", "-C", str(ROOT), "help")
    assert all(f"make {target} " in listed for target in ("demo", "up", "test", "check"))


def test_the_connection_command_adds_the_connection(airflow_database: None, airflow_home: Path) -> None:
    command = next(command for command in commands(README) if command.startswith("airflow connections add"))
    airflow = Path(sys.executable).with_name("airflow")
    run(str(airflow), *shlex.split(command)[1:])
    try:
        shown = run(str(airflow), "connections", "get", "qwenimage_default", "-o", "json")
        assert '"conn_type": "qwenimage"' in shown
    finally:
        run(str(airflow), "connections", "delete", "qwenimage_default")


def test_the_json_form_of_a_connection_comes_first_because_it_takes_any_key() -> None:
    assert CONNECTION.index("AIRFLOW_CONN_QWENIMAGE_DEFAULT='{") < CONNECTION.index("qwenimage://")


def test_every_key_is_read_back_from_a_uri_with_the_percent_encoding_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    key = "sk-%a/b#c@d%2F"
    encoded = key
    codes = re.findall(r"`(.)` as `(%..)`", CONNECTION)
    # The sign of the encoding itself first.
    for plain, code in sorted(codes, key=lambda row: row[0] != "%"):
        encoded = encoded.replace(plain, code)
    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", f"qwenimage://:{encoded}@")
    assert QwenImageHook().settings.api_key == key


@pytest.mark.parametrize(
    "value",
    re.findall(r"AIRFLOW_CONN_QWENIMAGE_DEFAULT='([^']+)'", CONNECTION)
    + re.findall(r"`(qwenimage://[^`]+)`", CONNECTION),
)
def test_the_connections_shown_contain_the_key(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_provider_qwenimage.hooks import QwenImageHook

    monkeypatch.setenv("AIRFLOW_CONN_QWENIMAGE_DEFAULT", value)
    settings = QwenImageHook().settings
    assert (settings.api_key, settings.base_url) == ("sk-YOUR-KEY", "https://qwen-image-2512.org")


def test_the_sandbox_command_starts_one() -> None:
    command = next(command for command in commands(TESTING) if "sandbox --port" in command)
    with socket.socket() as listener:
        # As in the server itself, a connection that has just closed does not block the port.
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
def test_the_examples_of_the_fixture_pass_in_an_empty_folder_by_the_commands_shown(tmp_path: Path) -> None:
    folder = tmp_path / "newcomer's folder"
    (folder / "my_dags").mkdir(parents=True)
    (folder / "my_dags" / "daily_fox.py").write_text(the_dag())
    (_, example) = blocks(README, "python")
    (script,) = blocks(TESTING, "python")
    # The first one twice: without a new folder, the second run would reuse the image of the first.
    tests = {"test_daily_fox.py": example, "test_daily_fox_again.py": example, "test_script.py": script}
    for name, text in tests.items():
        (folder / name).write_text(text)
    plugin = "" if _is_installed() else "-p airflow_provider_qwenimage.sandbox.pytest_plugin"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(command for command in commands(TESTING) if command in TEST_COMMANDS)],
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
    assert "3 passed" in done.stdout, done.stdout + done.stderr
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 2


def _is_installed() -> bool:
    from importlib.metadata import entry_points

    return any(point.name == "qwenimage_sandbox" for point in entry_points(group="pytest11"))


def test_the_fixture_is_the_sandbox(qwenimage_sandbox: Sandbox) -> None:
    assert isinstance(qwenimage_sandbox, Sandbox)

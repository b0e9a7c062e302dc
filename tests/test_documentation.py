"""Every command, link, table and code block of the README and of `docs/` is correct."""

from __future__ import annotations

import inspect
import json
import os
import pkgutil
import re
import shlex
import socket
import subprocess
import sys
import tomllib
from io import BytesIO
from pathlib import Path
from typing import Any

import pendulum
import pytest
from PIL import Image

import airflow_provider_qwenimage
from airflow_provider_qwenimage import exceptions, provider_info, sweep
from airflow_provider_qwenimage.cli import definition
from airflow_provider_qwenimage.client.connection import ConnectionSettings
from airflow_provider_qwenimage.contract import GenerateRequest, TaskSnapshot, TaskStatus
from airflow_provider_qwenimage.publish.imagefolder import metadata_records
from airflow_provider_qwenimage.publish.provenance import COMPOSITE_SYNTHETIC, TRAINED_ALGORITHMIC_MEDIA, ProvenanceMark
from airflow_provider_qwenimage.publish.xmp_in_files import find_xmp, put_xmp
from airflow_provider_qwenimage.publish.xmp_packets import Property, packet_of
from airflow_provider_qwenimage.rules.arguments import PROVENANCES
from airflow_provider_qwenimage.rules.batch_plans import BatchPlan
from airflow_provider_qwenimage.rules.image_identity import ImageIdentity
from airflow_provider_qwenimage.sandbox import Sandbox
from airflow_provider_qwenimage.storage.images import StoredFile, verify_and_store
from airflow_provider_qwenimage.storage.paths import open_output_path
from airflow_provider_qwenimage.tasks.drawing import answer_seconds
from scripts.docs_site import REFERENCE
from tests.airflow_features import FEATURES, versions
from tests.airflows import HAS_TASK_STATES
from tests.ledgers import Place
from tests.pytest_runs import run_pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text()
    for file in [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
}
COMMAND_LINE, CONNECTION, ERRORS, PAYMENT, PUBLISHING, TESTING, VERSIONS = (
    PAGES[f"docs/{name}.md"]
    for name in ("command-line", "connection", "errors", "what-you-pay-for", "publishing", "testing", "versions")
)

TEST_COMMAND = "python -m pytest"


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


def for_both_airflows(source: str) -> str:
    """Return a code block with an import that both Airflows have, and the start date that Airflow 2 needs."""
    source = source.replace("airflow.sdk", "airflow.providers.common.compat.sdk")
    source = re.sub(r', schedule=("@daily"|None)', r", schedule=\1, start_date=START", source)
    return f"import pendulum\n\nSTART = pendulum.datetime(2024, 1, 1)\n{source}"


def anchors(page: str) -> set[str]:
    """Return the anchors that a page's headings get."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_supported_versions_are_those_that_the_tests_run_on() -> None:
    listed = re.findall(r"^(?:OLDER|NEWEST|NEXT)_AIRFLOWS? := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert versions() == " ".join(listed).split()
    constraints = {file.name for file in (ROOT / "constraints").glob("airflow-*.txt")}
    assert constraints == {f"airflow-{version.rpartition('.')[0]}.txt" for version in versions()}
    for version in versions():
        pins = (ROOT / "constraints" / f"airflow-{version.rpartition('.')[0]}.txt").read_text().splitlines()
        assert f"apache-airflow=={version}" in pins


def test_the_table_of_modules_has_the_layers_in_their_order() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if "layers" in contract)
    rows = table(PAGES["CONTRIBUTING.md"], "module or package")[1:]
    assert [set(re.findall(r"`(\w+)`", row[0])) for row in rows] == [set(layer.split(" | ")) for layer in layers]


def test_the_contributors_table_has_every_benchmark() -> None:
    targets = set(re.findall(r"^(bench-\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets
    assert targets <= set(re.findall(r"[\w-]+", PAGES["CONTRIBUTING.md"]))


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
    linked = set(re.findall(r"\]\((docs/[\w/-]+\.md)", README))
    assert linked == {page for page in PAGES if page.startswith("docs/")}


def test_the_readme_lists_every_example() -> None:
    assert set(re.findall(r"example_dags/(\w+\.py)", README)) == {
        file.name for file in (ROOT / "example_dags").glob("*.py")
    }


def test_every_example_has_a_page_that_shows_its_code() -> None:
    for file in sorted((ROOT / "example_dags").glob("*.py")):
        page = f"docs/how-to/{file.stem}.md"
        assert page in PAGES, f"describe what {file.name} does, when to use it and what to change, in {page}"
        # The site shows a file in place of a link that is a paragraph of its own.
        assert f"\n\n[example_dags/{file.name}](../../example_dags/{file.name})\n" in PAGES[page]
        assert re.search(rf"^\| \[{file.name}\].*\({page}\) \|$", README, re.MULTILINE), f"link {page} in the README"


def test_every_public_module_is_in_the_reference() -> None:
    internal = {
        *(
            "airflow_versions",
            "batch",
            "books",
            "choosing",
            "cli",
            "client",
            "configuration",
            "lettering",
            "plugin",
            "provider_info",
            "settling",
        ),
        *("publish", "recordings"),
        *("rules", "storage", "tasks", "text"),
    }
    modules = {module.name for module in pkgutil.iter_modules(airflow_provider_qwenimage.__path__)}
    public = {name for name in modules - internal if not name.startswith("_")}
    assert {module for module in REFERENCE if "." not in module} == public, (
        "add it to REFERENCE in scripts/docs_site.py"
    )


def test_the_python_versions_are_those_that_the_tests_run_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest = project["requires-python"].removeprefix(">=")
    others = re.search(r"^OTHER_PYTHONS := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert others
    tested = [lowest, *others[1].split()]
    prefix = "Programming Language :: Python :: 3."
    assert [name for name in project["classifiers"] if name.startswith(prefix)] == [
        f"Programming Language :: Python :: {version}" for version in tested
    ]
    assert [row[0] for row in table(VERSIONS, "Python")[1:]] == tested


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


MADE_BY = {"dag_id": "nightly", "run_id": "manual", "task_id": "draw"}


def store_fox(folder: Path, mark: ProvenanceMark | None, xmp: bytes | None = None) -> tuple[Path, dict[str, Any]]:
    """Store an image, which comes with metadata or without, and return its file and sidecar."""
    request = GenerateRequest(prompt="A red fox", size="768*1024", seed=7)
    stream = BytesIO()
    Image.new("RGB", (768, 1024)).save(stream, "JPEG")
    content = stream.getvalue()
    if xmp is not None:
        content = put_xmp(content, "jpeg", find_xmp(content, "jpeg"), xmp)
    created_at = pendulum.datetime(2026, 1, 2)
    snapshot = TaskSnapshot(
        task_id="n1", status=TaskStatus.SUCCESS, image_urls=("https://example.com/1",), created_at=created_at
    )
    stored = verify_and_store(
        *(content, snapshot, ImageIdentity(request), open_output_path(str(folder))),
        number=1,
        made_by=MADE_BY,
        mark=mark,
    )
    assert isinstance(stored, StoredFile)
    file = Path(stored.path)
    return file, json.loads(file.with_suffix(".json").read_text())


def properties_of_a_mark(provenance: str, folder: Path) -> dict[str, str]:
    """Return the properties that are written into a file."""
    file, _ = store_fox(folder / provenance, ProvenanceMark(provenance))
    packet = find_xmp(file.read_bytes(), "jpeg").packet
    assert packet is not None
    found = re.findall(r"<((?!rdf:|x:)\w+:\w+)>(.*?)</", packet.decode())
    return {name: re.sub("<.*?>", "", value) for name, value in found}


def test_the_table_of_marks_has_what_is_written_into_a_file(tmp_path: Path) -> None:
    written = {provenance: properties_of_a_mark(provenance, tmp_path) for provenance in PROVENANCES}
    (_, *rows) = table(PUBLISHING, "property")
    for provenance, properties in written.items():
        assert [row[0].strip("`") for row in rows if f"`{provenance}`" in row[2]] == list(properties)
    assert f"`{COMPOSITE_SYNTHETIC}`" in PUBLISHING
    values = {row[0].strip("`"): row[1] for row in rows}
    assert values["Iptc4xmpExt:DigitalSourceType"] == f"`{TRAINED_ALGORITHMIC_MEDIA}`"
    assert values["Iptc4xmpExt:AISystemUsed"] == f"`{written['mark']['Iptc4xmpExt:AISystemUsed']}`"
    assert {f"`{json.dumps(provenance)}`" for provenance in PROVENANCES} < {
        row[0].removesuffix(" (default)") for row in table(PUBLISHING, "`provenance`")
    }


def test_the_table_of_a_marks_sidecar_has_its_fields(tmp_path: Path) -> None:
    _, plain = store_fox(tmp_path / "plain", None)
    _, marked = store_fox(tmp_path / "marked", ProvenanceMark("mark"))
    (number,) = re.findall(r"the XMP of a JPEG can have ([\d,]+) bytes", PUBLISHING)
    most = int(number.replace(",", ""))
    packet = packet_of([Property("urn:a", "a", "b", "x")])
    filling = most - len(packet)
    _, unmarked = store_fox(
        tmp_path / "unmarked", ProvenanceMark("mark"), packet.replace(b"x<", b"x" * filling + b"x<")
    )
    assert f"has room for {most} bytes" in unmarked["not_marked_because"]
    named = {name for row in table(PUBLISHING, "field of the sidecar")[1:] for name in re.findall(r"`(\w+)`", row[0])}
    assert named == (marked | unmarked).keys() - plain.keys() | {
        name for name in ("sha256", "size_bytes") if marked[name] != plain[name]
    }


def test_the_sweep_shown_has_the_images_and_the_price_that_are_stated() -> None:
    (example,) = re.findall(r"requests=(sweep\(.+\)),", PUBLISHING)
    (images, price) = re.findall(r"^These are (\d+) images, for (\d+) credits", PUBLISHING, re.MULTILINE)[0]
    rows = eval(example, {"sweep": sweep, "range": range})  # noqa: S307  of our own page
    assert f"{images} images, about {price} credits" in repr(rows)
    (limit,) = re.findall(r"more than ([\d,]+) rows is refused", PUBLISHING)
    assert int(limit.replace(",", "")) == inspect.signature(sweep).parameters["limit"].default


def test_the_table_of_a_dataset_has_its_columns() -> None:
    request = {"prompt": "A red fox", "size": "1024*768", "seed": 7, "output_format": "png"}
    rows = [{"row": 1, "status": "SUCCESS", "task_id": "n1", "paths": ["/images/fox.png"], **request}]
    (record,) = metadata_records(rows)
    assert [row[0].strip("`") for row in table(PUBLISHING, "column")[1:]] == list(record)


def test_every_option_of_a_plan_and_every_key_of_its_json_is_explained() -> None:
    (plan,) = [command for command in definition.COMMANDS if command.name == "plan"]
    options = [argument.flags[-1] for argument in plan.args if argument.flags[-1].startswith("--")]
    section = COMMAND_LINE[COMMAND_LINE.index("## `plan`") :]
    assert [row[0].strip("`") for row in table(section, "option")[1:]] == options
    assert [row[0].strip("`") for row in table(section, "key")[1:]] == list(BatchPlan().to_json())


def test_every_option_of_the_books_is_explained() -> None:
    (books,) = [command for command in definition.COMMANDS if command.name == "books"]
    section = COMMAND_LINE[COMMAND_LINE.index("## `books`") :]
    assert [row[0].strip("`") for row in table(section, "option")[1:]] == [one.flags[-1] for one in books.args]


def test_every_option_of_the_configuration_is_explained_with_its_default() -> None:
    (_, *rows) = table(PAGES["docs/gallery.md"], "option")
    assert {row[0].strip("`"): row[1] for row in rows} == {
        name: option["default"] or "empty" for name, option in provider_info.CONFIG_OPTIONS.items()
    }


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
        # tests/doctor/test_command.py runs these two.
        "airflow qwenimage doctor --draw 2 --record answers.jsonl",
        "python -m airflow_provider_qwenimage.sandbox --replay answers.jsonl --replay-speed 10",
        "pip install pytest",
        TEST_COMMAND,
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
def test_the_examples_of_the_fixtures_pass_in_an_empty_folder_with_nothing_set_up(tmp_path: Path) -> None:
    folder, home = tmp_path / "newcomer's folder", tmp_path / "home"
    (folder / "my_dags").mkdir(parents=True)
    home.mkdir()
    (dag, example) = blocks(README, "python")
    (folder / "my_dags" / "daily_fox.py").write_text(for_both_airflows(dag))
    (refused, script) = blocks(TESTING, "python")
    # The first one twice: without a new folder, the second run would reuse the image of the first.
    tests = {
        "daily_fox": example,
        "daily_fox_again": example,
        "refused": for_both_airflows(refused),
        "script": script,
    }
    for name, text in tests.items():
        (folder / f"test_{name}.py").write_text(text)
    assert TEST_COMMAND in commands(TESTING)
    # Two processes need the database of the tests at once.
    done = run_pytest(TEST_COMMAND, folder, home, "-q", "-n", "2", "--basetemp", str(tmp_path / "images"))
    assert "4 passed" in done, done
    assert len(list((tmp_path / "images").rglob("*.jpg"))) == 2
    # Nothing of the user's is touched but the cache.
    assert [path.name for path in home.iterdir()] == [".cache"]
    assert [path.name for path in (home / ".cache").iterdir()] == ["airflow-provider-qwenimage"]
    assert {path.suffix for path in (home / ".cache").rglob("*") if path.is_file()} == {".db", ".lock"}
    assert {path.name for path in folder.iterdir()} - {".pytest_cache", "__pycache__"} == {
        "my_dags",
        *(f"test_{name}.py" for name in tests),
    }


COLLECTED = """
import pathlib, sys

def pytest_sessionfinish():
    pathlib.Path("loaded").write_text(" ".join(sys.modules))
"""


def test_a_run_of_pytest_that_does_not_ask_for_airflow_does_not_import_it(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(COLLECTED)
    (tmp_path / "test_it.py").write_text("def test_one(): ...\ndef test_two(qwenimage_airflow): ...\n")
    done = run_pytest(f"{TEST_COMMAND} -k one", tmp_path, tmp_path / "home", "-q")
    assert "1 passed, 1 deselected" in done, done
    loaded = (tmp_path / "loaded").read_text().split()
    assert "airflow_provider_qwenimage.testing.pytest_plugin" in loaded
    assert not {"airflow", "sqlalchemy", "PIL", "aiohttp", "requests"} & set(loaded)
    assert not (tmp_path / "home").exists()


def test_the_fixture_is_the_sandbox(qwenimage_sandbox: Sandbox) -> None:
    assert isinstance(qwenimage_sandbox, Sandbox)

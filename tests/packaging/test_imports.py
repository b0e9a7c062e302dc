"""Importing the package is cheap and does no I/O: Airflow imports it for every DAG file, all day."""

import pkgutil
from typing import Any

import pytest

import airflow_provider_qwenimage
from tests.packaging.conftest import RunScript

# The drawing of contact sheets, and of candidates. The server and the drawing of the sandbox, which are imported when a
# sandbox starts.
NEED_AIOHTTP_OR_PILLOW = {
    "airflow_provider_qwenimage.lettering.drawn_texts",
    "airflow_provider_qwenimage.plugin.candidate_pictures",
    "airflow_provider_qwenimage.publish.sheet_drawing",
    "airflow_provider_qwenimage.sandbox.caption",
    "airflow_provider_qwenimage.sandbox.control",
    "airflow_provider_qwenimage.sandbox.painting",
    "airflow_provider_qwenimage.sandbox.server",
    "airflow_provider_qwenimage.sandbox.wire",
}
# The sessions of the two clients, which are imported when the first request is sent.
SESSIONS = {"airflow_provider_qwenimage.client.aiohttp_session", "airflow_provider_qwenimage.client.requests_session"}
# The gallery's pages, which only the API server of Airflow 3.1 and later imports.
PAGES = {
    f"airflow_provider_qwenimage.plugin.{name}"
    for name in (
        "access",
        "app",
        "candidate_routes",
        "credits_routes",
        "data_routes",
        "image_routes",
        "metadata_db",
        "page_routes",
        "runs",
    )
}
MODULES = sorted(
    {
        "airflow_provider_qwenimage",
        *(
            module.name
            for module in pkgutil.walk_packages(airflow_provider_qwenimage.__path__, "airflow_provider_qwenimage.")
        ),
    }
    - PAGES
    - SESSIONS
)

# Airflow is imported once; each module is then imported in a separate fork, without other modules of the package.
WATCH = """
import importlib, json, os, sys
import airflow.providers.common.compat.sdk as sdk
for name in ("BaseHook", "BaseOperator", "BaseSensorOperator", "DAG", "ObjectStoragePath", "Context", "conf"):
    getattr(sdk, name)
import airflow.providers.common.compat.connection, airflow.triggers.base
# Airflow 3.4 removes a file of its own when these are imported.
import airflow.cli.cli_config, airflow.cli.simple_table, airflow.utils.cli

before = {name for name in ("aiohttp", "PIL", "requests") if name in sys.modules}
done = []
IO = ("socket.", "subprocess.Popen", "os.system", "os.mkdir", "os.remove", "os.rename", "os.listdir", "sqlite3.connect")

def watch(event, arguments):
    if event.startswith(IO):
        done.append(event)
    if event == "open":
        # The import system opens the modules; any other file that our code opens is I/O.
        frame = sys._getframe(1)
        if "airflow_provider_qwenimage" in frame.f_code.co_filename:
            done.append(f"open {arguments[0]}")

# In a new clone, the import system would write its cache.
sys.dont_write_bytecode = True
sys.addaudithook(watch)

def look(module):
    reader, writer = os.pipe()
    if not os.fork():
        done.clear()
        # The import system itself lists folders.
        importlib.import_module(module)
        heavy = [name for name in ("aiohttp", "PIL", "requests") if name in sys.modules and name not in before]
        found = [event for event in done if event != "os.listdir"]
        os.write(writer, json.dumps({"heavy": heavy, "io": found}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        text = stream.read()
    os.wait()
    return json.loads(text) if text else {"error": "it does not import"}

print(json.dumps({"before": sorted(before), "modules": {module: look(module) for module in MODULES}}))
"""


@pytest.fixture(scope="module")
def looks(run_script: RunScript) -> dict[str, Any]:
    result: dict[str, Any] = run_script(f"MODULES = {MODULES!r}\n{WATCH}")
    return result


def test_airflow_itself_loads_neither_aiohttp_nor_pillow(looks: dict[str, Any]) -> None:
    assert not {"aiohttp", "PIL"} & set(looks["before"]), "the tests below could not see whether we load them"


@pytest.mark.parametrize("module", MODULES)
def test_importing_a_module_does_no_io(looks: dict[str, Any], module: str) -> None:
    assert looks["modules"][module].get("io") == []


@pytest.mark.parametrize("module", sorted(set(MODULES) - NEED_AIOHTTP_OR_PILLOW))
def test_importing_a_module_loads_no_http_client_and_no_pillow(looks: dict[str, Any], module: str) -> None:
    assert looks["modules"][module].get("heavy") == []


def test_the_public_names_exist() -> None:
    for name in airflow_provider_qwenimage.__all__:
        assert getattr(airflow_provider_qwenimage, name) is not None


def test_a_sweep_is_made_without_airflow(run_script: RunScript) -> None:
    script = """
import json, sys
from airflow_provider_qwenimage import sweep
count = len(sweep("a {red|blue} fox", seed=range(2)))
heavy = ("airflow", "jinja2", "PIL", "aiohttp", "requests")
print(json.dumps([count, [name for name in heavy if name in sys.modules]]))
"""
    assert run_script(script) == [4, []]


def test_nothing_of_publishing_is_loaded_by_who_does_not_use_it(run_script: RunScript) -> None:
    script = """
import json, sys
from airflow_provider_qwenimage import QwenImageBatchOperator, QwenImageGenerateOperator
from airflow_provider_qwenimage.batch.task import opened_batch
from airflow_provider_qwenimage.tasks import generating
from airflow_provider_qwenimage.tasks.opening import mark_of

def loaded():
    return [name for name in sys.modules if name.startswith("airflow_provider_qwenimage.publish")]

QwenImageGenerateOperator(task_id="draw", prompt="A fox", output_path="/x", provenance="full")
QwenImageBatchOperator(task_id="batch", requests=["A fox"], output_path="/x", contact_sheet=True, dataset="imagefolder")
assert mark_of(False) is None
parsed = loaded()
mark_of("mark")
print(json.dumps([parsed, "airflow_provider_qwenimage.publish.provenance" in loaded()]))
"""
    assert run_script(script) == [[], True]


def test_the_provider_info_loads_without_airflow(run_script: RunScript) -> None:
    loaded = run_script(
        "import json, sys\n"
        "from airflow_provider_qwenimage.provider_info import get_provider_info\n"
        "get_provider_info()\n"
        "print(json.dumps([name for name in ('airflow', 'requests', 'pendulum') if name in sys.modules]))"
    )
    assert loaded == []

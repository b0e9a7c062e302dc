"""A running Airflow with the sandbox, and a real browser in front of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import airflow_provider_qwenimage
from airflow_provider_qwenimage.airflow_versions import HAS_PLUGIN_PAGES
from airflow_provider_qwenimage.contract import TaskStatus
from airflow_provider_qwenimage.sandbox import Sandbox
from tests.events import finish_image
from tests.integration.standalone import StandaloneAirflow

_HERE = Path(__file__).parent
_ROOT = Path(airflow_provider_qwenimage.__file__).parents[1]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_WINDOW = {"width": 1280, "height": 800}
# Pages are slow while all cores are busy; this limit only ends a test whose condition never becomes true.
MILLISECONDS = 120_000
API_KEY = "sk-browser-7c1d09"

# The environments of older Airflows have no browser to drive.
collect_ignore_glob = [] if HAS_PLUGIN_PAGES and find_spec("playwright") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a browser; a separate make target runs them."""
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(1800))
    # The walk runs first, because it needs an Airflow without a connection and without spent credits.
    items.sort(key=lambda item: item.path.is_relative_to(_HERE) and item.path.name != "test_walk.py")


@dataclass
class World:
    """A running Airflow, a sandbox in place of the API, and the folder of the images."""

    airflow: StandaloneAirflow
    api: Sandbox
    images: Path

    def connect(self) -> None:
        """Store the default connection unless it exists."""
        self.airflow.add_connection("qwenimage_default", "qwenimage", host=self.api.url, password=API_KEY)

    def finish_images(self) -> None:
        """Finish the images that are being drawn; later ones take as long as configured."""
        for submission in self.api.submissions:
            if submission.status not in (TaskStatus.SUCCESS, TaskStatus.FAILED):
                finish_image(self.api, submission.task_id)

    def draw(self, dag_id: str, **conf: Any) -> str:
        """Run a DAG to its end and return the run's id."""
        self.connect()
        self.api.configure(seconds_per_image=0.2)
        run_id = self.airflow.trigger(dag_id, conf)
        self.airflow.wait_for_run(dag_id, run_id)
        return run_id


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("airflow")
    images = tmp_path_factory.mktemp("images")
    with Sandbox(api_keys=(API_KEY,)) as api:
        settings = {
            "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
            "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
            "QWENIMAGE_OUTPUT_PATH": f"file://{images}",
        }
        airflow = StandaloneAirflow(home, _ROOT, settings)
        for file in [*(_HERE / "dags").glob("*.py"), *(_ROOT / "example_dags").iterdir()]:
            if file.is_file():
                shutil.copy(file, airflow.dags)
        airflow.prepare("{}")
        try:
            airflow.start("one_image", "no_images", "qwenimage_many_prompts")
            yield World(airflow, api, images)
        finally:
            airflow.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=MILLISECONDS)
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if path is None:
        pytest.exit(f"None of {', '.join(_BROWSERS)} is installed; on Debian and Ubuntu: apt install chromium", 1)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, world: World) -> Iterator[Callable[..., Any]]:
    """Return a function that opens a window; the test fails if a page in it has an error."""
    contexts = []
    problems: list[str] = []

    def listen(message: Any) -> None:
        # The gallery shows failed requests itself, and other tests check that.
        if message.type == "error" and "Failed to load resource" not in message.text:
            problems.append(message.text)

    def open_page(path: str = "/", **options: Any) -> Any:
        context = browser.new_context(base_url=world.airflow.url, locale="en-GB", **{"viewport": _WINDOW} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(MILLISECONDS)
        page.on("console", listen)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def photograph(tmp_path: Path) -> Callable[[Any, str], None]:
    """Return a function that takes a screenshot; `SCREENSHOTS` is the folder for those that the documentation shows."""
    shown = "".join(file.read_text() for file in [_ROOT / "README.md", *(_ROOT / "docs").glob("*.md")])
    documentation = os.environ.get("SCREENSHOTS")

    def take(page: Any, name: str) -> None:
        # A mouse over an element would highlight it.
        page.mouse.move(1, 1)
        folder = tmp_path
        if documentation and f"images/{name}.jpg" in shown:
            folder = Path(documentation)
            page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{name}.jpg", type="jpeg", quality=82)

    return take

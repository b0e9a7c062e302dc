"""Measure the gallery of a run with thousands of images, and its effect on Airflow's own pages."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

import requests

from benchmarks.settings import COMPILED
from benchmarks.tables import machine, quantile, table
from tests.integration.standalone import StandaloneAirflow, wait_for

_ROOT = Path(__file__).resolve().parent.parent
_ROUNDS = 10
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_EXPLANATION = """\
One API server with one process, on SQLite. Airflow's list of task instances is for the same run and has the same
length. The browser is headless Chromium on the same machine: the time from the click to six pictures on the screen,
first without and then with cached thumbnails, and the time to scroll through all images to the last one."""


class _ApiServer(StandaloneAirflow):
    """Airflow with its API server only."""

    def serve(self) -> None:
        """Start the API server, and return when it answers."""
        self._run("api-server")
        wait_for("the API server", self._answers, 120)

    def _answers(self) -> bool:
        try:
            self._call("GET", "dags")
        except (requests.RequestException, KeyError):
            return False
        return True

    def get(self, path: str) -> float:
        """Request a page, and return the seconds that it took."""
        began = time.perf_counter()
        self._session.get(f"{self.url}{path}", timeout=60).raise_for_status()
        return time.perf_counter() - began

    def command(self, *arguments: str) -> str:
        """Run a Python module in Airflow's environment, and return the last line of its output."""
        done = subprocess.run(
            [sys.executable, "-m", *arguments], env=self._environment, cwd=_ROOT, stdout=subprocess.PIPE, check=True
        )
        return done.stdout.decode().splitlines()[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gallery", description=__doc__)
    parser.add_argument("--images", type=int, default=5000, help="number of images of the run (default: %(default)d)")
    options = parser.parse_args(arguments)
    if options.images < 100:  # noqa: PLR2004  the length of Airflow's list
        parser.error("--images must be at least 100.")
    print(f"The gallery of a run with {options.images} images. {machine()}", flush=True)
    with TemporaryDirectory(prefix="qwenimage-bench-") as folder:
        home = Path(folder, "airflow")
        home.mkdir()
        airflow = _ApiServer(home, _ROOT, COMPILED | {"AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"})
        _show("creating the run")
        airflow.prepare("{}")
        filled = airflow.command(
            "benchmarks.gallery_run", "--images", str(options.images), "--folder", str(Path(folder, "images"))
        )
        try:
            airflow.serve()
            runs = {kind: tuple(run) for kind, run in json.loads(filled).items()}
            print(table(["list", "ratio", "first", "median", "slowest"], _listings(airflow, runs)))
            print()
            print(
                table(
                    ["in the browser", "first pictures, nothing cached", "cached", "to the last image"],
                    _browser_times(airflow, runs),
                )
            )
            print()
            print(table(["Airflow page, while", "ratio", "median", "p99", "slowest"], _other_pages(airflow, runs)))
        finally:
            airflow.stop()
    print(f"\n{_EXPLANATION}")
    return 0


def _show(step: str) -> None:
    print(f"  {step} ...", file=sys.stderr, flush=True)


def _path(run: tuple[str, str]) -> str:
    return f"/dags/{quote(run[0])}/runs/{quote(run[1], safe='')}"


def _instances(run: tuple[str, str]) -> str:
    return f"/api/v2/dags/{quote(run[0])}/dagRuns/{quote(run[1], safe='')}/taskInstances?limit=100"


def _listings(airflow: _ApiServer, runs: dict[str, tuple[str, str]]) -> Iterator[list[str]]:
    _show("lists")
    pages = {
        "Airflow's list of task instances, 100": _instances(runs["mapped"]),
        "the gallery's list, mapped, 100": f"/qwenimage{_path(runs['mapped'])}/data?limit=100",
        "…, the last 100": f"/qwenimage{_path(runs['mapped'])}/data?limit=100&offset=4900",
        "…, found by words": f"/qwenimage{_path(runs['mapped'])}/data?limit=100&text=robot+77",
        "the gallery's list, a batch, 100": f"/qwenimage{_path(runs['batch'])}/data?limit=100",
    }
    base = None
    for name, path in pages.items():
        first = airflow.get(path)
        rest = []
        for _ in range(_ROUNDS):
            # Longer than the gallery caches a run, so that each round reads the database.
            time.sleep(1.6)
            rest.append(airflow.get(path))
        middle = quantile(rest, 0.5)
        base = base or middle
        yield [name, f"{middle / base:.2f}", *(f"{seconds * 1000:.0f} ms" for seconds in (first, middle, max(rest)))]


@contextmanager
def _browser(airflow: _ApiServer) -> Iterator[Callable[[], Any]]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])

        def window() -> Any:
            page = browser.new_context(base_url=airflow.url, viewport={"width": 1280, "height": 800}).new_page()
            page.set_default_timeout(300_000)
            # Log in, and load Airflow's scripts into the cache.
            page.goto("/")
            page.get_by_role("link", name="Home").first.wait_for()
            return page

        yield window
        browser.close()


_SIX_PICTURES = """() => [...document.querySelectorAll('#grid img')]
    .filter(image => image.complete && image.naturalWidth > 0).length >= 6"""
_TO_THE_END = """async number => {
    while (document.querySelectorAll('#grid article').length < number) {
        scrollTo(0, document.body.scrollHeight);
        await new Promise(requestAnimationFrame);
    }
}"""


def _browser_times(airflow: _ApiServer, runs: dict[str, tuple[str, str]]) -> Iterator[list[str]]:
    _show("the browser")
    with _browser(airflow) as window:
        for kind, run in runs.items():
            seconds = []
            for _ in range(2):
                page = window()
                began = time.perf_counter()
                page.goto(f"/qwenimage{_path(run)}")
                page.wait_for_function(_SIX_PICTURES)
                seconds.append(time.perf_counter() - began)
            number = int(page.evaluate("async () => (await (await fetch(document.body.dataset.url)).json()).found"))
            began = time.perf_counter()
            page.evaluate(_TO_THE_END, number)
            seconds.append(time.perf_counter() - began)
            yield [kind, *(f"{value:.2f} s" for value in seconds)]


def _other_pages(airflow: _ApiServer, runs: dict[str, tuple[str, str]]) -> Iterator[list[str]]:
    _show("Airflow's own pages at the same time")
    run = runs["mapped"]

    def request_page(times: int) -> list[float]:
        taken = []
        for _ in range(times):
            taken.append(airflow.get("/api/v2/dags?limit=10"))
            time.sleep(0.05)
        return taken

    alone = request_page(200)
    offset = iter(range(1000, 10**6))

    def small_pictures(session: requests.Session, stopped: threading.Event) -> None:
        while not stopped.is_set():
            path = f"/qwenimage{_path(run)}/tasks/draw/images/1/thumbnail?map_index={next(offset) % 4000}"
            session.get(f"{airflow.url}{path}", timeout=60)

    def lists(session: requests.Session, stopped: threading.Event) -> None:
        # As often as the gallery's page does, but each thread at another moment.
        stopped.wait(random.uniform(0, 3))
        while not stopped.wait(3):
            session.get(f"{airflow.url}/qwenimage{_path(run)}/data?limit=60", timeout=60)

    yield _other_page("nobody uses the gallery", alone, alone)
    for name, load, threads in (
        ("a browser loads thumbnails that are not cached", small_pictures, 6),
        ("ten people watch the run", lists, 10),
    ):
        stopped = threading.Event()
        session = requests.Session()
        session.headers.update(airflow._session.headers)  # noqa: SLF001  the log-in
        session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=threads))
        running = [threading.Thread(target=load, args=(session, stopped)) for _ in range(threads)]
        for thread in running:
            thread.start()
        meanwhile = request_page(200)
        stopped.set()
        for thread in running:
            thread.join()
        yield _other_page(name, meanwhile, alone)


def _other_page(name: str, taken: list[float], alone: list[float]) -> list[str]:
    ratio = quantile(taken, 0.5) / quantile(alone, 0.5)
    values = (quantile(taken, 0.5), quantile(taken, 0.99), max(taken))
    return [name, f"{ratio:.2f}", *(f"{seconds * 1000:.0f} ms" for seconds in values)]


if __name__ == "__main__":
    sys.exit(main())

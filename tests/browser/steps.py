"""The steps of a user in Airflow's pages."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import FrameLocator, Locator, Page, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeoutError

_SECONDS = 120
# A click that has no effect for this long counts as lost.
_CLICK_MILLISECONDS = 5_000


_FIND_MESSAGE = """
words => [...document.querySelectorAll("[role=status]")].map(found => found.innerText)
    .find(text => text.includes(words))
"""


def run_path(dag_id: str, run_id: str) -> str:
    return f"/dags/{dag_id}/runs/{run_id}"


def gallery(page: Page) -> FrameLocator:
    """Return the gallery in the open tab or page of Airflow."""
    return page.frame_locator("iframe")


def open_tab(page: Page, path: str) -> FrameLocator:
    """Open a page of Airflow and click on its tab of images."""
    page.goto(path)
    return click_images(page)


def click_images(page: Page) -> FrameLocator:
    """Click on the tab of images."""
    follow(page, page.get_by_role("link", name="Images", exact=True), r"/plugin/qwenimage_")
    return gallery(page)


def follow(page: Page, link: Locator, address: str) -> None:
    """Click on a link until a page opens whose address matches a pattern."""
    for _ in _tries():
        if re.search(address, page.url):
            return
        with contextlib.suppress(PlaywrightTimeoutError):
            link.click(timeout=_CLICK_MILLISECONDS)
            page.wait_for_url(re.compile(address), timeout=_CLICK_MILLISECONDS, wait_until="commit")
    expect(page).to_have_url(re.compile(address))


def click_for(button: Locator, sought: Locator) -> None:
    """Click on a button until the element that it opens is visible."""
    for _ in _tries():
        if sought.is_visible():
            return
        with contextlib.suppress(PlaywrightTimeoutError):
            button.click(timeout=_CLICK_MILLISECONDS)
            sought.wait_for(timeout=_CLICK_MILLISECONDS)
    expect(sought).to_be_visible()


def _tries() -> Iterator[int]:
    """Count tries until the time is up: Airflow loses clicks while it renders a loading page again."""
    deadline = time.monotonic() + _SECONDS
    number = 0
    while time.monotonic() < deadline:
        yield number
        number += 1


def cards(shown: Any) -> Locator:
    found: Locator = shown.get_by_role("article")
    return found


def total(shown: Any, name: str) -> Locator:
    """Return the element with the number of this name in the totals."""
    found: Locator = shown.locator(f'#totals div:has(dt:text-is("{name}")) dd')
    return found


def loaded_pictures(shown: Any) -> int:
    """Return how many pictures of the grid the browser has drawn."""
    script = "images => images.filter(image => image.complete && image.naturalWidth > 0).length"
    return int(shown.locator("#grid img").evaluate_all(script))


def expect_pictures(page: Page, shown: Any, number: int) -> None:
    """Wait until this many pictures are drawn."""
    for _ in _tries():
        if loaded_pictures(shown) >= number:
            return
        page.wait_for_timeout(100)
    assert loaded_pictures(shown) >= number


def trigger(page: Page, dag_id: str) -> str:
    """Trigger a DAG by its button and return the id of the run."""
    page.goto(f"/dags/{dag_id}")
    confirm = page.get_by_role("dialog").get_by_role("button", name="Trigger")
    click_for(page.get_by_role("button", name="Trigger").first, confirm)
    confirm.click()
    expect(page).to_have_url(re.compile(r"/runs/manual__"))
    # The address changes before the page does; until then the tabs are those of the DAG.
    expect(page.get_by_role("heading", name=re.compile(r"^manual__"))).to_be_visible()
    return page.url.rpartition("/runs/")[2].partition("?")[0]


def add_connection(page: Page, conn_id: str, *, base_url: str, api_key: str, port: str = "443") -> None:
    """Fill in the form for a new connection and save it."""
    open_connection_form(page, conn_id)
    form = page.get_by_role("dialog")
    form.get_by_label("Base URL", exact=True).fill(base_url)
    form.get_by_label("API key", exact=True).fill(api_key)
    form.get_by_label("Port", exact=True).fill(port)
    save(page)


def open_connection_form(page: Page, conn_id: str) -> None:
    page.goto("/connections")
    form = page.get_by_role("dialog")
    click_for(page.get_by_role("button", name="Add Connection"), form.get_by_label("Connection ID"))
    form.get_by_label("Connection ID").fill(conn_id)
    form.get_by_role("combobox", name="Connection Type").fill("Qwen")
    page.get_by_role("option", name="Qwen Image", exact=True).click()


def save(page: Page) -> None:
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    page.get_by_role("dialog").wait_for(state="hidden")


def edit_connection(page: Page, conn_id: str) -> Locator:
    """Open the form of a stored connection."""
    page.goto("/connections")
    row = page.get_by_role("row").filter(has_text=conn_id)
    form = page.get_by_role("dialog")
    click_for(row.get_by_role("button", name="Edit Connection"), form.get_by_label("Base URL", exact=True))
    return form


def test_connection(page: Page, conn_id: str) -> str:
    """Click on Test in a connection's row and return the message."""
    page.goto("/connections")
    row = page.get_by_role("row").filter(has_text=conn_id)
    row.get_by_role("button", name="Test Connection").click()
    # Read in one step, because the message disappears.
    message = page.wait_for_function(_FIND_MESSAGE, arg="Test Connection").json_value()
    assert isinstance(message, str)
    return message


test_connection.__test__ = False  # type: ignore[attr-defined]  # despite its name, not a test

"""The connection form shows the saved values, and its test reports in one sentence what is wrong."""

from __future__ import annotations

import http.server
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser import steps
from tests.browser.conftest import API_KEY, World


@pytest.fixture
def web_server() -> Iterator[str]:
    """A web server that is not the API."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_form_of_a_saved_connection_shows_its_values(world: World, open_page: Callable[..., Any]) -> None:
    page = open_page()
    steps.open_connection_form(page, "reads_back")
    form = page.get_by_role("dialog")
    form.get_by_label("Base URL", exact=True).fill(world.api.url)
    form.get_by_label("API key", exact=True).fill(API_KEY)
    form.get_by_label("Port", exact=True).fill("443")
    form.get_by_role("button", name="Extra Fields", exact=True).click()
    for help_text in ("Default: 30", "Empty: no limit", "the path of a file of certificate authorities"):
        expect(form.get_by_text(help_text)).to_be_visible()
    form.get_by_role("spinbutton", name="Timeout in seconds").fill("12.5")
    form.get_by_role("spinbutton", name="Maximum requests per second").fill("2")
    form.get_by_role("spinbutton", name="Maximum requests per second").blur()
    form.locator("[name=element_verify]").fill("false")
    form.locator("[name=element_books_conn_id]").fill("books")
    form.get_by_role("spinbutton", name="Budget: credits per day").fill("100")
    form.get_by_role("spinbutton", name="Budget: credits per day").blur()
    steps.save(page)

    for _ in range(2):
        form = steps.edit_connection(page, "reads_back")
        expect(form.get_by_label("Base URL", exact=True)).to_have_value(world.api.url)
        expect(form.get_by_label("Port", exact=True)).to_have_value("443")
        form.get_by_role("button", name="Extra Fields", exact=True).click()
        expect(form.get_by_role("spinbutton", name="Timeout in seconds")).to_have_value("12.5")
        expect(form.locator("[name=element_verify]")).to_have_value("false")
        rate = form.get_by_role("spinbutton", name="Maximum requests per second")
        expect(rate).to_have_value(re.compile("2|3"))
        rate.fill("3")
        rate.blur()
        steps.save(page)
    assert world.airflow.extra_of("reads_back") == {
        "timeout_seconds": 12.5,
        "max_requests_per_second": 3,
        "verify": "false",
        "books_conn_id": "books",
        "credits_per_day": 100,
        # The form sends null for a field that is empty.
        "credits_per_month": None,
    }
    # The key is unchanged, although it was not entered again.
    assert "Connection works" in steps.test_connection(page, "reads_back")


def test_a_connection_test_reports_in_one_sentence_what_is_wrong(
    world: World, open_page: Callable[..., Any], web_server: str
) -> None:
    page = open_page()
    cases = {
        "works": (world.api.url, API_KEY, f"Connection works: {world.api.url} answered"),
        "wrong_key": (world.api.url, "sk-wrong", f"{world.api.url} refused the key"),
        "unreachable": ("http://127.0.0.1:9", API_KEY, "Cannot reach http://127.0.0.1:9: nothing listens"),
        "unknown_host": ("https://no-such-host.invalid", API_KEY, "Cannot reach https://no-such-host.invalid"),
        "other": (web_server, API_KEY, f"The server at {web_server} is not the Qwen-Image API"),
    }
    charged = world.api.credits_charged
    for conn_id, (base_url, api_key, expected) in cases.items():
        steps.add_connection(page, conn_id, base_url=base_url, api_key=api_key)
        message = steps.test_connection(page, conn_id)
        title, _, sentence = message.partition("\n")
        assert expected in sentence, message
        assert title == f"Test Connection {'Successful' if conn_id == 'works' else 'Failed'}"
        assert len(re.findall(r"[.!?](\s|$)", sentence)) == 1, sentence
        assert api_key not in message
    assert world.api.credits_charged == charged

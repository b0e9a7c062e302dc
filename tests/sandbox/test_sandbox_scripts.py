"""Each scripted behaviour does what its name says, once, in order."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
import requests
from PIL import Image, UnidentifiedImageError

from airflow_provider_qwenimage.sandbox.faults import BEHAVIOURS
from airflow_provider_qwenimage.sandbox.server import SandboxServer
from tests.events import wait_until

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api, Clock

ERRORS = {
    "rate_limit": 429,
    "server_error": 500,
    "unauthorized": 401,
    "payment": 402,
    "forbidden": 403,
    "not_found": 404,
}


@pytest.mark.parametrize("wire_style", ["http", "envelope"])
@pytest.mark.parametrize(("behaviour", "code"), ERRORS.items())
def test_an_error_is_answered_before_anything_happens(api: Api, behaviour: str, code: int, wire_style: str) -> None:
    api.sandbox.configure(wire_style=wire_style, retry_after=2.5)
    api.sandbox.script("generate", behaviour)
    answer = api.generate()
    assert answer.status_code == (code if wire_style == "http" else 200)
    assert answer.json()["code"] == code
    assert answer.headers.get("Retry-After") == ("3" if behaviour == "rate_limit" else None)
    assert api.sandbox.submissions == []
    task_id = api.submit()
    api.sandbox.script("status", behaviour)
    assert api.status(task_id).json()["code"] == code
    assert api.status(task_id).json()["code"] == 200


@pytest.mark.parametrize(("behaviour", "status"), [("created", 201), ("error_after", 500)])
@pytest.mark.parametrize("wire_style", ["http", "envelope"])
def test_a_success_is_answered_under_another_http_status(
    api: Api, behaviour: str, status: int, wire_style: str
) -> None:
    api.sandbox.configure(wire_style=wire_style)
    api.sandbox.script("generate", behaviour)
    accepted = api.generate()
    (submission,) = api.sandbox.submissions
    assert accepted.status_code == status
    assert (accepted.json()["code"], accepted.json()["data"]["task_id"]) == (200, submission.task_id)
    api.sandbox.script("status", behaviour)
    read = api.status(submission.task_id)
    assert (read.status_code, read.json()["data"]["task_id"]) == (status, submission.task_id)


def test_a_task_is_unknown_for_some_seconds_after_its_submission(api: Api, clock: Clock) -> None:
    api.sandbox.configure(unknown_seconds=2, seconds_per_image=0)
    task_id = api.submit()
    codes = []
    for seconds in (0, 1.9, 0.2):
        clock.now += seconds
        codes.append(api.status(task_id).json()["code"])
    assert codes == [404, 404, 200]


@pytest.mark.parametrize(("share", "code"), [("unauthorized", 401), ("forbidden", 403), ("not_found", 404)])
def test_a_share_of_status_requests_is_refused(api: Api, share: str, code: int) -> None:
    api.sandbox.configure(**{f"{share}_share": 0.5}, fault_paths=["status"], fault_seed=1)
    task_id = api.submit()
    assert {api.status(task_id).json()["code"] for _ in range(40)} == {200, code}


def test_behaviours_happen_in_order_and_as_often_as_scripted(api: Api) -> None:
    task_id = api.submit()
    api.sandbox.script("status", ("server_error", 2), "ok", "rate_limit")
    codes = [api.status(task_id).status_code for _ in range(5)]
    assert codes == [500, 500, 200, 429, 200]


def test_a_script_applies_to_its_route_only(api: Api) -> None:
    api.sandbox.script("status", "server_error")
    assert api.generate().status_code == 200


def test_a_script_comes_before_the_shares(api: Api) -> None:
    api.sandbox.configure(server_error_share=1)
    api.sandbox.script("generate", "ok")
    assert [api.generate().status_code for _ in range(2)] == [200, 500]


@pytest.mark.parametrize(("behaviour", "accepted"), [("drop", 0), ("drop_after", 1)])
def test_a_dropped_submission_is_charged_only_if_dropped_after(api: Api, behaviour: str, accepted: int) -> None:
    api.sandbox.script("generate", behaviour)
    with pytest.raises(requests.ConnectionError):
        api.generate()
    assert len(api.sandbox.submissions) == accepted
    assert api.sandbox.credits_charged == 5 * accepted
    (record,) = api.sandbox.requests
    assert (record.status, record.behaviour) == (None, behaviour)


@contextlib.contextmanager
def submitting(api: Api) -> Iterator[HTTPConnection]:
    """Submit, without waiting for the answer; hang up at the end of the block."""
    connection = HTTPConnection(api.sandbox.url.removeprefix("http://"))
    headers = {"Authorization": "Bearer sk-sandbox", "Content-Type": "application/json"}
    with contextlib.closing(connection):
        connection.request("POST", "/api/generate", json.dumps({"prompt": "a cat"}), headers)
        yield connection


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of hanging requests, in seconds; each is added when it starts."""
    pause, started = SandboxServer._pause, list[float]()

    async def note(server: SandboxServer, seconds: float) -> None:
        started.append(seconds)
        await pause(server, seconds)

    monkeypatch.setattr(SandboxServer, "_pause", note)
    return started


@pytest.mark.parametrize(("behaviour", "accepted"), [("hang", 0), ("hang_after", 1)])
def test_a_hanging_submission_is_charged_only_if_it_hangs_after_processing(
    api: Api, pauses: list[float], behaviour: str, accepted: int
) -> None:
    api.sandbox.script("generate", behaviour)
    with submitting(api) as connection:
        wait_until(lambda: pauses, "the hanging")
        assert len(api.sandbox.submissions) == accepted
        connection.sock.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.getresponse()
    assert len(api.sandbox.submissions) == accepted


def test_a_client_that_hangs_up_is_not_charged(api: Api, pauses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    serve, ended = SandboxServer._serve, threading.Event()

    async def note(*args: Any) -> Any:
        try:
            return await serve(*args)
        finally:
            ended.set()

    monkeypatch.setattr(SandboxServer, "_serve", note)
    api.sandbox.configure(hang_seconds=3600)
    api.sandbox.script("generate", "hang")
    with submitting(api):
        wait_until(lambda: pauses, "the hanging")
        assert not ended.is_set()
    wait_until(ended.is_set, "the sandbox to see that the client has hung up")
    assert api.sandbox.submissions == []


@pytest.mark.parametrize("behaviour", ["hang", "hang_after"])
def test_a_client_that_waits_long_enough_gets_an_answer(api: Api, behaviour: str) -> None:
    api.sandbox.configure(hang_seconds=0.2)
    api.sandbox.script("generate", behaviour)
    started = time.monotonic()
    assert api.generate().json()["code"] == 200
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(("behaviour", "accepted"), [("html", 0), ("html_after", 1)])
def test_an_html_page_is_sent_instead_of_an_answer(api: Api, behaviour: str, accepted: int) -> None:
    api.sandbox.script("generate", behaviour)
    answer = api.generate()
    assert answer.status_code == 502
    assert answer.headers["Content-Type"].startswith("text/html")
    assert "<html>" in answer.text
    assert len(api.sandbox.submissions) == accepted


@pytest.mark.parametrize("route", ["generate", "status"])
@pytest.mark.parametrize("behaviour", ["empty", "malformed", "wrong_shape", "unknown_status"])
def test_a_faulty_answer_is_200_and_its_request_is_processed(api: Api, route: str, behaviour: str) -> None:
    task_id = api.submit()
    api.sandbox.script(route, behaviour)
    answer = api.generate() if route == "generate" else api.status(task_id)
    assert answer.status_code == 200
    assert len(api.sandbox.submissions) == (2 if route == "generate" else 1)
    if behaviour == "empty":
        assert answer.content == b""
    elif behaviour == "malformed":
        with pytest.raises(requests.JSONDecodeError):
            answer.json()
    elif behaviour == "wrong_shape":
        assert answer.json()["data"]["task_id"] == 7
    else:
        assert answer.json()["data"]["status"] == "PAUSED"


@pytest.mark.parametrize("route", ["generate", "status"])
def test_a_redirect_of_the_api_leads_to_another_origin(api: Api, route: str) -> None:
    api.sandbox.script(route, "redirect")
    answer = api.generate() if route == "generate" else api.status("n43")
    assert answer.status_code == 302
    assert not answer.headers["Location"].startswith(api.sandbox.url)
    assert api.image(answer.headers["Location"]).status_code == 404
    assert [record.route for record in api.sandbox.requests] == [route, "redirected"]
    assert api.sandbox.submissions == []


@pytest.mark.parametrize(
    ("behaviour", "status"), [("failure", "FAILED"), ("policy", "FAILED"), ("slow", "IN_PROGRESS")]
)
def test_the_outcome_and_duration_of_a_task_can_be_scripted(
    api: Api, clock: Clock, behaviour: str, status: str
) -> None:
    api.sandbox.configure(seconds_per_image=100, pending_share=0)
    api.sandbox.script("generate", behaviour)
    task_id = api.submit()
    clock.now += 150
    assert api.status(task_id).json()["data"]["status"] == status


def test_a_redirect_of_an_image_leads_to_the_image(api: Api) -> None:
    url = api.image_url()
    api.sandbox.script("image", "redirect")
    assert api.image(url, allow_redirects=True).headers["Content-Type"] == "image/jpeg"


def test_a_truncated_image_ends_before_its_content_length(api: Api) -> None:
    url = api.image_url()
    api.sandbox.script("image", "truncate")
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        api.image(url)


def test_a_truncated_image_can_have_a_matching_content_length(api: Api) -> None:
    url = api.image_url(seed=1)
    whole = api.image(url).content
    api.sandbox.script("image", "truncate_with_length")
    cut = api.image(url)
    assert int(cut.headers["Content-Length"]) == len(cut.content) == len(whole) // 2
    assert whole.startswith(cut.content)


def test_an_image_can_have_another_format_than_its_content_type(api: Api) -> None:
    url = api.image_url(output_format="png")
    api.sandbox.script("image", "wrong_format")
    answer = api.image(url)
    assert answer.headers["Content-Type"] == "image/png"
    with Image.open(BytesIO(answer.content)) as picture:
        assert picture.format == "JPEG"


def test_an_image_can_have_another_size_than_requested(api: Api) -> None:
    url = api.image_url()
    api.sandbox.script("image", "wrong_size")
    with Image.open(BytesIO(api.image(url).content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (512, 512))


def test_an_oversized_image_has_no_content_length(api: Api) -> None:
    api.sandbox.configure(oversized_bytes=3_000_001)
    url = api.image_url()
    api.sandbox.script("image", "oversized")
    answer = api.image(url)
    assert "Content-Length" not in answer.headers
    assert len(answer.content) == 3_000_001


def test_a_garbage_image_cannot_be_decoded(api: Api) -> None:
    url = api.image_url()
    api.sandbox.script("image", "garbage")
    answer = api.image(url)
    assert answer.headers["Content-Type"] == "image/jpeg"
    with pytest.raises(UnidentifiedImageError):
        Image.open(BytesIO(answer.content))


def test_an_html_page_can_be_sent_instead_of_an_image(api: Api) -> None:
    url = api.image_url()
    api.sandbox.script("image", "html")
    answer = api.image(url)
    assert (answer.status_code, answer.headers["Content-Type"].split(";")[0]) == (200, "text/html")


@pytest.mark.parametrize("behaviour", BEHAVIOURS["image"])
def test_after_each_image_behaviour_the_next_request_gets_the_image(api: Api, behaviour: str) -> None:
    api.sandbox.configure(hang_seconds=0.01, oversized_bytes=200_000)
    url = api.image_url(seed=1)
    api.sandbox.script("image", behaviour)
    try:
        faulty = api.image(url)
    except requests.RequestException:
        faulty = None
    whole = api.image(url)
    assert whole.status_code == 200
    assert whole.headers["Content-Type"] == "image/jpeg"
    if behaviour in ("ok", "hang", "hang_after"):
        assert faulty is not None
        assert faulty.content == whole.content
    else:
        assert faulty is None or faulty.content != whole.content


@pytest.mark.parametrize(
    ("route", "item", "names"),
    [
        ("images", "ok", "generate, status, image"),
        ("status", "truncate", "server_error"),
        ("image", "policy", "garbage"),
        ("status", ("ok", 0), "how many times"),
        ("status", ("ok", True), "how many times"),
        ("status", 7, "name of a behaviour"),
    ],
)
def test_a_script_with_one_invalid_item_is_refused_as_a_whole(api: Api, route: str, item: Any, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        api.sandbox.script(route, "server_error", item)
    assert api.status("n43").status_code == 404

"""The sandbox answers as the API's documentation describes, in both wire styles."""

from __future__ import annotations

import json
import re
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.sandbox.conftest import Api, Clock

STYLES = pytest.mark.parametrize("wire_style", ["http", "envelope"])


def check_error(answer: Any, wire_style: str, code: int) -> str:
    assert answer.status_code == (code if wire_style == "http" else 200)
    assert answer.headers["Content-Type"].startswith("application/json")
    envelope = answer.json()
    assert set(envelope) == {"code", "message", "data"}
    assert envelope["code"] == code
    assert envelope["data"] is None
    assert isinstance(envelope["message"], str)
    return str(envelope["message"])


def test_a_submission_is_answered_at_once_with_a_task_id(api: Api) -> None:
    api.sandbox.configure(seconds_per_image=3600)
    answer = api.generate({"prompt": "a cat"})
    assert answer.status_code == 200
    envelope = answer.json()
    assert (envelope["code"], envelope["message"]) == (200, "success")
    assert re.fullmatch(r"n43[0-9a-f]+qwenimg", envelope["data"]["task_id"])
    assert envelope["data"]["status"] == "IN_PROGRESS"


def test_a_task_is_pending_then_in_progress_then_succeeds(api: Api, clock: Clock) -> None:
    api.sandbox.configure(seconds_per_image=4, pending_share=0.5)
    task_id = api.submit("a cat", seed=7, size="1024*768", output_format="png")
    seen: list[dict[str, Any]] = []
    for _ in range(5):
        seen.append(api.status(task_id).json()["data"])
        clock.now += 1
    statuses = [data["status"] for data in seen]
    assert statuses == ["PENDING", "PENDING", "IN_PROGRESS", "IN_PROGRESS", "SUCCESS"]
    assert {data["consumed_credits"] for data in seen} == {5}
    assert all(data["response"] is None for data in seen[:-1])
    last = seen[-1]
    assert set(last) == {
        "task_id",
        "status",
        "consumed_credits",
        "error_message",
        "created_at",
        "request",
        "response",
    }
    assert last["task_id"] == task_id
    assert last["error_message"] is None
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", last["created_at"])
    assert last["request"] == {"prompt": "a cat", "seed": 7, "size": "1024*768", "output_format": "png"}
    assert len(last["response"]) == 1


def test_the_defaults_are_a_square_jpeg(api: Api) -> None:
    data = api.finish(api.submit())
    assert data["request"] == {"prompt": "a cat", "size": "1024*1024", "seed": -1, "output_format": "jpeg"}
    image = api.image(data["response"][0])
    assert image.headers["Content-Type"] == "image/jpeg"
    assert int(image.headers["Content-Length"]) == len(image.content)
    with Image.open(BytesIO(image.content)) as picture:
        assert (picture.format, picture.size) == ("JPEG", (1024, 1024))


@STYLES
@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({}, "'prompt' is required."),
        ({"prompt": ""}, "'prompt' is required."),
        ({"prompt": "  \n"}, "'prompt' is required."),
        ({"prompt": None}, "'prompt' is required."),
        ({"prompt": 7}, "'prompt' must be a string"),
        ({"prompt": "x" * 2001}, "2001"),
        ({"prompt": "a", "size": "512*512"}, "512*512"),
        ({"prompt": "a", "size": ["1024*1024"]}, "'size'"),
        ({"prompt": "a", "output_format": "gif"}, "gif"),
        ({"prompt": "a", "output_format": None}, "'output_format'"),
        ({"prompt": "a", "seed": -2}, "-2"),
        ({"prompt": "a", "seed": 1.5}, "1.5"),
        ({"prompt": "a", "seed": "42"}, "42"),
        ({"prompt": "a", "seed": True}, "seed"),
        ({"prompt": "a", "seed": None}, "seed"),
        ({"prompt": "a", "callback_url": "ftp://example.com"}, "callback_url"),
        ({"prompt": "a", "callback_url": "nonsense"}, "callback_url"),
        ([1, 2], "not a JSON object"),
        ("a cat", "not a JSON object"),
    ],
)
def test_an_invalid_request_is_refused(api: Api, wire_style: str, body: Any, names: str) -> None:
    api.sandbox.configure(wire_style=wire_style)
    message = check_error(api.generate(data=json.dumps(body)), wire_style, 400)
    assert message.startswith("Bad Request: ")
    assert names in message
    assert api.sandbox.submissions == []
    assert api.sandbox.credits_charged == 0


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe\xfa", b"[" * 100_000, b'{"prompt": "a", "seed": NaN}', b'{"a": "' + b"x" * 2**20]
)
def test_a_body_that_is_not_a_valid_request_is_refused(api: Api, body: bytes) -> None:
    check_error(api.generate(data=body), "http", 400)


def test_the_missing_prompt_has_the_documented_message(api: Api) -> None:
    assert api.generate({}).json() == {"code": 400, "message": "Bad Request: 'prompt' is required.", "data": None}


@pytest.mark.parametrize(
    "fields", [{"prompt": "x" * 2000}, {"seed": 0}, {"seed": 42.0}, {"seed": 2**63 - 1}, {"style": "oil", "n": 4}]
)
def test_a_valid_request_at_the_limits_is_accepted(api: Api, fields: dict[str, Any]) -> None:
    api.submit(**fields)
    (submission,) = api.sandbox.submissions
    assert set(submission.request) == {"prompt", "size", "seed", "output_format"}


@STYLES
@pytest.mark.parametrize("key", [None, "sk-wrong", ""])
def test_a_missing_or_wrong_key_is_refused(api: Api, wire_style: str, key: str | None) -> None:
    api.sandbox.configure(wire_style=wire_style)
    check_error(api.generate(key=key), wire_style, 401)
    check_error(api.status("n43", key=key), wire_style, 401)
    assert api.sandbox.submissions == []


def test_the_accepted_keys_can_be_changed(api: Api) -> None:
    api.sandbox.configure(api_keys=["sk-one", "sk-two"])
    assert [api.generate(key=key).status_code for key in ("sk-one", "sk-two", "sk-sandbox")] == [200, 200, 401]
    assert api.sandbox.api_key == "sk-one"


@STYLES
def test_an_unknown_or_missing_task_id_is_refused(api: Api, wire_style: str) -> None:
    api.sandbox.configure(wire_style=wire_style)
    check_error(api.status("n43unknown"), wire_style, 404)
    check_error(api.status(None), wire_style, 400)
    check_error(api.status(""), wire_style, 400)


@STYLES
def test_unknown_paths_and_methods_are_answered_with_the_known_ones(api: Api, wire_style: str) -> None:
    api.sandbox.configure(wire_style=wire_style)
    assert "/api/generate" in check_error(api.request("GET", "/api/list"), wire_style, 404)
    assert "POST /api/generate" in check_error(api.request("GET", "/api/generate"), wire_style, 405)


def test_a_refused_prompt_costs_nothing(api: Api) -> None:
    data = api.finish(api.submit("a cat [policy]"))
    assert data["status"] == "FAILED"
    assert data["error_message"] == "Content policy violation detected"
    assert (data["consumed_credits"], data["response"]) == (0, None)
    assert api.sandbox.credits_charged == 0


def test_a_failure_by_magic_word_has_another_message(api: Api) -> None:
    data = api.finish(api.submit("a cat [FAIL]"))
    assert (data["status"], data["consumed_credits"]) == ("FAILED", 0)
    assert "policy" not in data["error_message"]


def test_a_slow_prompt_takes_ten_times_as_long(api: Api, clock: Clock) -> None:
    api.sandbox.configure(seconds_per_image=2)
    task_id = api.submit("a cat [slow]")
    clock.now += 19
    assert api.status(task_id).json()["data"]["status"] == "IN_PROGRESS"
    clock.now += 1
    assert api.status(task_id).json()["data"]["status"] == "SUCCESS"


@STYLES
def test_insufficient_credits_are_402_and_refunds_can_be_spent(api: Api, wire_style: str) -> None:
    api.sandbox.configure(wire_style=wire_style, credits=10)
    api.submit("[fail]")
    api.submit()
    api.submit()
    check_error(api.generate(), wire_style, 402)
    assert api.sandbox.credits_charged == 10
    assert len(api.sandbox.submissions) == 3


def test_the_same_seed_gives_the_same_bytes_and_a_random_seed_gives_others(api: Api) -> None:
    first, again = (api.image(api.image_url(seed=3)).content for _ in range(2))
    one, other = (api.image(api.image_url(seed=-1)).content for _ in range(2))
    assert first == again
    assert len({first, one, other}) == 3
    assert len({submission.seed for submission in api.sandbox.submissions}) == 3


def test_the_cdn_has_its_own_origin_and_needs_no_key(api: Api) -> None:
    url = api.image_url()
    assert not url.startswith(api.sandbox.url)
    assert api.image(url).status_code == 200
    assert api.image(url, headers={"Authorization": "Bearer leaked"}).status_code == 200
    records = [record for record in api.sandbox.requests if record.route == "image"]
    assert [record.authorized_header for record in records] == [False, True]


@pytest.mark.parametrize("prompt", ["[fail]", "[slow]"])
def test_there_is_no_image_before_success(api: Api, prompt: str) -> None:
    api.sandbox.configure(seconds_per_image=3600 if prompt == "[slow]" else 0)
    task_id = api.submit(prompt)
    url = api.image_url() if prompt == "[fail]" else f"{api.sandbox.url}/cdn/x.jpeg"
    base = url.rpartition("/")[0]
    assert api.image(f"{base}/{task_id}.jpeg").status_code == 404
    assert api.image(f"{base}/{task_id}.png").status_code == 404

"""A recording contains neither the API key nor what grants access to an image, wherever an answer has it."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from airflow_provider_qwenimage.recordings.cleaning import (
    BYTES,
    JSON,
    LEFT_OUT,
    TEXT,
    clean_body,
    clean_headers,
    clean_image,
    other_headers,
)
from airflow_provider_qwenimage.text.masking import Mask

KEY = "sk-a-very-secret-key"
MASK = Mask(KEY)
SIGNATURE = "c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "value",
    [
        KEY,
        {KEY: 1},
        ["no", [{"deep": f"key={KEY}"}]],
        base64.b64encode(KEY.encode()).decode(),
        f"https://cdn.example.com/image.png?sig={SIGNATURE}",
        f"https://cdn.example.com/image.png#{SIGNATURE}",
        f"https://{SIGNATURE}@cdn.example.com/image.png",
        f"/image.png?sig={SIGNATURE}",
        f"see (https://cdn.example.com/a.png?{SIGNATURE})",
        f"https:\\/\\/cdn.example.com\\/a.png\\u003fsig={SIGNATURE}",
        f"https%3A%2F%2Fcdn.example.com%2Fa.png%3Fsig%3D{SIGNATURE}",
        {f"https://cdn.example.com/image.png?sig={SIGNATURE}": None},
    ],
)
def test_neither_key_nor_query_is_left_in_json_or_in_text(value: Any) -> None:
    body = json.dumps({"data": value}).encode()
    for sent, form in ((body, JSON), (body[:-1], TEXT)):
        cleaned = clean_body(sent, MASK)
        assert cleaned.form == form
        text = json.dumps(cleaned.content)
        assert KEY not in text
        assert SIGNATURE not in text
        assert base64.b64encode(KEY.encode()).decode()[:20] not in text


def test_the_rest_of_an_answer_is_kept() -> None:
    envelope = {"code": 200, "message": "success", "data": {"task_id": "n43", "n": 1.5, "list": [None, True, ""]}}
    assert clean_body(json.dumps(envelope).encode(), MASK).content == envelope


def test_headers_that_grant_access_are_named_only() -> None:
    headers = {
        "content-type": "application/json",
        "set-cookie": f"session={SIGNATURE}",
        "location": f"https://user:pw@example.com/login?token={SIGNATURE}#x",
        "server": f"nginx {KEY}\x00é",
        "x-request-id": SIGNATURE,
        f"x-{KEY}": "1",
    }
    assert clean_headers(headers, MASK) == {
        "content-type": "application/json",
        "location": "https://example.com/login",
        "server": "nginx ***?",
    }
    assert other_headers(headers, MASK) == ("set-cookie", "x-request-id")


def test_a_relative_redirect_loses_its_query() -> None:
    assert clean_headers({"location": f"/login?next=/&token={SIGNATURE}"}, MASK) == {"location": "/login"}


def test_an_image_that_contains_the_key_is_left_out() -> None:
    assert clean_image(b"\x89PNG" + KEY.encode(), MASK).form == LEFT_OUT
    assert clean_image(b"\x89PNG\xff\x00", MASK).content == b"\x89PNG\xff\x00"
    assert clean_image(b"\x89PNG\xff\x00", MASK).form == BYTES


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[" * 50_000, b'{"a": NaN}', b'"\\ud800"', b"1" * 5000, b"<html>\x00", b"x" * 100_000],
)
def test_any_body_is_cleaned_to_something_that_json_can_hold(body: bytes) -> None:
    cleaned = clean_body(body, MASK)
    json.loads(json.dumps(cleaned.content, allow_nan=False))

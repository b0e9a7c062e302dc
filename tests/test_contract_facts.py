"""What was seen is compared with what is documented, whatever was seen."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_qwenimage.cli.doctor.drawing import REQUEST
from airflow_provider_qwenimage.recordings.cleaning import BYTES, JSON, LEFT_OUT, TEXT, Body
from airflow_provider_qwenimage.recordings.format import RecordedAnswer
from airflow_provider_qwenimage.rules.contract_facts import contract_facts

SUBMITTED = {"task_id": "n43", "status": "IN_PROGRESS"}
DONE = {
    **SUBMITTED,
    "status": "SUCCESS",
    "consumed_credits": 5,
    "error_message": None,
    "created_at": "2024-12-19T10:00:00Z",
    "request": REQUEST.payload(),
    "response": ["https://cdn.example.com/image.png"],
}


def answer(kind: str, data: Any = None, *, image: int = 1, **fields: Any) -> RecordedAnswer:
    body = Body(JSON, {"code": 200, "message": "success", "data": data})
    given = {"status": 200, "body": body, "request": REQUEST.payload() if kind == "submission" else {}, **fields}
    return RecordedAnswer(image=image, kind=kind, at=1.0, seconds=0.1, **given)


def facts(*answers: RecordedAnswer) -> dict[str, tuple[str, str]]:
    return {one.fact: (one.seen, one.verdict) for one in contract_facts(answers)}


def test_the_documented_answers_are_as_documented() -> None:
    found = facts(answer("submission", SUBMITTED), answer("status", DONE))
    assert {verdict for _, verdict in found.values()} == {"as documented", "not documented"}
    assert found["status: request"] == ("the request as sent", "not documented")


@pytest.mark.parametrize(
    ("change", "fact", "seen"),
    [
        ({"consumed_credits": "5"}, "status: data", "consumed_credits (string)"),
        ({"consumed_credits": True}, "status: data", "consumed_credits (boolean)"),
        ({"consumed_credits": 7}, "status: consumed_credits", "SUCCESS 7"),
        ({"progress": 1}, "status: data", "not documented: progress"),
        ({"error_message": 3}, "status: data", "error_message (number)"),
        ({"created_at": 1_700_000_000}, "status: created_at", "number"),
        ({"created_at": "19.12.2024"}, "status: created_at", "99.99.9999"),
        ({"status": "COMPLETED"}, "status: statuses", "COMPLETED"),
        ({"response": "https://cdn.example.com/image.png"}, "status: response on SUCCESS", "string"),
        ({"response": []}, "status: response on SUCCESS", "an empty list"),
        ({"response": [{"url": "x"}]}, "status: response on SUCCESS", "a list of 1: object"),
    ],
)
def test_what_differs_is_named(change: dict[str, Any], fact: str, seen: str) -> None:
    found = facts(answer("submission", SUBMITTED), answer("status", {**DONE, **change}))
    assert seen in found[fact][0]
    assert found[fact][1] == "differs"


def test_a_missing_field_and_another_envelope_differ() -> None:
    body = Body(JSON, {"code": "200", "data": SUBMITTED, "traceId": 1})
    seen, verdict = facts(answer("submission", body=body))["submission: envelope"]
    assert (verdict, "missing: message" in seen, "not documented: traceId" in seen) == ("differs", True, True)
    assert facts(answer("submission", body=body))["submission: code"] == ("'200'", "differs")


@pytest.mark.parametrize("body", [Body(TEXT, "<html>"), Body(JSON, []), Body(LEFT_OUT, "too long")])
def test_a_body_that_is_no_envelope(body: Body) -> None:
    assert facts(answer("submission", body=body))["submission: envelope"][1] == "differs"
    assert "not the API's JSON" in facts(answer("status", body=body))["status: reads that failed"][0]


def test_equal_seeds_are_compared_only_if_both_images_were_downloaded() -> None:
    def images(*contents: bytes) -> dict[str, tuple[str, str]]:
        drawn = [
            each
            for number, content in enumerate(contents, start=1)
            for each in (
                answer("submission", SUBMITTED, image=number),
                answer("image", image=number, body=Body(BYTES, content)),
            )
        ]
        return facts(*drawn)

    name = "image: equal seed, equal bytes"
    assert images(b"a", b"a")[name][0] == "yes"
    assert images(b"a", b"b")[name][0] == "no"
    assert name not in images(b"a")
    assert images(b"a")["image: format and size"][1] == "differs"


def test_the_life_of_the_url_and_limits() -> None:
    found = facts(
        answer("submission", SUBMITTED, headers={"x-ratelimit-limit": "10"}),
        answer("image", body=Body(LEFT_OUT, "x"), url_parameters=("X-Amz-Expires",), url_seconds=3600.0),
    )
    assert found["image: how long the URL is valid, by its query"][0] == "60 min (X-Amz-Expires)"
    assert found["request limits in headers"][0] == "x-ratelimit-limit: 10"


def test_no_answers_are_no_facts() -> None:
    assert facts() == {}

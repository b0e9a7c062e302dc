"""The records of images from the XComs of their tasks, without a database, a server or a file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_qwenimage.plugin import batch_records
from airflow_provider_qwenimage.plugin.batch_records import records_of_batch
from airflow_provider_qwenimage.plugin.bounds import json_value
from airflow_provider_qwenimage.plugin.image_records import (
    BatchRecord,
    ImageRecord,
    Records,
    Status,
    TaskInstance,
    UnreadableXCom,
    totals_of,
)
from airflow_provider_qwenimage.plugin.task_kinds import BATCH_OPERATOR, SENSOR, TaskKind, kind_of
from airflow_provider_qwenimage.plugin.task_records import records_of_task
from airflow_provider_qwenimage.plugin.waits import merge_waits
from airflow_provider_qwenimage.rules.image_texts import MAX_LABEL_CHARACTERS
from airflow_provider_qwenimage.rules.made_by import Region

REQUEST = {"prompt": "A fox", "size": "1024*1024", "seed": 7, "output_format": "jpeg"}
TASK_ID = "n43abcqwenimg"
STORED = {
    "task_id": TASK_ID,
    "status": "SUCCESS",
    "image_urls": ["https://cdn.example/1.jpeg"],
    "paths": ["/images/a-fox.jpg"],
    "consumed_credits": 5,
    "seed": 7,
    "size": "1024*1024",
    "output_format": "jpeg",
    "reused": False,
}
SUBMITTED = {"request": REQUEST, "task_id": TASK_ID}


def task(state: str | None = "success", **fields: Any) -> TaskInstance:
    known: dict[str, Any] = {
        "dag_id": "foxes",
        "run_id": "manual__1",
        "task_id": "draw",
        "map_index": -1,
        "operator": "QwenImageGenerateOperator",
        "try_number": 1,
        "changed_at": "2026-11-25T08:00:00+00:00",
    }
    return TaskInstance(state=state, **known | fields)


def record(state: str | None, xcoms: dict[str, Any], **fields: Any) -> ImageRecord:
    (only,) = records_of_task(task(state, **fields), xcoms)
    return only


def sensor(state: str, xcoms: dict[str, Any]) -> list[ImageRecord]:
    return records_of_task(task(state, task_id="wait", operator=SENSOR), xcoms)


@pytest.mark.parametrize("state", [None, "scheduled", "queued"])
def test_a_task_that_has_not_started_is_waiting(state: str | None) -> None:
    assert record(state, {}).status is Status.WAITING


@pytest.mark.parametrize("state", ["running", "deferred", "up_for_retry", "restarting"])
def test_a_running_task_is_drawing_and_shows_its_prompt(state: str) -> None:
    drawing = record(state, SUBMITTED)
    assert (drawing.status, drawing.state, drawing.image_task_id) == (Status.DRAWING, state, TASK_ID)
    assert drawing.request == REQUEST
    assert (drawing.consumed_credits, drawing.at_risk) == (None, 0)


def test_a_stored_image_is_done_with_all_known_fields() -> None:
    done = record("success", {**SUBMITTED, "return_value": STORED, "consumed_credits": 5})
    assert (done.status, done.path, done.image_url) == (Status.DONE, "/images/a-fox.jpg", "https://cdn.example/1.jpeg")
    assert (done.request, done.consumed_credits, done.at_risk, done.reused) == (REQUEST, 5, 0, False)


def test_a_task_shows_the_label_that_it_has_pushed_with_its_request() -> None:
    xcoms = {**SUBMITTED, "request": REQUEST | {"label": "red fox"}}
    assert record("running", xcoms).label == "red fox"
    assert record("success", {**xcoms, "return_value": STORED}).label == "red fox"
    assert record("failed", {**xcoms, "request": "odd"}).label is None


def test_a_reused_image_is_marked_and_costs_nothing() -> None:
    result = STORED | {"reused": True, "consumed_credits": 0}
    reused = record("success", {**SUBMITTED, "return_value": result, "consumed_credits": 0})
    assert (reused.status, reused.state, reused.consumed_credits) == (Status.DONE, "reused", 0)


def test_several_images_of_one_image_task_cost_its_credits_once() -> None:
    result = STORED | {"paths": ["/images/1.jpg", "/images/2.jpg"], "image_urls": []}
    both = records_of_task(task(), {**SUBMITTED, "return_value": result, "consumed_credits": 5})
    assert [image.number for image in both] == [1, 2]
    assert totals_of(Records(both)).consumed_credits == 5


def test_a_failure_shows_its_error_and_what_it_cost() -> None:
    failed = record(
        "failed",
        {**SUBMITTED, "consumed_credits": 0, "error": {"error": "QwenImageTaskFailedError", "message": "It failed."}},
    )
    assert (failed.status, failed.error, failed.message) == (Status.FAILED, "QwenImageTaskFailedError", "It failed.")
    assert (failed.consumed_credits, failed.at_risk) == (0, 0)


def test_a_failure_before_the_submission_risks_nothing() -> None:
    error = {"error": "QwenImageAuthError", "message": "401"}
    assert record("failed", {"request": REQUEST, "error": error}).at_risk == 0


def test_a_submission_without_an_answer_may_be_paid() -> None:
    error = {"error": "QwenImageSubmissionUnknownError", "message": "The answer was lost."}
    lost = record("failed", {"request": REQUEST, "error": error})
    assert (lost.status, lost.at_risk) == (Status.UNKNOWN, 5)


def test_a_submitted_image_that_could_not_be_waited_for_may_be_paid() -> None:
    error = {"error": "QwenImageTimeoutError", "message": "Not done in time."}
    assert record("failed", {**SUBMITTED, "error": error}).at_risk == 5
    assert record("up_for_retry", {**SUBMITTED, "error": error}).at_risk == 0


def test_a_killed_task_that_could_push_nothing_has_failed() -> None:
    assert record("failed", {}).status is Status.FAILED


@pytest.mark.parametrize("state", ["skipped", "upstream_failed", "removed"])
def test_a_task_that_never_ran_is_not_shown(state: str) -> None:
    assert records_of_task(task(state), {}) == []
    assert records_of_batch(task(state, operator=BATCH_OPERATOR), {}, [], None) == Records()


def test_a_sensor_that_was_skipped_softly_shows_why() -> None:
    error = {"error": "QwenImageTimeoutError", "message": "Not done in time."}
    (skipped,) = sensor("skipped", {"task_id": TASK_ID, "error": error})
    assert (skipped.status, skipped.message, skipped.at_risk) == (Status.FAILED, "Not done in time.", 0)


def test_tasks_of_other_packages_are_not_shown() -> None:
    pushed = {"return_value": ["https://cdn.example/1.jpeg"], "task_id": "x", "error": {"error": "a", "message": "b"}}
    assert records_of_task(task("success", operator="PythonOperator"), pushed) == []
    for request in ({"url": "https://a"}, {"prompt": "A fox"}, {"size": "1024*1024"}, REQUEST | {"size": "XL"}):
        assert records_of_task(task("success", operator="PythonOperator"), {"request": request}) == []


def test_an_operator_derived_from_ours_is_shown() -> None:
    assert record("running", SUBMITTED, operator="OurHouseStyleOperator").request == REQUEST


@pytest.mark.parametrize(
    ("operator", "xcoms", "kind"),
    [
        ("QwenImageGenerateOperator", {}, TaskKind.IMAGE),
        (BATCH_OPERATOR, {}, TaskKind.BATCH),
        ("_QwenImageDecoratedOperator", {}, TaskKind.IMAGE),
        ("_QwenImageBatchDecoratedOperator", {}, TaskKind.BATCH),
        (SENSOR, {"progress": {"requests": 2}}, TaskKind.SENSOR),
        ("OurHouseStyleOperator", {"request": REQUEST}, TaskKind.IMAGE),
        ("OurBatchOperator", {"progress": {"requests": 2}}, TaskKind.BATCH),
        ("PythonOperator", {"progress": "half", "request": {"prompt": "A fox"}}, None),
        (None, {}, None),
    ],
)
def test_the_kind_of_a_task_is_known_from_its_operator_or_its_xcoms(operator: Any, xcoms: Any, kind: Any) -> None:
    assert kind_of(task(operator=operator), xcoms) is kind


def test_a_submission_and_its_sensor_are_one_image() -> None:
    submitted = records_of_task(task("success"), {**SUBMITTED, "return_value": TASK_ID})
    assert submitted[0].state == "submitted"
    waited = sensor(
        "success", {"task_id": TASK_ID, "return_value": ["https://cdn.example/1.jpeg"], "consumed_credits": 5}
    )
    (image,) = merge_waits([*submitted, *waited])
    assert (image.status, image.image_url, image.consumed_credits) == (Status.DONE, "https://cdn.example/1.jpeg", 5)
    assert (image.task.task_id, image.request) == ("draw", REQUEST)
    assert image.belongs_to("draw", -1)
    assert image.belongs_to("wait", -1)
    assert not image.belongs_to("wait", 2)
    assert not image.belongs_to("other", None)


def test_an_image_of_a_loop_belongs_to_its_iteration() -> None:
    first, second = Region("01a2", 0), Region("01a2", 1)
    (looped,) = records_of_task(task(region=first, iteration=0), SUBMITTED)
    assert looped.belongs_to("draw", -1, first)
    assert looped.belongs_to("draw", -1)
    assert not looped.belongs_to("draw", -1, second)
    (single,) = records_of_task(task(), SUBMITTED)
    assert single.belongs_to("draw", -1, first), "Airflow's page of a mapped task outside loops has a region, too"


def test_a_running_sensor_belongs_to_the_submission() -> None:
    submitted = records_of_task(task("success"), {**SUBMITTED, "return_value": TASK_ID})
    (image,) = merge_waits([*submitted, *sensor("deferred", {"task_id": TASK_ID})])
    assert (image.status, image.state) == (Status.DRAWING, "deferred")


def test_the_failure_of_a_sensor_is_a_failure_of_the_image() -> None:
    submitted = records_of_task(task("success"), {**SUBMITTED, "return_value": TASK_ID})
    error = {"error": "QwenImageTimeoutError", "message": "Not done in time."}
    (image,) = merge_waits([*submitted, *sensor("failed", {"task_id": TASK_ID, "error": error})])
    assert (image.status, image.at_risk) == (Status.FAILED, 5)
    (image,) = merge_waits([*submitted, *sensor("failed", {"task_id": TASK_ID, "error": error, "consumed_credits": 0})])
    assert (image.status, image.at_risk) == (Status.FAILED, 0)


def test_of_several_sensors_the_one_that_got_furthest_counts() -> None:
    submitted = records_of_task(task("success"), {**SUBMITTED, "return_value": TASK_ID})
    done = sensor("success", {"task_id": TASK_ID, "return_value": ["https://cdn.example/1.jpeg"]})
    late = [
        replace(image, task=replace(image.task, task_id="late")) for image in sensor("failed", {"task_id": TASK_ID})
    ]
    for waits in ([*done, *late], [*late, *done]):
        (image,) = merge_waits([*submitted, *waits])
        assert image.status is Status.DONE


def test_many_tasks_that_claim_one_image_do_not_multiply_it() -> None:
    many = 50
    submitted = [
        replace(image, task=replace(image.task, map_index=index))
        for index in range(many)
        for image in records_of_task(task("success"), {**SUBMITTED, "return_value": TASK_ID})
    ]
    urls = [f"https://cdn.example/{number}.jpeg" for number in range(100)]
    waited = sensor("success", {"task_id": TASK_ID, "return_value": urls})
    waits = [replace(image, task=replace(image.task, map_index=index)) for index in range(many) for image in waited]
    images = merge_waits([*submitted, *waits])
    assert len(images) == len(urls) + many - 1
    assert {image.task.map_index for image in images} == set(range(many))


def test_the_images_of_a_batch_are_limited_however_many_a_row_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_records, "MOST_IMAGES_OF_A_BATCH", 250)
    row = STORED | REQUEST | {"paths": [f"/images/{number}.jpg" for number in range(100)]}
    found = records_of_batch(task("success", operator=BATCH_OPERATOR), {}, [row] * 1000, None)
    assert (len(found.images), found.is_cut) == (300, True)
    found = records_of_batch(task("success", operator=BATCH_OPERATOR), {}, [row] * 2, None)
    assert (len(found.images), found.is_cut) == (200, False)


def test_images_beyond_the_memory_limit_are_left_out_and_reported() -> None:
    images = [record("running", SUBMITTED | {"request": REQUEST | {"prompt": "x" * 1000}}) for _ in range(10)]
    found = Records(images, is_partial=True)
    whole = found.within(10**6)
    assert (whole.images, whole.is_cut, whole.is_partial) == (images, False, True)
    assert 10_000 < whole.weight < 30_000
    half = found.within(whole.weight // 2)
    assert (len(half.images), half.is_cut, half.weight) == (5, True, whole.weight // 2)
    wide = Records([replace(images[0], request={"prompt": "\N{FOX FACE}" + "x" * 999})])
    assert wide.within(10**6).weight > images[0].weight + 2500


def test_a_sensor_for_an_image_of_another_dag_shows_its_own_record() -> None:
    waited = sensor("success", {"task_id": "another", "return_value": ["https://cdn.example/1.jpeg"]})
    submitted = records_of_task(task("success"), {**SUBMITTED, "return_value": TASK_ID})
    assert [image.image_task_id for image in merge_waits([*submitted, *waited])] == [TASK_ID, "another"]


def row(status: str, number: int = 1, **fields: Any) -> dict[str, Any]:
    return {"row": number, "status": status, **REQUEST, **fields}


def batch(state: str, rows: list[dict[str, Any]], **xcoms: Any) -> Records:
    return records_of_batch(task(state, operator=BATCH_OPERATOR), xcoms, rows, None)


def test_the_rows_of_a_batch_are_its_images() -> None:
    rows = [
        row("SUCCESS", 1, paths=["/a.jpg"], image_urls=["https://cdn.example/a"], consumed_credits=5, task_id="a"),
        row("FAILED", 2, error="QwenImageContentPolicyError", message="Refused.", task_id="b"),
        row("UNKNOWN", 3),
        row("UNFINISHED", 4, task_id="d"),
        row("IN_PROGRESS", 5, task_id="e"),
        row("NOT_SUBMITTED", 6),
    ]
    images = batch("running", rows).images
    assert [str(image.status) for image in images] == ["done", "failed", "unknown", "unknown", "drawing", "waiting"]
    assert [image.number for image in images] == [1, 2, 3, 4, 5, 6]
    assert [image.at_risk for image in images] == [0, 0, 5, 5, 0, 0]
    assert (images[0].path, images[1].message) == ("/a.jpg", "Refused.")


def test_the_label_of_a_row_is_shown_with_its_images_and_can_be_searched() -> None:
    rows = [
        row("SUCCESS", 1, paths=["/a.jpg", "/b.jpg"], label="red fox", consumed_credits=5),
        row("FAILED", 2, label="<b>" + 10**6 * "x"),
        *(row("NOT_SUBMITTED", 3, label=odd) for odd in (None, 5, ["red"], " ", "half \ud83e")),
    ]
    images = batch("running", rows).images
    assert [image.label for image in images[:2]] == ["red fox"] * 2
    assert str(images[2].label).startswith("<b>x"), "the page inserts it as text"
    assert len(str(images[2].label)) == MAX_LABEL_CHARACTERS
    assert [image.label for image in images[3:]] == [None, None, None, None, "half ?"]
    assert images[0].matches("", ["red"])
    assert not images[0].matches("", ["blue"])
    assert images[2].weight > images[3].weight


def test_an_unfinished_row_whose_price_is_known_is_paid_and_not_at_risk() -> None:
    (image,) = batch("failed", [row("UNFINISHED", 1, task_id="a", consumed_credits=7)]).images
    assert (image.consumed_credits, image.at_risk) == (7, 0)


def test_unfinished_rows_of_a_failed_batch_may_be_paid() -> None:
    images = batch("failed", [row("IN_PROGRESS", 1, task_id="a"), row("NOT_SUBMITTED", 2)]).images
    assert [(image.status, image.at_risk) for image in images] == [(Status.FAILED, 5), (Status.FAILED, 0)]


def test_a_batch_that_failed_before_its_first_row_shows_why() -> None:
    (image,) = batch("failed", [], error={"error": "ValueError", "message": "Row 3 has no prompt."}).images
    assert (image.status, image.message) == (Status.FAILED, "Row 3 has no prompt.")


def test_the_totals_of_a_batch_without_rows_are_what_it_has_pushed() -> None:
    progress = {"requests": 40, "done": 12, "failed": 1, "in_flight": 16, "consumed_credits": 60, "seconds_left": None}
    totals = totals_of(batch("running", [], progress=progress))
    assert (totals.counts["done"], totals.counts["failed"], totals.consumed_credits) == (12, 1, 60)


def test_a_batch_with_rows_is_not_counted_twice() -> None:
    progress = {"requests": 1, "done": 1, "consumed_credits": 5}
    rows = [row("SUCCESS", paths=["/a.jpg"], consumed_credits=5)]
    assert totals_of(batch("running", rows, progress=progress)).consumed_credits == 5
    assert totals_of(batch("running", rows, progress=progress)).images == 1


@pytest.mark.parametrize(
    ("status", "text", "matches"),
    [
        ("", "", True),
        ("done", "", True),
        ("failed", "", False),
        ("", "fox", True),
        ("", "FOX a", True),
        ("", "hare", False),
        ("done", "fox", True),
        ("failed", "fox", False),
        ("", TASK_ID, True),
        ("", TASK_ID[:5], True),
        ("", TASK_ID[5:], False),
        ("", "7", True),
        ("", "1024", False),
        ("", "1024*1024", True),
        ("", "draw", True),
    ],
)
def test_images_are_found_by_status_and_words(status: str, text: str, *, matches: bool) -> None:
    image = record("success", {**SUBMITTED, "return_value": STORED})
    assert image.matches(status, text.casefold().split()) is matches


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*SUBMITTED, "return_value", "consumed_credits", "error", "progress", "manifest"])
FIELDS = st.sampled_from(
    [*STORED, "label", "error", "message", "prompt", "row", "same_as", "stored_at", "requests", "done"]
)


@given(
    state=st.sampled_from([None, "success", "failed", "running", "skipped", "deferred"]),
    operator=st.sampled_from(["QwenImageGenerateOperator", BATCH_OPERATOR, SENSOR, None]),
    xcoms=st.dictionaries(KEYS, JUNK | st.dictionaries(FIELDS, JUNK)),
    rows=st.lists(st.dictionaries(FIELDS, JUNK), max_size=3),
)
def test_whatever_was_pushed_the_page_can_be_shown(state: Any, operator: Any, xcoms: Any, rows: Any) -> None:
    instance = task(state, operator=operator)
    found = records_of_batch(instance, xcoms, rows, None)
    records = Records(merge_waits([*records_of_task(instance, xcoms), *found.images]), found.batches)
    totals = totals_of(records)
    assert totals.images >= 0
    assert totals.consumed_credits >= 0
    for image in records.images:
        assert image.matches("", ["a"]) in (True, False)
        assert image.path is None or isinstance(image.path, str)


def test_a_batch_record_has_only_numbers() -> None:
    (found,) = batch("running", [], progress={"requests": 2, "done": "<b>", "rows": "/a", "failed": True}).batches
    assert found == BatchRecord(task=found.task, progress={"requests": 2})


def test_texts_and_lists_are_limited_and_can_be_encoded() -> None:
    request = REQUEST | {"prompt": 3_000_000 * "\U0001f98a", "size": 10**6 * "x", "seed": 10**31}
    result = STORED | {"paths": [f"/{number}.jpg" for number in range(300_000)], "seed": 10**31, "size": 5}
    error = {"error": 10**6 * "E", "message": "half a fox \ud83d" + 10**6 * "m"}
    images = records_of_task(task(), {"request": request, "return_value": result, "task_id": 10**6 * "i"})
    images += records_of_task(task("failed"), {"request": request, "error": error, "consumed_credits": 10**31})
    assert len(images) == 101
    for image in images:
        found = repr(vars(image))
        assert len(found.encode("utf-8")) < 20_000
        assert "1" + 31 * "0" not in found
    assert images[-1].consumed_credits is None
    assert str(images[-1].message).startswith("half a fox ?m")


@given(value=JUNK | st.text(max_size=5000) | st.lists(st.integers(), max_size=500))
def test_any_sidecar_can_be_encoded(value: Any) -> None:
    sent = json.dumps(json_value({"made_by": value, "request": [value]}), allow_nan=False, ensure_ascii=False)
    assert len(sent.encode("utf-8")) < 200_000


def test_a_task_that_has_ended_is_not_drawing_whatever_it_has_pushed() -> None:
    for xcoms in ({}, SUBMITTED | {"consumed_credits": 5}, SUBMITTED | {"return_value": UnreadableXCom("away")}):
        for state in ("success", "failed"):
            images = merge_waits(records_of_task(task(state), xcoms), has_ended=True)
            assert [image for image in images if image.status in (Status.DRAWING, Status.WAITING)] == []
    (done,) = records_of_task(task(), SUBMITTED | {"consumed_credits": 5})
    assert (done.status, done.consumed_credits) == (Status.DONE, 5)
    assert "do_xcom_push" in str(done.message)

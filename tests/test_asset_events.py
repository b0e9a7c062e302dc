"""What a task adds to the events of its outlets, in Airflow's own accessors of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import Asset, AssetAlias

from airflow_provider_qwenimage.contract import MAX_IMAGES, MAX_URL_CHARACTERS, GenerateRequest
from airflow_provider_qwenimage.tasks.asset_events import add_batch_events, add_image_events
from tests.airflows import AIRFLOW, AIRFLOW_3

if AIRFLOW_3:
    from airflow.sdk.execution_time.context import OutletEventAccessors
else:
    from airflow.utils.context import OutletEventAccessors

REQUEST = GenerateRequest(prompt="a fox", seed=7, callback_url="https://hook.example/?token=secret")
RESULT = {
    "task_id": "n1",
    "status": "SUCCESS",
    "image_urls": ["https://user:pass@cdn.example/a.png?sig=secret#part"],
    "paths": ["s3://aws@bucket/images/a.png"],
    "consumed_credits": 5,
    "reused": False,
}
FOLDER = "s3://aws@bucket/images"

Add = Callable[..., Any]


@pytest.fixture
def add() -> Add:
    """Return a function that adds the events of an image, and returns the accessors."""

    def add(*outlets: Any, result: Any = RESULT, output_path: Any = FOLDER, prompt: bool = False) -> Any:
        events = OutletEventAccessors()
        operator = SimpleNamespace(outlets=list(outlets), output_path=output_path, prompt_in_asset_events=prompt)
        add_image_events(operator, {"outlet_events": events}, result, REQUEST)
        return events

    return add


def added(accessor: Any) -> list[tuple[str, Any]]:
    """Return the URI and the extra of each asset that was added to an alias."""
    if AIRFLOW_3:
        return [(event.dest_asset_key.uri, event.extra) for event in accessor.asset_alias_events]
    return [(event["dest_dataset_uri"], event["extra"]) for event in accessor.dataset_alias_events]


def test_an_asset_gets_what_is_known_of_the_image_without_prompt_and_access(add: Add) -> None:
    asset = Asset("images")
    assert add(asset)[asset].extra == {
        "task_id": "n1",
        "image_urls": ["https://cdn.example/a.png"],
        "paths": ["s3://aws@bucket/images/a.png"],
        "consumed_credits": 5,
        "reused": False,
        "size": "1024*1024",
        "output_format": "jpeg",
        "seed": 7,
    }


def test_the_prompt_is_added_if_it_is_asked_for(add: Add) -> None:
    asset = Asset("images")
    extra = add(asset, prompt=True)[asset].extra
    assert extra["prompt"] == "a fox"
    assert "callback_url" not in extra


def test_a_task_that_only_submits_adds_what_is_known_then(add: Add) -> None:
    asset = Asset("images")
    extra = add(asset, result={"task_id": "n1"}, output_path=None)[asset].extra
    assert extra == {"task_id": "n1", "size": "1024*1024", "output_format": "jpeg", "seed": 7}


def test_an_alias_gets_the_folder_without_its_connection(add: Add) -> None:
    asset, alias = Asset("images"), AssetAlias("of the day")
    events = add(asset, alias)
    ((uri, extra),) = added(events[alias])
    assert uri == "s3://bucket/images"
    stored = json.loads(json.dumps(extra))
    if AIRFLOW < (3, 1):
        # They use it as a part of a key; Airflow 3.0 only after it was sent as JSON.
        assert hash(frozenset(extra.items() if AIRFLOW < (3, 0) else stored.items()))
    if AIRFLOW == (3, 0):
        stored |= {name: json.loads(stored[name]) for name in ("paths", "image_urls")}
    assert stored == events[asset].extra


@pytest.mark.parametrize("output_path", ["file://images", "file:////{here}/images", "file://conn@/{here}/images"])
def test_an_alias_gets_the_folder_in_which_the_images_are(add: Add, output_path: str) -> None:
    here = Path.cwd()
    alias = AssetAlias("of the day")
    events = add(alias, output_path=output_path.format(here=str(here).lstrip("/")))
    assert [uri for uri, _ in added(events[alias])] == [(here / "images").as_uri()]


def test_an_alias_gets_nothing_without_a_folder(add: Add, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    alias = AssetAlias("of the day")
    assert added(add(alias, output_path=None)[alias]) == []
    assert [record.message for record in caplog.records] == [
        "No asset is added to an asset alias among the outlets: the task has no output_path."
    ]


def test_an_event_is_short_json_that_postgresql_can_store(add: Add) -> None:
    asset = Asset("images")
    strange = {
        "task_id": "n1\x00\ud800",
        "image_urls": [None, 7, *[f"https://cdn.example/{'a' * 9000}"] * 2000],
        "paths": ["/a\x00b"],
        "consumed_credits": float("nan"),
    }
    extra = add(asset, result=strange)[asset].extra
    assert extra["task_id"] == "n1��"
    assert extra["paths"] == ["/a�b"]
    assert len(extra["image_urls"]) == MAX_IMAGES
    assert len(json.dumps(extra, allow_nan=False)) < (MAX_IMAGES + 1) * MAX_URL_CHARACTERS


def test_an_event_that_airflow_refuses_is_logged_and_the_others_are_added(
    add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    asset, alias = Asset("images"), AssetAlias("of the day")
    events = add(alias, asset, output_path=f"/{'x' * 3500}")
    assert added(events[alias]) == []
    assert events[asset].extra["task_id"] == "n1"
    assert "Could not record an asset event." in caplog.text


@pytest.mark.parametrize("result", [{"image_urls": 5}, {"paths": None}])
def test_a_strange_result_fails_nothing(add: Add, result: Any) -> None:
    asset = Asset("images")
    assert add(asset, result=result)[asset].extra == {}


def test_outlets_that_are_no_assets_have_no_events(add: Add, caplog: pytest.LogCaptureFixture) -> None:
    assert len(add(SimpleNamespace(name="a table"))) == 0
    assert caplog.text == ""


def test_a_context_without_events_fails_nothing() -> None:
    operator = SimpleNamespace(outlets=[Asset("images")], output_path=None, prompt_in_asset_events=False)
    add_image_events(operator, {}, RESULT, REQUEST)


def test_a_batch_adds_its_result_and_its_folder() -> None:
    asset, alias = Asset("images"), AssetAlias("of the day")
    events = OutletEventAccessors()
    result = {"manifest": "/data/manifest.jsonl", "images": 3, "failed": 1, "consumed_credits": 15.0}
    operator = SimpleNamespace(outlets=[asset, alias], output_path="/data")
    add_batch_events(operator, {"outlet_events": events}, result)
    assert events[asset].extra == result | {"folder": "/data"}
    assert added(events[alias]) == [("file:///data", result | {"folder": "/data"})]

"""Candidates are stored images that match their sidecars; a verdict changes nothing else in a sidecar."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.choosing.candidates import find_candidates
from airflow_provider_qwenimage.choosing.verdicts import record_verdict
from airflow_provider_qwenimage.rules.choices import Candidate, new_verdict
from airflow_provider_qwenimage.storage.files import put_bytes, put_json
from airflow_provider_qwenimage.storage.paths import path_of
from tests.s3_server import Bucket

TASK = {"dag_id": "d", "run_id": "r", "task_id": "choose", "map_index": -1}
VERDICT = new_verdict([2], by=None, at="2026-01-05T09:12:44+00:00", timed_out=True)
Store = Callable[..., dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Store an image and its sidecar, and return what the task that drew it returned."""

    def store(seed: int, **changes: Any) -> dict[str, Any]:
        image = tmp_path / f"robot-{seed}.png"
        image.write_bytes(b"an image")
        request = {"prompt": "A tin robot", "size": "1024*1024", "seed": seed, "output_format": "png"}
        sidecar = {
            "image": image.name,
            "request": request,
            "task_id": f"n{seed}",
            "image_url": f"https://cdn.example.com/{seed}.png",
            "sha256": "0" * 64,
            "fingerprint": "f",
        }
        image.with_suffix(".json").write_text(json.dumps(sidecar | changes))
        return {
            "task_id": f"n{seed}",
            "status": "SUCCESS",
            "image_urls": [f"https://cdn.example.com/{seed}.png"],
            "paths": [str(image)],
            "consumed_credits": 5,
            "seed": seed,
            "size": "1024*1024",
            "output_format": "png",
            "reused": False,
        }

    return store


def seeds(images: Any) -> list[int | None]:
    return [candidate.seed for candidate in find_candidates(images)]


def test_results_lists_of_them_and_their_texts_are_candidates_in_their_order(store: Store) -> None:
    first, second, third = (store(seed) for seed in (1, 2, 3))
    assert seeds(first) == [1]
    assert seeds([second, first]) == [2, 1]
    assert seeds(([third], [None, [first]])) == [3, 1]
    assert seeds(str([first, third])) == [1, 3]
    assert seeds(json.dumps([first, third])) == [1, 3]


def test_what_is_chosen_is_returned_as_it_was_drawn(store: Store) -> None:
    drawn = store(7)
    (candidate,) = find_candidates([drawn])
    assert candidate.to_result() == drawn


def test_a_file_counts_once(store: Store) -> None:
    drawn = store(1)
    same = drawn | {"paths": [f"file://{drawn['paths'][0]}"]}
    assert seeds([drawn, drawn, same, store(2)]) == [1, 2]


def test_an_object_counts_once_by_whatever_connection_and_scheme(bucket: Bucket) -> None:
    url = f"{bucket.url}/a fox #1, 100%.png"
    put_bytes(b"an image", path_of(url))
    drawn = {
        "image": "a fox #1, 100%.png",
        "task_id": "n1",
        "image_url": "https://x",
        "sha256": "0",
        "fingerprint": "f",
    }
    put_json(drawn, path_of(f"{bucket.url}/a fox #1, 100%.json"))
    others = [url.replace("s3://", "s3a://"), url.replace("s3@", "s3_without_delete@")]
    (candidate,) = find_candidates([{"task_id": "n1", "paths": [path]} for path in [url, *others]])
    assert candidate.path == url


def test_each_path_of_a_result_is_a_candidate(store: Store) -> None:
    first, second = store(1), store(2, task_id="n1")
    both = first | {"paths": first["paths"] + second["paths"], "image_urls": ["https://x/1", "https://x/2"]}
    chosen = find_candidates(both)
    assert [candidate.to_result()["paths"] for candidate in chosen] == [first["paths"], second["paths"]]
    assert [candidate.image_url for candidate in chosen] == ["https://x/1", "https://x/2"]


def test_the_rows_of_a_batch_that_succeeded_are_candidates(store: Store, tmp_path: Path) -> None:
    rows = [store(1) | {"label": "A"}, {"status": "FAILED", "error": "x"}, store(2), store(2) | {"same_as": 3}]
    manifest = tmp_path / "manifest-3.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    candidates = find_candidates({"manifest": str(manifest), "images": 2})
    assert [(candidate.seed, candidate.label) for candidate in candidates] == [(1, "A"), (2, None)]


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        ([], "no stored image"),
        (None, "no stored image"),
        ("n43abc", "Set output_path"),
        (["n43abc"], r"images\[0\] is 'n43abc'; it must be what the operators"),
        ([["https://cdn.example.com/x.png"]], r"images\[0\]\[0\] is"),
        ([{"task_id": "n1", "image_urls": ["https://x"], "paths": []}], r"images\[0\] .* no stored image"),
        ([7], "images"),
        ([[[[[[None]]]]]], "it must be"),
        ([{"paths": "text"}], "list of the paths"),
        ([{"paths": [7]}], "has the path 7"),
        ([{"paths": ["http://10.0.0.1/latest"]}], "from which no images are read"),
        ([{"paths": ["cheese://b/x.png"]}], r"cheese://b/x.png', which Airflow cannot open: .*\. Install the provider"),
        ([{"paths": ["fox.png"]}], "which is neither .* URL; it must be one that a task of this package recorded"),
        ([{"paths": ["/etc/passwd"]}], "must be that of an image"),
        ([{"paths": ["/nowhere/fox.png"]}], "has no sidecar"),
        ([{"manifest": "/etc/passwd"}], "name must be"),
        ([{"manifest": "/nowhere/manifest.jsonl"}], "no longer exists"),
        ([{"manifest": 7}], "is not a text"),
    ],
)
def test_what_is_no_stored_image_is_refused(images: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        find_candidates(images)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"task_id": "another"}, "now the image of another image task, 'another'"),
        ({"image": "another.png"}, "not one of this package"),
        ({"fingerprint": 7}, "not one of this package"),
    ],
)
def test_an_image_that_its_sidecar_does_not_describe_is_refused(
    store: Store, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        find_candidates([store(1, **changes)])


def test_an_image_that_was_removed_is_refused(store: Store) -> None:
    drawn = store(1)
    Path(drawn["paths"][0]).unlink()
    with pytest.raises(ValueError, match="no longer stored"):
        find_candidates(drawn)


def test_there_is_a_limit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_qwenimage.choosing.candidates.MOST_CANDIDATES", 2)
    assert seeds([store(1), store(2)]) == [1, 2]
    with pytest.raises(ValueError, match="more than 2 stored images"):
        find_candidates([store(1), store(2), store(3)])
    monkeypatch.setattr("airflow_provider_qwenimage.choosing.candidates._MOST_ENTRIES", 10)
    with pytest.raises(ValueError, match="more than 10 entries"):
        find_candidates([None] * 11)


def test_values_of_a_forged_sidecar_do_not_reach_the_xcom(store: Store) -> None:
    request = {"prompt": "x" * 10_000 + "\x00", "size": ["huge"], "seed": "7", "output_format": 7}
    (candidate,) = find_candidates(store(1, request=request) | {"consumed_credits": float("inf"), "reused": "yes"})
    assert candidate.prompt == "x" * 199 + "…"
    assert (candidate.size, candidate.seed, candidate.output_format) == (None, None, None)
    assert (candidate.consumed_credits, candidate.reused) == (None, False)


def _sidecar(candidate: Candidate) -> Path:
    return Path(candidate.path).with_suffix(".json")


def test_a_verdict_adds_its_field_and_keeps_the_others(store: Store) -> None:
    candidates = find_candidates([store(1), store(2, note={"of": ["a user", 1.5]})])
    before = [json.loads(_sidecar(candidate).read_text()) for candidate in candidates]
    record_verdict(candidates, VERDICT, TASK, "w")
    after = [json.loads(_sidecar(candidate).read_text()) for candidate in candidates]
    assert [list(each) for each in after] == [[*each, "verdicts"] for each in before]
    assert [each | {"verdicts": 0} for each in after] == [each | {"verdicts": 0} for each in before]
    assert [entry["chosen"] for each in after for entry in each["verdicts"]] == [False, True]

    written = [(_sidecar(each).read_bytes(), _sidecar(each).stat().st_ino) for each in candidates]
    record_verdict(candidates, VERDICT, TASK, "w")
    assert [(_sidecar(each).read_bytes(), _sidecar(each).stat().st_ino) for each in candidates] == written


def test_a_file_that_is_no_longer_the_sidecar_of_that_image_stays_as_it_is(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    candidates = find_candidates([store(1), store(2)])
    store(1, task_id="another")
    other = _sidecar(candidates[0]).read_bytes()
    with caplog.at_level(logging.WARNING):
        record_verdict(candidates, VERDICT, TASK, "w")
    assert _sidecar(candidates[0]).read_bytes() == other
    assert "is now the image of another image task" in caplog.text


def test_a_chosen_image_that_was_replaced_is_an_error(store: Store) -> None:
    candidates = find_candidates([store(1), store(2)])
    store(2, task_id="another")
    with pytest.raises(ValueError, match=r"replaced or removed since they were shown: 2 .*Clear"):
        record_verdict(candidates, VERDICT, TASK, "w")
    assert "verdicts" in _sidecar(candidates[0]).read_text()


def test_a_chosen_image_that_was_removed_is_an_error(store: Store) -> None:
    candidates = find_candidates([store(1), store(2)])
    Path(candidates[1].path).unlink()
    with pytest.raises(ValueError, match=r"or removed since they were shown: 2 \(.*robot-2.png is no longer stored\)"):
        record_verdict(candidates, VERDICT, TASK, "w")
    assert "verdicts" in _sidecar(candidates[0]).read_text()
    assert "verdicts" not in _sidecar(candidates[1]).read_text()


def test_an_image_that_was_not_chosen_may_be_removed(store: Store) -> None:
    candidates = find_candidates([store(1), store(2)])
    Path(candidates[0].path).unlink()
    record_verdict(candidates, VERDICT, TASK, "w")
    assert all("verdicts" in _sidecar(candidate).read_text() for candidate in candidates)


def test_a_sidecar_that_cannot_be_written_does_not_lose_the_answer(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    candidates = find_candidates([store(1), store(2, filler="x" * 1_000_000)])
    with caplog.at_level(logging.WARNING):
        record_verdict(candidates, VERDICT, TASK, "w")
    assert "could not be recorded in the sidecar" in caplog.text
    assert find_candidates([store(1), store(2)])

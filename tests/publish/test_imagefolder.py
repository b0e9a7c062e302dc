"""The lines of a dataset's metadata.jsonl, and whose files they may replace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_qwenimage.batch.publishing import Publishing
from airflow_provider_qwenimage.publish.dataset_folder import check_dataset, claim_folder, put_dataset
from airflow_provider_qwenimage.publish.imagefolder import (
    has_split_word,
    is_metadata,
    metadata_line,
    metadata_records,
)
from airflow_provider_qwenimage.rules.batch_rows import manifest_row
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.stores import fill_up, interrupt_writes

MADE_BY = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1, "max_tries": 0}
COLUMNS = [
    "file_name",
    "text",
    "prompt",
    "label",
    "seed",
    "size",
    "width",
    "height",
    "output_format",
    "task_id",
    "row",
]


def row(number: int, *files: str, **fields: Any) -> dict[str, Any]:
    """Return a row of a manifest; with files it is a success."""
    request = {"prompt": f"Prompt {number}", "size": "768*1024", "seed": -1, "output_format": "png"}
    outcome = {"status": "SUCCESS", "task_id": f"n{number}", "paths": [f"s3://aws@b/x/{file}" for file in files]}
    return manifest_row(number, request | fields, outcome if files else {"status": "FAILED"}, "writer")


def lines_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(metadata_line(record)) for record in metadata_records(rows)]


def test_each_stored_image_has_a_line_in_the_order_of_the_requests() -> None:
    rows = [row(1, "a.png"), row(2), row(3, "c.png", "c-2.png", seed=7, text="a caption", label="red"), row(4, "b.png")]
    lines = lines_of(rows)
    assert [line["file_name"] for line in lines] == ["a.png", "c.png", "c-2.png", "b.png"]
    assert lines[1] == {
        "file_name": "c.png",
        "text": "a caption",
        "prompt": "Prompt 3",
        "label": "red",
        "seed": 7,
        "size": "768*1024",
        "width": 768,
        "height": 1024,
        "output_format": "png",
        "task_id": "n3",
        "row": 3,
    }
    assert [list(line) for line in lines] == [COLUMNS] * 4
    assert (lines[0]["text"], lines[0]["label"], lines[0]["seed"]) == ("Prompt 1", None, None)


def test_a_batch_that_finds_its_images_stored_writes_the_same_bytes() -> None:
    first = [row(1, "a.png", consumed_credits=5, reused=False, stored_at="2026-01-01T00:00:00Z")]
    again = [row(1, "a.png", consumed_credits=0, reused=True, stored_at="2026-02-02T00:00:00Z", writer="another")]
    assert list(map(metadata_line, metadata_records(first))) == list(map(metadata_line, metadata_records(again)))


def test_a_shared_image_has_a_line_for_each_of_its_texts() -> None:
    rows = [
        row(1, "a.png", text="one"),
        row(2, "a.png", text="two", same_as=1),
        row(3, "a.png", text="one", label="last", same_as=1),
        row(4, "b.png", text="one"),
    ]
    assert [(line["file_name"], line["text"], line["row"]) for line in lines_of(rows)] == [
        ("a.png", "one", 1),
        ("a.png", "two", 2),
        ("b.png", "one", 4),
    ]


@pytest.mark.parametrize("text", ["ein Füchslein", "狐の絵 🦊", "a\u2028b\u2029c\x85d\x0be\x1cf", 'a\r\nb\t"\\'])
def test_any_text_is_one_line_and_kept(text: str) -> None:
    (record,) = metadata_records([row(1, "a.png", text=text)])
    line = metadata_line(record)
    assert line.count(b"\n") == 1
    assert json.loads(line)["text"] == text


def test_a_text_without_a_form_in_utf_8_does_not_stop_the_others() -> None:
    assert [line["text"] for line in lines_of([row(1, "a.png", text="a\ud83d"), row(2, "b.png")])] == ["a�", "Prompt 2"]


@pytest.mark.parametrize(
    "name",
    ["test.png", "a-train-1.png", "a train.png", "training_1.png", "x2val3.png", "a.dev.png", "valid-1.png"],
)
def test_a_name_that_datasets_takes_for_a_split_is_noticed(name: str) -> None:
    assert has_split_word(name)


@pytest.mark.parametrize("name", ["trains.png", "a-contest-1.png", "Test.png", "latest.png", "a-devil-1.png"])
def test_other_names_are_none_of_a_split(name: str) -> None:
    assert not has_split_word(name)


def test_a_metadata_file_is_recognised_by_its_first_line() -> None:
    (record,) = metadata_records([row(1, "a.png")])
    assert is_metadata(metadata_line(record) + b"anything")
    # A later version may have more columns.
    assert is_metadata(metadata_line(record | {"more": 1}))
    for other in (b"", b"x", b"[]", b'{"file_name": "a.png", "text": "mine"}\n', b"[" * 100_000, b"\xff"):
        assert not is_metadata(other)


def test_the_dataset_replaces_an_earlier_one(tmp_path: Path) -> None:
    folder = open_output_path(str(tmp_path))
    (tmp_path / "scratch").mkdir()
    for rows in ([row(1, "a.png")], [], [row(1, "b.png")]):
        check_dataset(folder)
        path = put_dataset(folder, rows, MADE_BY, tmp_path / "scratch")
        assert path == str(folder / "metadata.jsonl")
        found = (tmp_path / "metadata.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in found] == lines_of(rows)


def test_a_metadata_file_of_anybody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "mine.png", "text": "mine"}\n')
    with pytest.raises(ValueError, match="its file metadata.jsonl was not written by this package"):
        check_dataset(open_output_path(str(tmp_path)))


def test_a_folder_in_place_of_the_metadata_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").mkdir()
    with pytest.raises(FileExistsError):
        check_dataset(open_output_path(str(tmp_path)))


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.parquet"])
def test_a_second_metadata_file_with_which_nothing_can_be_loaded_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"has a file {name}: the library datasets does not load"):
        check_dataset(open_output_path(str(tmp_path)))


def test_a_disk_that_fills_up_leaves_the_earlier_dataset_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scratch = open_output_path(str(tmp_path / "images")), tmp_path / "scratch"
    scratch.mkdir()
    put_dataset(folder, [row(1, "a.png")], MADE_BY, scratch)
    before = (tmp_path / "images" / "metadata.jsonl").read_bytes()
    interrupt_writes(monkeypatch, fill_up)
    with pytest.raises(OSError, match=r"No space left.*/metadata\.jsonl"):
        put_dataset(folder, [row(1, "b.png")], MADE_BY, scratch)
    assert [file.read_bytes() for file in (tmp_path / "images").iterdir()] == [before]


def test_only_one_map_index_or_iteration_of_a_run_may_have_a_folder(tmp_path: Path) -> None:
    folder = open_output_path(str(tmp_path))
    for first, other in (({"map_index": 0}, {"map_index": 1}), ({"iteration": 1}, {"iteration": 0})):
        made_by = MADE_BY | {"task_id": f"t{first}"}
        claim_folder(folder, made_by | first)
        # A retry.
        claim_folder(folder, made_by | first)
        with pytest.raises(ValueError, match="another map index or iteration of this task stores its dataset there"):
            claim_folder(folder, made_by | other)
        # Another run, which replaces the dataset as it replaces the images.
        claim_folder(folder, made_by | other | {"run_id": "next"})


@pytest.mark.parametrize("map_index", [-1, None])
def test_a_batch_that_is_not_mapped_leaves_no_hidden_file(map_index: int | None, tmp_path: Path) -> None:
    claim_folder(open_output_path(str(tmp_path)), MADE_BY | {"map_index": map_index})
    assert list(tmp_path.iterdir()) == []


def test_names_that_datasets_splits_by_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, scratch = open_output_path(str(tmp_path / "images")), tmp_path / "scratch"
    scratch.mkdir()
    put_dataset(folder, [row(1, "a.png")], MADE_BY, scratch)
    assert caplog.text == ""
    put_dataset(folder, [row(1, "a-train-1.png"), row(2, "a-test-1.png")], MADE_BY, scratch)
    assert "The names of 2 images have a word such as train or test" in caplog.text


def test_a_batch_checks_its_dataset_before_it_draws_and_only_if_it_makes_one(tmp_path: Path) -> None:
    def check(map_index: int, dataset: str | None) -> None:
        made_by = MADE_BY | {"map_index": map_index}
        Publishing(
            open_output_path(str(tmp_path)), None, made_by, tmp_path, contact_sheet=False, dataset=dataset
        ).check()

    check(0, "imagefolder")
    check(1, None)
    with pytest.raises(ValueError, match="another map index"):
        check(1, "imagefolder")
    (tmp_path / "metadata.jsonl").write_text("mine")
    check(0, None)
    with pytest.raises(ValueError, match="was not written by this package"):
        check(0, "imagefolder")

"""The Hugging Face library `datasets` loads the folder of a batch. It has an environment of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from PIL import Image

from airflow_provider_qwenimage.publish.imagefolder import (
    METADATA_NAME,
    OTHER_METADATA_NAMES,
    has_split_word,
    metadata_line,
    metadata_records,
)

if find_spec("datasets") is None and Path(sys.prefix).name != "datasets":
    pytest.skip("The library datasets is not installed; make test-datasets runs this", allow_module_level=True)

_HOME = tempfile.mkdtemp(prefix="qwenimage-datasets-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
# The library reads them when it is imported.
os.environ |= {"HF_HOME": _HOME, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

import datasets  # noqa: E402  see above
from datasets.data_files import SPLIT_KEYWORDS  # noqa: E402  see above

datasets.disable_progress_bars()

# A prompt's words are in the name of its image, and so are names that users choose.
NAMES = [
    "a-red-fox-0123456789abcdef.png",
    "ünï 狐 🦊.png",
    "_a.png",
    "a b's (1), {2} & ~$!;=@^`+.png",
    "trains.png",
    "a-contest-1.png",
    "e\u0301.png",
    "-a..b.png",
]
# Each word that this version of the library knows.
SPLIT_NAMES = [f"a-{word}-in-the-alps.png" for words in SPLIT_KEYWORDS.values() for word in words]
SPLIT_NAMES += ["test.png", "a test.png", "x2val3.png", "dev-1.png", "evaluation_a.png"]

Load: TypeAlias = Callable[..., Any]


def color_of(number: int) -> tuple[int, int, int]:
    return (number, 255 - number, 7)


def row(number: int, name: str, **fields: Any) -> dict[str, Any]:
    request = {"prompt": f"Prompt {number}", "size": "1024*768", "seed": -1, "output_format": "png"}
    outcome = {"row": number, "status": "SUCCESS", "task_id": f"n{number}", "paths": [f"/images/{name}"]}
    return request | outcome | fields


def store(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Store the images of rows, each of a color of its own, and their metadata."""
    records = list(metadata_records(rows))
    for number, name in enumerate(dict.fromkeys(record["file_name"] for record in records), start=1):
        Image.new("RGB", (4, 3), color_of(number)).save(folder / name)
    (folder / METADATA_NAME).write_bytes(b"".join(map(metadata_line, records)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


@pytest.fixture
def load(folder: Path, tmp_path: Path) -> Load:
    """Return a function that loads the metadata file, as the documentation does, or the whole folder."""

    def load(*, whole_folder: bool = False) -> Any:
        where = {"data_dir": str(folder)} if whole_folder else {"data_files": str(folder / METADATA_NAME)}
        return datasets.load_dataset("imagefolder", cache_dir=str(tmp_path / "cache"), **where)

    return load


@pytest.mark.parametrize("whole_folder", [False, True])
def test_each_image_is_loaded_with_its_text_whatever_else_is_in_the_folder(
    folder: Path, load: Load, whole_folder: bool
) -> None:
    store(folder, [row(number, name, text=f"Text {number}") for number, name in enumerate(NAMES, start=1)])
    for other in ("manifest.jsonl", "a.json", ".dataset-0123456789abcdef.json", ".submission-1.json"):
        (folder / other).write_text('{"row": 1}\n')
    for other in ("contact-sheet.jpg", "c.refused.png", "not-listed.png"):
        (folder / other).write_bytes(b"no image")
    loaded = load(whole_folder=whole_folder)
    assert list(loaded) == ["train"]
    assert loaded["train"]["text"][:] == [f"Text {number}" for number in range(1, len(NAMES) + 1)]
    assert [image.getpixel((0, 0)) for image in loaded["train"]["image"]] == [
        color_of(number) for number in range(1, len(NAMES) + 1)
    ]


@pytest.mark.parametrize("name", NAMES + SPLIT_NAMES)
def test_only_a_whole_folder_is_split_by_names_that_are_reported(folder: Path, load: Load, name: str) -> None:
    store(folder, [row(1, name), row(2, "b.png")])
    assert load()["train"]["text"][:] == ["Prompt 1", "Prompt 2"]
    loaded = load(whole_folder=True)
    is_split = [(len(part), part.column_names) for part in loaded.values()] == [(1, ["image"])]
    assert is_split == has_split_word(name) == (name in SPLIT_NAMES)


def test_columns_have_one_type_each_and_what_is_not_known_is_none(folder: Path, load: Load) -> None:
    store(folder, [row(1, "a.png"), row(2, "b.png", seed=2**32 - 1, label="red")])
    loaded = load()["train"]
    assert {name: loaded[name][:] for name in loaded.column_names if name != "image"} == {
        "text": ["Prompt 1", "Prompt 2"],
        "prompt": ["Prompt 1", "Prompt 2"],
        "label": [None, "red"],
        "seed": [None, 2**32 - 1],
        "size": ["1024*768"] * 2,
        "width": [1024] * 2,
        "height": [768] * 2,
        "output_format": ["png"] * 2,
        "task_id": ["n1", "n2"],
        "row": [1, 2],
    }


def test_an_image_may_have_several_texts(folder: Path, load: Load) -> None:
    store(folder, [row(1, "a.png", text="one"), row(2, "b.png"), row(3, "a.png", text="two", same_as=1)])
    loaded = load()["train"]
    assert loaded["text"][:] == ["one", "Prompt 2", "two"]
    assert [image.getpixel((0, 0)) for image in loaded["image"]] == [color_of(1), color_of(2), color_of(1)]


@pytest.mark.parametrize(
    ("text", "loaded"),
    [
        ("狐の絵 🦊", "狐の絵 🦊"),
        ("a\u2028b\u2029c\x85d\x0be\x1cf", "a\u2028b\u2029c\x85d\x0be\x1cf"),
        ('a\r\nb\t"\\', 'a\r\nb\t"\\'),
        # The library would load none of the lines.
        ("a\ud83d", "a\N{REPLACEMENT CHARACTER}"),
    ],
)
def test_any_text_is_loaded(folder: Path, load: Load, text: str, loaded: str) -> None:
    store(folder, [row(1, "a.png", text=text), row(2, "b.png")])
    assert load()["train"]["text"][:] == [loaded, "Prompt 2"]


def test_a_column_may_begin_with_many_lines_without_a_value(folder: Path, load: Load) -> None:
    # The library reads a file in blocks of a megabyte, and guesses the types from the first.
    rows = [row(number, "a.png", text=f"Text {number}") for number in range(1, 8001)]
    store(folder, [*rows, row(8001, "b.png", seed=7, label="red")])
    assert (folder / METADATA_NAME).stat().st_size > 2**20
    last = load()["train"][-1]
    assert (last["seed"], last["label"], last["row"]) == (7, "red", 8001)


@pytest.mark.parametrize("name", OTHER_METADATA_NAMES)
def test_a_folder_with_a_second_metadata_file_is_not_loaded(folder: Path, load: Load, name: str) -> None:
    store(folder, [row(1, "a.png")])
    assert len(load(whole_folder=True)["train"]) == 1
    (folder / name).write_text("file_name,text\na.png,another\n")
    with pytest.raises(ValueError, match="metadata files with different extensions"):
        load(whole_folder=True)

"""The contact sheet of a batch: its pages, what they show, and whose files they may replace."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_qwenimage.batch.publishing import Publishing
from airflow_provider_qwenimage.contract import SIZES
from airflow_provider_qwenimage.publish import contact_sheets, sheet_drawing
from airflow_provider_qwenimage.publish.contact_sheets import ContactSheets
from airflow_provider_qwenimage.publish.provenance import COMPOSITE_SYNTHETIC
from airflow_provider_qwenimage.publish.sheet_cells import cell_of, heading_of, totals_of
from airflow_provider_qwenimage.publish.sheet_drawing import Layout
from airflow_provider_qwenimage.rules.batch_rows import contact_sheet_name, manifest_row, page_of_contact_sheet
from airflow_provider_qwenimage.rules.contact_sheets import ROWS_OF_A_PAGE, SheetComment, read_comment
from airflow_provider_qwenimage.rules.made_by import writer_of
from airflow_provider_qwenimage.rules.verification import MOST_PIXELS
from airflow_provider_qwenimage.storage import files
from airflow_provider_qwenimage.storage.paths import open_output_path
from tests.stores import MemoryStore, attach

MADE_BY = {"dag_id": "foxes", "run_id": "r", "task_id": "draw", "map_index": -1, "max_tries": 0}
WRITER = writer_of(MADE_BY)
RED, GREEN, BLUE = (200, 30, 30), (30, 160, 40), (30, 60, 200)
SQUARE, LANDSCAPE, PORTRAIT = "1024*1024", "1664*928", "928*1664"


def picture(color: tuple[int, int, int] = RED, size: tuple[int, int] = (64, 64), kind: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", size, color).save(made, kind)
    return made.getvalue()


def row(number: int, name: str | None = None, **fields: Any) -> dict[str, Any]:
    """Return a row of a manifest; with the name of an image it is a success."""
    request = {"prompt": f"Prompt {number}", "size": SQUARE, "seed": -1, "output_format": "png"}
    stored = {"status": "SUCCESS", "paths": [f"/x/{name}"], "consumed_credits": 5, "reused": False}
    outcome = {"status": "FAILED", "error": "QwenImageTaskFailedError"} if name is None else stored
    return manifest_row(number, request, outcome | fields, WRITER)


class Folder:
    """A folder with images, and the rows of a batch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def add(self, color: tuple[int, int, int] | bytes | None = RED, **fields: Any) -> None:
        """Add a row, with its image in a color or of any bytes; None for a row that failed."""
        number = len(self.rows) + 1
        if color is None:
            self.rows.append(row(number, **fields))
            return
        content = color if isinstance(color, bytes) else picture(color)
        (self.path / f"{number}.png").write_bytes(content)
        self.rows.append(row(number, f"{number}.png", **fields))

    def sheets(self, **made_by: Any) -> ContactSheets:
        return ContactSheets(open_output_path(str(self.path)), lambda: iter(self.rows), MADE_BY | made_by)

    def draw(self, **made_by: Any) -> Sheet:
        """Draw the contact sheet and return its first page."""
        self.sheets(**made_by).put()
        return Sheet(self.path / contact_sheet_name(MADE_BY["map_index"]), self.rows)

    @property
    def names(self) -> list[str]:
        return sorted(file.name for file in self.path.glob("contact-sheet*"))


class Sheet:
    """A page that was stored, with its measures."""

    def __init__(self, file: Path, rows: list[dict[str, Any]]) -> None:
        self.file = file
        cells = [cell_of(each) for each in rows[:ROWS_OF_A_PAGE]]
        self.layout = Layout.of(cells, len(cells))
        with Image.open(file) as image:
            self.image = image.convert("RGB")

    def at(self, position: int, across: float = 0.5, down: float = 0.5) -> tuple[int, ...]:
        """Return the color at a point of a cell's picture, given as shares of its width and height."""
        left, top = self.layout.corner(position)
        width, height = self.layout.thumbnail
        color = self.image.getpixel((left + int(width * across), top + int(height * down)))
        assert isinstance(color, tuple)
        return color

    def text_of(self, position: int) -> bytes:
        """Return the pixels below a cell's picture."""
        left, top = self.layout.corner(position)
        box = (left, top + self.layout.picture + 2, left + self.layout.cell, top + self.layout.height)
        return self.image.crop(box).tobytes()


def is_crossed(sheet: Sheet, position: int) -> bool:
    """Whether one of the two lines of a cross is near the middle of the upper left quarter."""
    shares = [0.25 + step / 400 for step in range(-8, 9)]
    colors = [sheet.at(position, share, 0.25) for share in shares]
    return any(color[0] - color[1] > 20 for color in colors) and is_near(
        sheet.at(position, 0.5, 0.15), sheet_drawing._MAT
    )


def is_near(color: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return all(abs(one - another) < 12 for one, another in zip(color, other, strict=True))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_images_are_shown_in_the_order_of_the_rows(folder: Folder) -> None:
    colors = [RED, GREEN, BLUE, GREEN, RED]
    for color in colors:
        folder.add(color)
    sheet = folder.draw()
    assert all(is_near(sheet.at(position), color) for position, color in enumerate(colors))


def test_an_image_keeps_its_aspect_ratio(folder: Folder) -> None:
    folder.add(picture(RED, (1664, 928)), size=LANDSCAPE)
    folder.add(picture(RED, (928, 1664)), size=PORTRAIT)
    sheet = folder.draw()
    shown = [[is_near(sheet.at(cell, *point), RED) for point in ((0.03, 0.5), (0.5, 0.05))] for cell in (0, 1)]
    assert shown == [[True, False], [False, True]]


def test_landscape_images_of_one_size_have_no_space_around_them(folder: Folder) -> None:
    for _ in range(2):
        folder.add(picture(RED, (1664, 928)), size=LANDSCAPE)
    sheet = folder.draw()
    assert is_near(sheet.at(0, 0.5, 0.02), RED)
    assert is_near(sheet.at(0, 0.5, 0.98), RED)


@pytest.mark.parametrize("status", ["FAILED", "UNKNOWN", "UNFINISHED", "NOT_SUBMITTED"])
def test_a_row_without_an_image_is_crossed_out_with_its_status(folder: Folder, status: str) -> None:
    folder.add(RED)
    folder.add(None, status=status)
    sheet = folder.draw()
    assert [is_crossed(sheet, position) for position in (0, 1)] == [False, True]
    # The sign with the status, above its letters.
    assert is_near(sheet.at(1, 0.5, 0.465), sheet_drawing._CARD)
    assert cell_of(folder.rows[1]).problem == status.replace("_", " ")


def test_rows_that_share_an_image_show_it(folder: Folder) -> None:
    folder.add(BLUE)
    folder.rows.append(row(2, "1.png", same_as=1, consumed_credits=0))
    sheet = folder.draw()
    assert is_near(sheet.at(1), BLUE)
    assert cell_of(folder.rows[1]).details == "2 · random seed · same as 1"


def test_a_cell_has_the_label_or_the_prompt_with_the_seed_and_the_number_of_the_row() -> None:
    plain, labelled = row(7, "a.png", seed=42), row(8, "b.png", label="red", paths=["/x/b.png", "/x/b-2.png"])
    assert (cell_of(plain).label, cell_of(plain).details) == ("Prompt 7", "7 · seed 42")
    assert (cell_of(labelled).label, cell_of(labelled).details) == ("red", "8 · random seed · + 1 image")
    # The label of a sweep has the seed already; that of another one may have another number.
    assert cell_of(row(9, "c.png", label="red · seed 4", seed=4)).details == "9"
    assert cell_of(row(9, "c.png", label="red · seed 4", seed=42)).details == "9 · seed 42"


def test_the_text_of_a_cell_is_drawn_below_its_image(folder: Folder) -> None:
    folder.add(RED, label="a fox")
    folder.add(RED, label="a hare")
    sheet = folder.draw()
    assert sheet.text_of(0) != sheet.text_of(1)


def test_the_head_names_the_batch_and_its_totals() -> None:
    rows = [row(1, "a.png"), row(2, "b.png", consumed_credits=1234.5), row(3), row(4, status="NOT_SUBMITTED")]
    assert totals_of(rows).text() == "2 images · 2 failed · 1,239.5 credits"
    assert totals_of(rows[:1]).text() == "1 image · 5 credits"
    assert heading_of(MADE_BY) == ("foxes", "draw · r")
    assert heading_of(MADE_BY | {"map_index": 3, "iteration": 0}) == ("foxes", "draw [3], iteration 0 · r")


def test_each_hundred_rows_have_a_page_and_pages_of_a_longer_batch_are_removed(folder: Folder) -> None:
    folder.add(RED)
    folder.rows += [row(number, "1.png") for number in range(2, 202)]
    foreign = {"contact-sheet-4.jpg": picture(kind="JPEG"), "contact-sheet-m3.jpg": b"x", "contact-sheet-02.jpg": b"x"}
    for name, content in foreign.items():
        (folder.path / name).write_bytes(content)
    paths = folder.sheets().put()
    pages = ["contact-sheet.jpg", "contact-sheet-2.jpg", "contact-sheet-3.jpg"]
    assert paths == [str(open_output_path(str(folder.path)) / name) for name in pages]
    assert folder.names == sorted([*pages, *foreign])
    del folder.rows[101:]
    folder.sheets().put()
    assert folder.names == sorted([*pages[:2], *foreign])
    assert {name: (folder.path / name).read_bytes() for name in foreign} == foreign


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_sheet_is_marked_as_its_images_are(folder: Folder, *, is_marked: bool) -> None:
    folder.add()
    (path,) = ContactSheets(
        open_output_path(str(folder.path)), lambda: iter(folder.rows), MADE_BY, is_marked=is_marked
    ).put()
    content = Path(path.removeprefix("file://")).read_bytes()
    assert (COMPOSITE_SYNTHETIC.encode() in content) == is_marked
    # Its own comment, by which the next batch knows it, is found behind the mark.
    assert read_comment(content) == SheetComment(WRITER, frozenset())
    with Image.open(io.BytesIO(content)) as image:
        image.load()


def test_equal_rows_have_equal_bytes(folder: Folder) -> None:
    folder.add(RED)
    folder.add(None)
    first = folder.draw().file.read_bytes()
    assert folder.draw().file.read_bytes() == first


@pytest.mark.parametrize(("map_index", "iteration"), [(-1, None), (None, None), (0, None), (2, None), (-1, 2), (2, 2)])
def test_names_of_batches_in_one_folder_do_not_collide(map_index: int | None, iteration: int | None) -> None:
    instances = [(-1, None), (0, None), (2, None), (-1, 0), (-1, 2), (2, 2)]
    for page in (1, 2, 3, 22):
        name = contact_sheet_name(map_index, iteration, page)
        found = {instance: page_of_contact_sheet(name, *instance) for instance in instances}
        own = -1 if map_index is None else map_index, iteration
        assert {instance: known for instance, known in found.items() if known is not None} == {own: page}
    assert page_of_contact_sheet("contact-sheet-1.jpg", -1) is None


@pytest.mark.parametrize("name", ["contact-sheet.jpg", "contact-sheet-2.jpg"])
def test_a_file_that_is_no_contact_sheet_is_refused_before_anything_is_paid(folder: Folder, name: str) -> None:
    foreign = picture(kind="JPEG")
    (folder.path / name).write_bytes(foreign)
    sheets = folder.sheets()
    with pytest.raises(ValueError, match=f"its file {name} is not the contact sheet of a batch, so it is not replaced"):
        sheets.check(101)
    assert (folder.path / name).read_bytes() == foreign


def test_a_file_with_the_name_of_a_page_that_is_not_made_is_in_nobodys_way(folder: Folder) -> None:
    (folder.path / "contact-sheet-2.jpg").write_bytes(picture(kind="JPEG"))
    folder.sheets().check(100)


def test_a_folder_of_its_name_is_refused_before_anything_is_paid(folder: Folder) -> None:
    (folder.path / "contact-sheet.jpg").mkdir()
    with pytest.raises(OSError, match="contact-sheet.jpg"):
        folder.sheets().check(1)


def test_a_contact_sheet_of_another_task_is_replaced_as_a_manifest_is(folder: Folder) -> None:
    folder.add(RED)
    folder.draw(task_id="earlier")
    folder.sheets().check(1)
    sheet = folder.draw()
    assert read_comment(sheet.file.read_bytes()) == SheetComment(WRITER, frozenset())


def publishing(folder: Folder) -> Publishing:
    class Manifest:
        number_of_rows = len(folder.rows)

        def rows(self) -> Iterator[dict[str, Any]]:
            return iter(folder.rows)

    opened = open_output_path(str(folder.path))
    return Publishing(opened, Manifest(), MADE_BY, folder.path, contact_sheet=True, dataset=None)


def test_a_file_that_appears_during_the_batch_is_not_replaced_and_fails_nothing(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    folder.add(RED)
    made = publishing(folder)
    made.check()
    foreign = picture(kind="JPEG")
    (folder.path / "contact-sheet.jpg").write_bytes(foreign)
    assert made.put_contact_sheet() == []
    assert (folder.path / "contact-sheet.jpg").read_bytes() == foreign
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def bomb() -> bytes:
    """Return a PNG whose header says that it has a billion pixels."""
    import zlib

    content = bytearray(picture())
    content[16:24] = (40_000).to_bytes(4) + (40_000).to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return bytes(content)


def test_a_file_that_is_not_an_image_or_too_large_is_crossed_out(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contact_sheets, "_MOST_IMAGE_BYTES", 20_000)
    noise = io.BytesIO()
    Image.effect_noise((400, 400), 80).save(noise, "PNG")
    for content in (picture(GREEN), b"what a stranger has put here", bomb(), noise.getvalue(), picture()[:60]):
        folder.add(content)
    folder.add(RED)
    (folder.path / "6.png").unlink()
    caplog.set_level(logging.INFO)
    sheet = folder.draw()
    assert is_near(sheet.at(0), GREEN)
    assert all(is_crossed(sheet, position) for position in range(1, 6))
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("The contact sheet shows 4 images as unreadable. The first one is 2.png (")


def test_a_bomb_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheets, "reduced_image", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match="more than 16,777,216 pixels"):
        contact_sheets._reduced(bomb(), (100, 100))


def test_an_image_that_another_dag_drew_is_recorded(folder: Folder) -> None:
    for _ in range(3):
        folder.add(RED, reused=True)
    for name, dag_id in {"1": "foxes", "2": "hares"}.items():
        (folder.path / f"{name}.json").write_text(f'{{"made_by": {{"dag_id": "{dag_id}"}}}}')
    rows, folder.rows = folder.rows, folder.rows[:2]
    assert read_comment(folder.draw().file.read_bytes()) == SheetComment(WRITER, frozenset({"hares"}))
    # One has no sidecar.
    folder.rows = rows
    assert read_comment(folder.draw().file.read_bytes()) == SheetComment(WRITER, None)


@pytest.mark.parametrize("dags", [None, frozenset(), frozenset({"a", "狐"}), frozenset({"\U0001f98a" * 250})])
def test_a_comment_is_read_as_it_was_written(dags: frozenset[str] | None) -> None:
    made = io.BytesIO()
    comment = SheetComment("w", dags)
    Image.new("RGB", (8, 8)).save(made, "JPEG", comment=comment.to_bytes())
    assert read_comment(made.getvalue()) == comment
    assert read_comment(made.getvalue()[:40]) is None


def test_more_dags_than_a_comment_holds_count_as_not_known() -> None:
    dags = frozenset(f"{number:03}{247 * '狐'}" for number in range(100))
    content = SheetComment("w", dags).to_bytes()
    assert len(content) < 1000
    assert b'"other_dags": null' in content


@pytest.mark.parametrize(
    "comment",
    [b"", b"{", b"[]", b'{"kind": "x"}', b"[" * 60_000, b'{"kind": "contact sheet of airflow-provider-qwenimage"}'],
)
def test_another_comment_is_not_that_of_a_contact_sheet(comment: bytes) -> None:
    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, "JPEG", comment=comment)
    assert read_comment(made.getvalue()) is None


@pytest.mark.parametrize("dags", ["1", '"x"', "{}", "[1]", '[""]', '{"a": 1}'])
def test_other_dags_of_another_type_count_as_not_known(dags: str) -> None:
    content = SheetComment("w", None).to_bytes().replace(b"null", dags.encode())
    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, "JPEG", comment=content)
    assert read_comment(made.getvalue()) == SheetComment("w", None)


@pytest.mark.parametrize("size", SIZES)
def test_no_page_has_more_pixels_than_the_gallery_shows(size: str) -> None:
    for number in range(1, ROWS_OF_A_PAGE + 1):
        cells = [cell_of(row(index, size=size)) for index in range(number)]
        layout = Layout.of(cells, number)
        assert layout.width * layout.page_height(number) < MOST_PIXELS
        assert layout.width <= 2700


def test_a_stopped_sheet_stores_nothing_more(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder.add(RED)
    folder.rows += [row(number, "1.png") for number in range(2, 202)]
    sheets = folder.sheets()
    rows = iter(folder.rows)

    def stop_after_the_first_page() -> Iterator[dict[str, Any]]:
        for number, each in enumerate(rows):
            if number == 150:
                sheets.stop()
            yield each

    reads = iter([iter(folder.rows), stop_after_the_first_page()])
    sheets._rows = lambda: next(reads)
    assert [Path(path).name for path in sheets.put()] == ["contact-sheet.jpg"]
    assert folder.names == ["contact-sheet.jpg"]
    assert "ended from outside" in caplog.text


def test_a_batch_that_is_stopped_stops_its_sheet(folder: Folder) -> None:
    folder.add(RED)
    made = publishing(folder)
    made.stop()
    assert made.put_contact_sheet() == []
    assert folder.names == []


def test_long_work_is_logged_page_by_page(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder.add(RED)
    folder.rows += [row(number, "1.png") for number in range(2, 102)]
    caplog.set_level(logging.INFO)
    folder.draw()
    assert "Page 1 of 2" not in caplog.text
    monkeypatch.setattr(contact_sheets, "_QUIET_SECONDS", -1.0)
    folder.draw()
    assert "Page 1 of 2 of the contact sheet is stored." in caplog.text


def test_several_images_are_read_at_once_from_slow_storage() -> None:
    both = threading.Barrier(2, timeout=20)

    class Slow(MemoryStore):
        def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
            if path.endswith(".png"):
                both.wait()
            return super().cat_file(path, *args, **kwargs)

    folder = ObjectStoragePath(f"{attach(Slow('gs'), 'gs')}bucket/images")
    for name in ("1.png", "2.png"):
        files.put_bytes(picture(), folder / name)
    rows = [row(1, "1.png"), row(2, "2.png")]
    (path,) = ContactSheets(folder, lambda: iter(rows), MADE_BY).put()
    assert path.endswith("images/contact-sheet.jpg")
    assert not both.broken


def test_a_page_that_is_being_drawn_when_it_is_stopped_is_not_stored() -> None:
    class Stopping(MemoryStore):
        def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
            if path.endswith(".png"):
                sheets.stop()
            return super().cat_file(path, *args, **kwargs)

    folder = ObjectStoragePath(f"{attach(Stopping('gs'), 'gs')}bucket/images")
    files.put_bytes(picture(), folder / "1.png")
    sheets = ContactSheets(folder, lambda: iter([row(1, "1.png")]), MADE_BY)
    assert sheets.put() == []
    assert not (folder / "contact-sheet.jpg").exists()

"""Texts of any script are drawn with the fonts that a machine has, and what is missing is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from airflow_provider_qwenimage.lettering import drawn_texts, font_files
from airflow_provider_qwenimage.lettering.drawn_texts import Lettering, is_right_to_left
from airflow_provider_qwenimage.text.wrapping import wrap

CHINESE = "狐狸在雪地里"


def own_font_in(folder: Path, name: str) -> Path:
    """Store Pillow's own font, which has Latin letters, as a file."""
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    file = folder / name
    file.write_bytes(font.font_bytes)
    return file


def drawn(fonts: Lettering, line: str) -> bytes:
    image = Image.new("L", (400, 60))
    fonts.draw(ImageDraw.Draw(image.convert("RGB")), (0, 40), line, 20.0, (255, 255, 255))
    colored = image.convert("RGB")
    fonts.draw(ImageDraw.Draw(colored), (0, 40), line, 20.0, (255, 255, 255))
    return colored.tobytes()


def test_a_long_text_has_two_lines_that_fit_and_an_ellipsis() -> None:
    fonts = Lettering(found=())
    lines = fonts.lines("A red fox in the snow " * 20, 20.0, 150, 2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert all(fonts.length(line, 20.0) <= 150 for line in lines)
    assert fonts.lines("A fox", 20.0, 150, 2) == ["A fox"]
    assert fonts.lines("x" * 100, 20.0, 150, 2)[1].endswith("…")
    assert fonts.lines("", 20.0, 150, 2) == [""]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("A fox 狐狸在雪地里", ["A fox 狐狸", "在雪地里"]),
        ("A red fox 狐狸在雪地里", ["A red", "fox 狐狸在雪", "地里"]),
        ("fox, hare 狐狸", ["fox,", "hare 狐狸"]),
        ("12345678 狐狸在雪地里狐狸在雪地里", ["12345678", "狐狸在雪地里狐狸", "在雪地里"]),
        ("Fox snowstorm", ["Fox", "snowstor", "m"]),
    ],
)
def test_a_text_without_spaces_begins_on_the_line_of_the_word_before(text: str, lines: list[str]) -> None:
    assert wrap(text, len, 8) == lines


def test_a_mark_without_width_has_a_line() -> None:
    mark = "\N{IDEOGRAPHIC LEVEL TONE MARK}"
    assert wrap(f"12345678 {mark}", lambda text: len(text.replace(mark, "")), 8) == ["12345678", mark]


def test_characters_that_no_font_has_are_replaced_visibly_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    fonts = Lettering(found=())
    lines = [line for _ in range(2) for line in fonts.lines(f"Fox {CHINESE}", 20.0, 1000, 1)]
    assert lines == [f"Fox {len(CHINESE) * drawn_texts._PLACEHOLDER}"] * 2
    blank = Image.new("RGB", (400, 60)).tobytes()
    assert drawn(fonts, drawn_texts._PLACEHOLDER) != blank
    fonts.report()
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "狐 U+72D0" in warning
    assert "fonts-noto-cjk" in warning
    assert "contact_sheet_font" in warning


@pytest.mark.parametrize(
    ("text", "package"),
    [
        ("あ", "fonts-noto-cjk"),
        ("한", "fonts-noto-cjk"),
        ("\U0001f98a", "fonts-symbola"),
        ("ก", "fonts-noto-core"),
    ],
)
def test_the_warning_names_a_package_with_the_script(text: str, package: str, caplog: pytest.LogCaptureFixture) -> None:
    fonts = Lettering(found=())
    fonts.lines(text, 20.0, 1000, 1)
    fonts.report()
    assert f"packages {package}, or" in caplog.text


def test_what_shows_nothing_is_neither_drawn_as_a_box_nor_reported(caplog: pytest.LogCaptureFixture) -> None:
    fonts = Lettering(found=())
    assert fonts.lines("a\u200d\ufe0fb\nc\td", 20.0, 1000, 1) == ["ab c d"]
    fonts.report()
    assert caplog.messages == []


@pytest.mark.parametrize("text", ["\ud83d", "\x00", "a\ud800b", "\U0010ffff"])
@pytest.mark.parametrize("is_shaped", [False, True])
def test_text_that_cannot_be_encoded_is_replaced(tmp_path: Path, text: str, is_shaped: bool) -> None:
    fonts = Lettering(found=[own_font_in(tmp_path, "a.ttf")] if is_shaped else ())
    (line,) = fonts.lines(text, 20.0, 1000, 1)
    assert drawn_texts._PLACEHOLDER in line
    drawn(fonts, line)


def test_a_vowel_that_a_font_lacks_is_not_drawn_with_its_boxes(tmp_path: Path) -> None:
    fonts = Lettering(found=[own_font_in(tmp_path, "a.ttf")])
    assert fonts.lines("a\N{THAI CHARACTER SARA AM}b", 20.0, 1000, 1) == [f"a{drawn_texts._PLACEHOLDER}b"]


def test_the_named_font_is_preferred(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    named, other = own_font_in(tmp_path, "Company.ttf"), own_font_in(tmp_path, "Other.ttf")
    fonts = Lettering(str(named), [other])
    drawn(fonts, "A fox")
    fonts.report()
    assert caplog.messages == ["Fonts of the contact sheet: Company.ttf."]


@pytest.mark.parametrize("content", [None, b"no font", b""])
def test_a_named_font_that_cannot_be_read_is_reported_once_and_others_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    caplog.set_level(logging.INFO)
    named = tmp_path / "Company.ttf"
    if content is not None:
        named.write_bytes(content)
    fonts = Lettering(str(named), [own_font_in(tmp_path, "Other.ttf")])
    drawn(fonts, "A fox")
    drawn(fonts, "A hare")
    fonts.report()
    problem, used = caplog.messages
    assert problem.startswith("The option contact_sheet_font in section [qwenimage]")
    assert used == "Fonts of the contact sheet: Other.ttf."


def test_a_broken_font_of_the_system_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.ttf").write_bytes(b"no font")
    fonts = Lettering(found=[tmp_path / "a.ttf", own_font_in(tmp_path, "b.ttf")])
    assert drawn(fonts, "A fox") == drawn(Lettering(found=[tmp_path / "b.ttf"]), "A fox")


class Scripts(Lettering):
    """Fonts with invented characters: the first has a to m, the second has n to z, the third has all of them."""

    _FONTS = ("abcdefghijklm ", "nopqrstuvwxyz ", "abcdefghijklmnopqrstuvwxyz0 ")

    def __init__(self, number: int) -> None:
        super().__init__(found=[Path(f"{index}.ttf") for index in range(number)])

    def _has(self, index: int, character: str) -> bool:
        return index < len(self._files) and character in self._FONTS[index]


def test_a_text_is_drawn_in_one_font_if_one_has_all_of_it() -> None:
    fonts = Scripts(3)
    assert fonts._runs("fig tea0") == [(2, "fig tea0")]
    assert fonts._runs("babe") == [(0, "babe")]


def test_a_text_that_no_font_has_is_drawn_in_runs_of_several() -> None:
    assert Scripts(2)._runs("fib zoo") == [(0, "fib "), (1, "zoo")]
    # What no font has is drawn in Pillow's own, which comes last.
    assert Scripts(2)._runs("fib!zoo") == [(0, "fib"), (2, "!"), (1, "zoo")]


def test_random_characters_are_looked_up_a_bounded_number_of_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn_texts, "_MOST_LOOKUPS", 50)
    fonts = Lettering(found=[own_font_in(tmp_path, f"{number}.ttf") for number in range(10)])
    for start in range(0x4E00, 0x4E00 + 1000, 100):
        fonts.lines("".join(map(chr, range(start, start + 100))), 20.0, 500, 1)
    assert len([index for index, _ in fonts._coverage if index < 10]) <= 50
    # Those of Pillow's own font are still drawn.
    assert fonts.lines("Zebra", 20.0, 500, 1) == ["Zebra"]


@pytest.mark.parametrize(
    ("text", "expected"), [("שועל 2024", True), ("2024 ثعلب", True), ("Fox שועל", False), ("2024", False), ("", False)]
)
def test_the_first_letter_decides_where_a_label_begins(text: str, expected: bool) -> None:
    assert is_right_to_left(text) is expected


def test_fonts_are_found_in_order_of_preference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        "NotoSans-Regular.ttf",
        "DejaVuSans.ttf",
        "NotoSansCJK-Regular.ttc",
        "NotoSansThai-Regular.ttf",
        "Loma.otf",
    ]
    for name in [*names, "DejaVuSans-Bold.ttf", "NotoSerif-Regular.ttf", "readme.txt", "LiberationMono-Regular.ttf"]:
        (tmp_path / name[0]).mkdir(exist_ok=True)
        (tmp_path / name[0] / name).touch()
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(font_files, "_folders", lambda: [tmp_path, tmp_path / "missing"])
    assert [file.name for file in font_files.font_files()] == names
    monkeypatch.setattr(font_files, "_MOST_FILES", 0)
    assert font_files.font_files() == []


@pytest.mark.parametrize("platform", ["linux", "darwin", "win32"])
def test_each_system_has_folders_for_fonts(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", platform)
    assert len(font_files._folders()) >= 2


def test_a_user_without_a_home_has_the_fonts_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert Path("/usr/share/fonts") in font_files._folders()

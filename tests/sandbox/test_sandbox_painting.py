"""The pictures can be decoded, are the same for the same request, and can be drawn for any text."""

from __future__ import annotations

import asyncio
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from airflow_provider_qwenimage.contract import OUTPUT_FORMATS, SIZES, GenerateRequest
from airflow_provider_qwenimage.sandbox.painting import paint
from airflow_provider_qwenimage.sandbox.palettes import PALETTES
from airflow_provider_qwenimage.sandbox.pictures import Pictures, paint_once

SMALL = (96, 64)


def decode(image: bytes) -> Image.Image:
    with Image.open(BytesIO(image)) as picture:
        picture.load()
        return picture.convert("RGB")


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_every_size_and_format_can_be_decoded(size: str, output_format: str) -> None:
    request = GenerateRequest(prompt="a cat", size=size, output_format=output_format)
    with Image.open(BytesIO(paint("a cat", 1, request.pixel_size, output_format))) as picture:
        picture.load()
        assert picture.size == request.pixel_size
        assert picture.format == output_format.upper()


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_the_same_request_gives_the_same_bytes(output_format: str) -> None:
    assert paint("a cat", 5, SMALL, output_format) == paint("a cat", 5, SMALL, output_format)


def test_another_seed_or_prompt_gives_another_picture() -> None:
    pictures = {paint(prompt, seed, SMALL, "png") for prompt in ("a cat", "a dog") for seed in range(9)}
    assert len(pictures) == 18


def test_the_seed_chooses_the_palette() -> None:
    zeniths = {decode(paint("a cat", seed, SMALL, "png")).getpixel((0, 0)) for seed in range(len(PALETTES))}
    assert len(zeniths) == len(PALETTES)


def test_the_prompt_is_written_into_the_picture() -> None:
    """The text is brighter than its panel, so a longer text has more bright pixels."""

    def bright(prompt: str) -> int:
        picture = decode(paint(prompt, 2, (512, 512), "png")).convert("L").crop((16, 330, 496, 496))
        return sum(picture.histogram()[240:])

    assert 40 < bright("a cat") < bright("a cat in a hat on a mat") < bright("a cat in a hat on a mat " * 4)


@settings(max_examples=20)
@given(prompt=st.text(st.characters(codec=None), max_size=60), seed=st.integers(min_value=0))
def test_any_text_and_seed_can_be_drawn(prompt: str, seed: int) -> None:
    assert decode(paint(prompt, seed, SMALL, "jpeg")).size == SMALL


@pytest.mark.parametrize(
    "prompt",
    ["", " ", "\ud800", "水墨画 一只猫", "🙂👩‍👩‍👧", "x" * 2000, "wordy " * 333, "\x00\u202e\u0301", "מזל טוב"],
)
def test_odd_prompts_can_be_drawn(prompt: str) -> None:
    assert decode(paint(prompt, 3, (256, 192), "png")).size == (256, 192)


def test_simultaneous_requests_for_a_picture_share_one_drawing() -> None:
    async def scenario() -> None:
        pictures = Pictures()
        request = GenerateRequest(prompt="a cat", size="768*1024")
        try:
            first, same = await asyncio.gather(pictures.get(request, 1), pictures.get(request, 1))
            assert first is same
            assert await pictures.get(request, 1) is first
            assert await pictures.get(request, 1, pixel_size=SMALL) != first
        finally:
            pictures.close()

    asyncio.run(scenario())


def test_the_cache_of_pictures_is_bounded() -> None:
    limit = paint_once.cache_info().maxsize
    assert limit is not None
    first = paint_once("a cat", 0, (16, 16), "jpeg")
    for seed in range(1, limit + 1):
        paint_once("a cat", seed, (16, 16), "jpeg")
    assert paint_once.cache_info().currsize == limit
    again = paint_once("a cat", 0, (16, 16), "jpeg")
    assert again == first
    assert again is not first

"""Draw the sandbox's images: a landscape by a lake, the same for the same prompt, seed, size and format."""

from __future__ import annotations

import hashlib
import io
import math
import random
from itertools import pairwise
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter

from airflow_provider_qwenimage.sandbox.caption import add_caption
from airflow_provider_qwenimage.sandbox.palettes import PALETTES, Colour, Palette

_RIDGES = 6
_BRIGHT_STAR = 0.45
# Pillow's radial gradient has 255 in its corners and this in the middle of its edges.
_GRADIENT_EDGE = 179
# One side of a pine from the ground to its tip: the ends of its boughs, in half widths and as a share of the height.
_BOUGHS = ((0.1, 0.0), (0.1, 0.1), (1.0, 0.13), (0.5, 0.36), (0.78, 0.35), (0.36, 0.58), (0.55, 0.57), (0.2, 0.8))
_PINE = (*((-out, up) for out, up in _BOUGHS), (0.0, 1.0), *reversed(_BOUGHS))
# The defaults of PNG and WebP take several times as long and save only a few per cent of the bytes.
_ENCODING: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 90},
    "png": {"compress_level": 1},
    "webp": {"quality": 85, "method": 0},
}


def paint(prompt: str, seed: int, pixel_size: tuple[int, int], output_format: str) -> bytes:
    """Return an encoded picture with the prompt as its caption.

    Args:
        seed: Chooses the palette and, together with the prompt, the landscape.
        pixel_size: Width and height.
        output_format: ``jpeg``, ``png`` or ``webp``.
    """
    digest = hashlib.sha256(f"{seed} {prompt}".encode("utf-8", "surrogatepass")).digest()
    rng = random.Random(int.from_bytes(digest))  # noqa: S311  a picture, not a secret
    palette = PALETTES[seed % len(PALETTES)]
    image = _landscape(rng, palette, pixel_size)
    add_caption(image, prompt, f"sandbox · seed {seed}")
    buffer = io.BytesIO()
    image.save(buffer, output_format, **_ENCODING[output_format])
    return buffer.getvalue()


def _landscape(rng: random.Random, palette: Palette, pixel_size: tuple[int, int]) -> Image.Image:
    width, height = pixel_size
    shore = round(height * rng.uniform(0.60, 0.66))
    sun = (width * rng.uniform(0.22, 0.78), shore * rng.uniform(0.28, 0.6))
    image = _gradient(palette.sky, (width, shore))
    if palette.stars:
        _add_stars(image, rng, palette)
    if palette.aurora:
        _add_aurora(image, rng, palette.aurora)
    _add_sun(image, sun, palette)
    _add_clouds(image, rng, palette)
    for number in range(_RIDGES):
        _add_ridge(image, rng, palette, number)
    _add_birds(image, rng, palette)
    _paste(image, palette.haze, _fade(image.size, (0,) * 9 + (45,)))
    picture = Image.new("RGB", pixel_size)
    picture.paste(image)
    picture.paste(_water(image, rng, palette, sun[0], height - shore), (0, shore))
    return picture


def _mix(first: Colour, second: Colour, share: float) -> Colour:
    """Return a mixture of two colours; 0 is the first, 1 is the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def _paste(image: Image.Image, colour: Colour, mask: Image.Image) -> None:
    image.paste(Image.new("RGB", image.size, colour), (0, 0), mask)


def _gradient(colours: tuple[Colour, ...], size: tuple[int, int]) -> Image.Image:
    """Return a smooth vertical gradient through the colours."""
    strip = Image.new("RGB", (1, len(colours)))
    strip.putdata(colours)
    # Bicubic from a few pixels: no visible kinks at the stops.
    return strip.resize((1, size[1]), Image.Resampling.BICUBIC).resize(size)


def _fade(size: tuple[int, int], levels: tuple[int, ...]) -> Image.Image:
    """Return a mask that fades through the levels from top to bottom."""
    strip = Image.new("L", (1, len(levels)))
    strip.putdata(levels)
    return strip.resize((1, size[1]), Image.Resampling.BILINEAR).resize(size)


def _noise(rng: random.Random, size: tuple[int, int], cells: tuple[int, int], octaves: int = 4) -> Image.Image:
    """Return soft noise as a grey image: random pixels, enlarged, in several octaves."""
    total = Image.new("L", size, 128)
    for octave in range(octaves):
        grid = (cells[0] << octave, cells[1] << octave)
        grains = Image.frombytes("L", grid, rng.randbytes(grid[0] * grid[1]))
        layer = grains.resize(size, Image.Resampling.BICUBIC)
        total = layer if octave == 0 else Image.blend(total, layer, 0.5 ** (octave + 0.4))
    return total


def _stretch(mask: Image.Image, edge: float, contrast: float) -> Image.Image:
    """Cut off the mask below the edge and multiply the rest by the contrast."""
    return mask.point([min(255, max(0, round((level - edge) * contrast))) for level in range(256)])


def _lamp(mask: Image.Image, colour: Colour, strength: float) -> Image.Image:
    """Return the mask tinted with a colour."""
    parts = (mask.point([round(level * part / 255 * strength) for level in range(256)]) for part in colour)
    return Image.merge("RGB", tuple(parts))


def _glow(image: Image.Image, centre: tuple[float, float], radius: float, colour: Colour, strength: float) -> None:
    """Add a soft round glow to the image, in place."""
    box = 2 * max(1, round(radius))
    falloff = Image.radial_gradient("L").point(
        [round(max(0.0, 1 - level / _GRADIENT_EDGE) ** 2.2 * 255) for level in range(256)]
    )
    lamp = _lamp(falloff, colour, strength).resize((box, box), Image.Resampling.BILINEAR)
    left, top = round(centre[0] - radius), round(centre[1] - radius)
    area = (max(0, left), max(0, top), min(image.width, left + box), min(image.height, top + box))
    lit = lamp.crop((area[0] - left, area[1] - top, area[2] - left, area[3] - top))
    image.paste(ImageChops.screen(image.crop(area), lit), area)


def _add_stars(image: Image.Image, rng: random.Random, palette: Palette) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(round(420 * palette.stars)):
        x, y = rng.random() * image.width, rng.random() ** 1.6 * image.height * 0.8
        brightness = rng.random() ** 3 * (1 - y / image.height)
        shade = _mix(palette.sky[1], (255, 255, 250), 0.3 + 0.7 * brightness)
        if brightness > _BRIGHT_STAR:
            _glow(image, (x, y), image.width * 0.008, (200, 215, 255), 0.5)
            draw.ellipse((x - 1, y - 1, x + 1, y + 1), fill=shade)
        else:
            draw.point((x, y), fill=shade)


def _add_aurora(image: Image.Image, rng: random.Random, colour: Colour) -> None:
    """Add curtains of light: bands along a wandering line, made of streaks of different lengths."""
    width, height = image.width // 4, image.height // 4
    for band in range(3):
        mask = Image.new("L", (width, height))
        draw = ImageDraw.Draw(mask)
        line = _fractal_line(rng, 0.48, 7)
        streaks = _fractal_line(rng, 0.85, 8)
        base = rng.uniform(0.35, 0.62)
        for x in range(width):
            y = (base + 0.28 * (_at(line, x / width) - 0.5)) * height
            length = height * (0.10 + 0.34 * _at(streaks, x / width))
            steps = 14
            for step in range(steps):
                level = round(190 * (1 - step / steps) ** 1.7 * (0.3 + 0.7 * _at(streaks, x / width)))
                draw.line((x, y - length * step / steps, x, y - length * (step + 1) / steps), fill=level)
            draw.line((x, y, x, y + height * 0.03), fill=40)
        soft = mask.filter(ImageFilter.GaussianBlur(2.2)).resize(image.size, Image.Resampling.BICUBIC)
        tint = _mix(colour, (150, 110, 255), 0.35 * band)
        image.paste(ImageChops.screen(image, _lamp(soft, tint, 1.0)))


def _add_sun(image: Image.Image, centre: tuple[float, float], palette: Palette) -> None:
    size = min(image.width, image.height)
    _glow(image, centre, size * 1.15, palette.light, 0.38)
    _glow(image, centre, size * 0.42, palette.light, 0.5)
    radius = size * (0.07 - 0.015 * palette.stars)
    box = 2 * max(1, round(radius))
    disc = Image.new("L", (box * 4, box * 4))
    ImageDraw.Draw(disc).ellipse((0, 0, box * 4 - 1, box * 4 - 1), fill=255)
    mask = disc.reduce(4)
    shade = Image.new("RGB", (box, box), _mix(palette.light, (255, 255, 255), 0.35))
    image.paste(shade, (round(centre[0] - radius), round(centre[1] - radius)), mask)


def _add_clouds(image: Image.Image, rng: random.Random, palette: Palette) -> None:
    """Add thin streaks of cloud: noise that is stretched, cut off and faded out."""
    small = (image.width // 2, image.height // 2)
    noise = _noise(rng, small, (3, 9), octaves=5)
    edge = 150 - 45 * palette.clouds
    cover = _stretch(noise, edge, 4.2)
    cover = ImageChops.multiply(cover, _fade(small, (60, 150, 210, 190, 60)))
    cover = cover.resize(image.size, Image.Resampling.BILINEAR)
    shade = _gradient((_mix(palette.cloud, palette.sky[1], 0.35), palette.cloud, palette.light), image.size)
    image.paste(shade, (0, 0), cover.point([round(level * 0.8) for level in range(256)]))


def _fractal_line(rng: random.Random, roughness: float, levels: int) -> list[float]:
    """Return a line from 0 to 1 by midpoint displacement: 2**levels + 1 heights."""
    line = [rng.random() for _ in range(5)]
    spread = 0.5
    for _ in range(levels - 2):
        spread *= roughness
        middles = [(a + b) / 2 + rng.uniform(-spread, spread) for a, b in pairwise(line)]
        line = [height for pair in zip(line, middles, strict=False) for height in pair] + line[-1:]
    low, high = min(line), max(line)
    return [(height - low) / (high - low) for height in line]


def _at(line: list[float], share: float) -> float:
    """Return the height of a line at a share of its width, by linear interpolation."""
    position = share * (len(line) - 1)
    index = min(int(position), len(line) - 2)
    return line[index] + (line[index + 1] - line[index]) * (position - index)


def _add_ridge(image: Image.Image, rng: random.Random, palette: Palette, number: int) -> None:
    """Add a mountain ridge in front of the picture so far. Nearer ridges are lower, darker and smoother."""
    width, height = image.size
    nearness = number / (_RIDGES - 1)
    line = _fractal_line(rng, 0.56 - 0.14 * nearness, 9)
    foot = height * (0.80 + 0.20 * nearness)
    rise = height * (0.42 - 0.27 * nearness)
    outline = [(width * index / (len(line) - 1), foot - rise * top) for index, top in enumerate(line)]
    shapes = [[(0.0, float(height)), *outline, (float(width), float(height))]]
    if number >= _RIDGES - 2:
        shapes += _pines(rng, outline, width * (0.016 + 0.03 * (number == _RIDGES - 1)))
    top = max(0, math.floor(min(y for shape in shapes for _, y in shape)))
    mask = Image.new("L", (width * 2, (height - top) * 2))
    draw = ImageDraw.Draw(mask)
    # Drawn one by one, because a polygon that overlaps itself has holes.
    for shape in shapes:
        draw.polygon([(x * 2, (y - top) * 2) for x, y in shape], fill=255)
    mask = mask.reduce(2)
    crest = _mix(palette.haze, palette.near, 0.18 + 0.82 * nearness**1.25)
    mist = _mix(crest, palette.haze, 0.75 - 0.6 * nearness)
    shade = _gradient((crest, crest, mist, mist), mask.size)
    if number < _RIDGES - 2:
        slopes = _stretch(_noise(rng, mask.size, (14, 5)), 118, 2.2)
        lit = _mix(crest, palette.light, 0.28)
        _paste(shade, lit, ImageChops.multiply(slopes, _fade(mask.size, (190, 150, 40, 0))))
    image.paste(shade, (0, top), mask)


def _pines(rng: random.Random, outline: list[tuple[float, float]], size: float) -> list[list[tuple[float, float]]]:
    """Return groves of pines along an outline, each pine as a polygon."""
    grove = _fractal_line(rng, 0.6, 6)
    heights = [y for _, y in outline]
    pines = []
    x, right = 0.0, outline[-1][0]
    while x < right:
        ground = _at(heights, x / right) + size * 0.08
        tall = size * rng.uniform(0.5, 1.0) * (0.35 + 1.4 * _at(grove, x / right))
        half = tall * rng.uniform(0.17, 0.24)
        pines.append([(x + half * side, ground - tall * up) for side, up in _PINE])
        x += half * rng.uniform(1.0, 2.6)
    return pines


def _add_birds(image: Image.Image, rng: random.Random, palette: Palette) -> None:
    draw = ImageDraw.Draw(image)
    shade = _mix(palette.near, palette.sky[1], 0.25)
    x, y = image.width * rng.uniform(0.15, 0.75), image.height * rng.uniform(0.14, 0.34)
    for _ in range(rng.randrange(3, 8)):
        wing = image.width * rng.uniform(0.005, 0.011)
        lift = wing * rng.uniform(0.3, 0.7)
        shape = ((-1.0, 1.0), (-0.33, 0.8), (0.0, 0.0), (0.33, 0.8), (1.0, 1.0))
        points = [(x + wing * side, y - lift * up) for side, up in shape]
        draw.line(points, fill=shade, width=max(1, image.width // 700), joint="curve")
        x += image.width * rng.uniform(-0.02, 0.045)
        y += image.height * rng.uniform(-0.02, 0.03)


def _water(land: Image.Image, rng: random.Random, palette: Palette, sun_x: float, depth: int) -> Image.Image:
    """Return the lake: the land upside down, rippled, and darker towards the viewer."""
    width = land.width
    seen = min(land.height, round(depth * 1.35))
    mirror = land.crop((0, land.height - seen, width, land.height)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    mirror = mirror.resize((width, depth), Image.Resampling.BILINEAR).filter(ImageFilter.GaussianBlur(width / 900))
    lake = mirror.copy()
    wave = _fractal_line(rng, 0.8, 9)
    for y in range(2, depth, 2):
        near = y / depth
        shift = round((_at(wave, (y * 7 % depth) / depth) - 0.5) * width * 0.03 * (0.15 + near))
        lake.paste(mirror.crop((0, y, width, y + 2)), (shift, y))
    _paste(lake, palette.water, _fade(lake.size, (60, 110, 170, 215)))
    streaks = _stretch(_noise(rng, lake.size, (3, 70), octaves=3), 140, 2.4)
    glint = _mix(_mix(palette.sky[-1], palette.sky[-2], 0.5), palette.water, 0.35)
    _paste(lake, glint, ImageChops.multiply(streaks, _fade(lake.size, (150, 90, 60, 30))))
    _add_glitter(lake, rng, palette, sun_x)
    _paste(lake, _mix(palette.haze, palette.light, 0.3), _fade(lake.size, (100, *(0,) * 30)))
    return lake


def _add_glitter(lake: Image.Image, rng: random.Random, palette: Palette, sun_x: float) -> None:
    """Add the sun's reflection: a path of dashes that widens towards the viewer."""
    mask = Image.new("L", (lake.width * 2, lake.height * 2))
    draw = ImageDraw.Draw(mask)
    for _ in range(300):
        near = rng.random() ** 1.4
        x = 2 * sun_x + rng.gauss(0, mask.width * (0.010 + 0.045 * near))
        half = mask.width * rng.uniform(0.002, 0.013) * (0.4 + near)
        thick = mask.height * rng.uniform(0.002, 0.005) * (0.4 + near)
        level = round(rng.uniform(60, 230) * (1 - 0.55 * near))
        draw.ellipse((x - half, near * mask.height - thick, x + half, near * mask.height + thick), fill=level)
    _paste(lake, palette.light, mask.reduce(2))

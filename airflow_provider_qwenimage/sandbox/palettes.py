"""The colours of the sandbox's landscapes: one palette for each time of day and weather."""

from __future__ import annotations

from dataclasses import dataclass

Colour = tuple[int, int, int]


def _colour(text: str) -> Colour:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)


@dataclass(frozen=True)
class Palette:
    """The colours of a landscape.

    Args:
        sky: Colours from the zenith to the horizon.
        light: The sun or the moon, and its glow.
        cloud: The lit part of clouds.
        haze: Distant ridges fade into this colour.
        near: The nearest ridge.
        water: Reflections fade into this colour towards the viewer.
        clouds: The amount of clouds, 0 to 1.
        stars: The number of stars, 0 to 1.
        aurora: The colour of northern lights, or None.
    """

    sky: tuple[Colour, ...]
    light: Colour
    cloud: Colour
    haze: Colour
    near: Colour
    water: Colour
    clouds: float = 0.5
    stars: float = 0.0
    aurora: Colour | None = None


def _palette(colours: str, *, clouds: float = 0.5, stars: float = 0.0, aurora: str | None = None) -> Palette:
    """Return a palette from nine colours: four for the sky from the top, then light, cloud, haze, near, water."""
    *sky, light, cloud, haze, near, water = (_colour(text) for text in colours.split())
    return Palette(
        sky=tuple(sky),
        light=light,
        cloud=cloud,
        haze=haze,
        near=near,
        water=water,
        clouds=clouds,
        stars=stars,
        aurora=_colour(aurora) if aurora else None,
    )


DUSK = _palette("#1d1b4b #5a2d78 #d2566e #ffb26b #ffe3ad #ff9a8a #cf6a7c #150f2a #241a45", stars=0.25)
MORNING = _palette("#2f4f86 #7f8fc0 #efb9a6 #ffe2b4 #fff3d6 #ffe6d8 #ecc0ab #1e2848 #33456f")
NIGHT = _palette("#050a20 #0d1c46 #274273 #6384ab #f6f2df #8ea6c8 #4d6a96 #040812 #081430", clouds=0.3, stars=1.0)
GOLD = _palette("#4f7486 #a3b5ac #f1d798 #fff0c2 #fff8dc #fff3da #e6c792 #33201a #54563f")
NOON = _palette("#1f64ad #5fa6d8 #afd8ee #eef7f3 #fffdf0 #ffffff #b4d2e0 #163637 #1d5068", clouds=0.7)
AURORA = _palette(
    "#030c1c #08203c #124a5a #4b9a8e #eef6e6 #7fb5ae #2f6f76 #020a11 #05202b",
    clouds=0.15,
    stars=0.8,
    aurora="#74ffb4",
)
ROSE = _palette("#77709f #bd9cbb #f2cbc6 #fdf0e2 #fffaf0 #fff0ec #e2bec6 #352a45 #6a5b82")
EMBER = _palette("#2a0f20 #7d2030 #dc5a30 #ffc858 #fff0b8 #ff8a4a #c75c40 #18090f #3d1320", clouds=0.8)
RAIN = _palette("#25363f #45636c #839e9c #d3dbcd #f7f7e8 #dfe6dc #95aaa8 #0f1b20 #22383f", clouds=1.0)

PALETTES = (DUSK, MORNING, NIGHT, GOLD, NOON, AURORA, ROSE, EMBER, RAIN)

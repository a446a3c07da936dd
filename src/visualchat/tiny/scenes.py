"""The tiny world's images: one to four coloured shapes in a 2x2 grid, drawn with noise, and their captions.

A `Scene` says all there is to say about an image: what stands where, and the seed of its looks. `draw` makes pixels of
it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (215, 45, 45),
    "green": (45, 165, 70),
    "blue": (50, 85, 215),
    "yellow": (235, 195, 40),
    "purple": (150, 60, 180),
    "black": (35, 35, 35),
}
"""Colour names and their mean RGB values."""
SHAPES = ("circle", "square", "triangle", "star", "cross")
CELLS = ("top-left", "top-right", "bottom-left", "bottom-right")
"""The four cells in raster order; cell k lies in row k // 2 and column k % 2."""

COMPOSITIONS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
HELD_OUT = (("red", "star"), ("blue", "triangle"), ("green", "cross"), ("purple", "circle"))
"""Pairs of colour and shape that no training image shows and no training question names."""
SEEN = tuple(pair for pair in COMPOSITIONS if pair not in HELD_OUT)

PICTURE_SIZE = 64
PATCH_SIZE = 16
GRID = PICTURE_SIZE // PATCH_SIZE
PATCHES = GRID * GRID
CELL_OF_PATCH = tuple(2 * (p // GRID // 2) + (p % GRID) // 2 for p in range(PATCHES))
"""The cell in which each of an image's patches lies, patches in raster order."""

_CANVAS = 2 * PICTURE_SIZE  # drawn at twice the size, then reduced
_COUNT_WEIGHTS = (25, 37, 28, 10)  # how often an image holds 1, 2, 3, 4 shapes


@dataclass(frozen=True)
class Shape:
    """One coloured shape; `cell` is an index into `CELLS`."""

    colour: str
    shape: str
    cell: int

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What an image shows.

    Attributes:
        shapes: One to four shapes in raster order, each in a cell of its own.
        look: Seed of everything that has no name: places within the cells, sizes, tints, background and noise.

    Raises:
        ValueError: There are no shapes, or they do not stand in distinct cells in raster order.
    """

    shapes: tuple[Shape, ...]
    look: int = 0

    def __post_init__(self) -> None:
        cells = [shape.cell for shape in self.shapes]
        if not cells or cells != sorted(set(cells)) or not set(cells) <= set(range(len(CELLS))):
            raise ValueError(f"a scene needs 1 to 4 shapes in distinct cells 0..3 in raster order, found cells {cells}")

    @property
    def caption(self) -> str:
        """The whole content in words: "a red circle top-left, a blue square bottom-right"."""
        return ", ".join(f"a {shape.name} {CELLS[shape.cell]}" for shape in self.shapes)


def sample_scene(
    rng: random.Random,
    pairs: Sequence[tuple[str, str]] = COMPOSITIONS,
    required: Iterable[tuple[str, str]] = (),
) -> Scene:
    """A random scene whose shapes come from `pairs`; those in `required` (at most four) are sure to be among them."""
    chosen = list(required)
    count = max(len(chosen), rng.choices((1, 2, 3, 4), _COUNT_WEIGHTS)[0])
    chosen += rng.choices(pairs, k=count - len(chosen))
    rng.shuffle(chosen)
    cells = sorted(rng.sample(range(len(CELLS)), count))
    shapes = tuple(Shape(colour, shape, cell) for (colour, shape), cell in zip(chosen, cells, strict=True))
    return Scene(shapes, look=rng.getrandbits(48))


def random_scene(seed: int) -> Scene:
    """The scene of this seed, out of all compositions: for chats about new images."""
    return sample_scene(random.Random(f"random scene {seed}"))


def draw(scene: Scene) -> Image.Image:
    """The image of a scene: RGB, 64x64 pixels, its caption in `.info["caption"]`. Equal scenes give equal pixels."""
    rng = np.random.default_rng(scene.look)
    ground = rng.uniform(190, 245) + rng.uniform(-12, 12, 3)
    image = Image.new("RGB", (_CANVAS, _CANVAS), _rgb(ground))
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        _draw_shape(pen, shape, rng)
    clean = np.asarray(image.reduce(2), dtype=np.float64)
    pixels = clean + rng.normal(0, rng.uniform(3, 9), clean.shape)
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    picture.info["caption"] = scene.caption
    return picture


def _draw_shape(pen: ImageDraw.ImageDraw, shape: Shape, rng: np.random.Generator) -> None:
    """Draw one shape inside its cell, with random size, place, tilt and tint."""
    side = _CANVAS // 2
    radius = rng.uniform(0.30, 0.44) * side
    room = side / 2 - radius - 1
    x = (shape.cell % 2 + 0.5) * side + rng.uniform(-room, room)
    y = (shape.cell // 2 + 0.5) * side + rng.uniform(-room, room)
    fill = _rgb(np.array(COLOURS[shape.colour]) + rng.uniform(-22, 22, 3))
    tilt = rng.uniform(-0.25, 0.25)
    if shape.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        pen.polygon([(x + radius * u, y + radius * v) for u, v in _outline(shape.shape, tilt)], fill=fill)


def _outline(shape: str, tilt: float) -> list[tuple[float, float]]:
    """Corner points of a shape in the unit circle, turned by `tilt` radians; y points down."""
    up = -math.pi / 2 + tilt
    if shape == "square":
        return [_polar(1, up + math.pi / 4 + k * math.pi / 2) for k in range(4)]
    if shape == "triangle":
        return [_polar(1, up + k * 2 * math.pi / 3) for k in range(3)]
    if shape == "star":
        return [_polar(1 if k % 2 == 0 else 0.42, up + k * math.pi / 5) for k in range(10)]
    if shape == "cross":
        near, far = 0.30, math.atan2(0.30, 0.95)
        inner = [_polar(near * math.sqrt(2), up + math.pi / 4 + k * math.pi / 2) for k in range(4)]
        arms = [(_polar(1, up + k * math.pi / 2 - far), _polar(1, up + k * math.pi / 2 + far)) for k in range(4)]
        return [point for arm, corner in zip(arms, inner, strict=True) for point in (*arm, corner)]
    raise ValueError(f"no drawing for shape {shape!r}; known: {', '.join(SHAPES)}")


def _polar(radius: float, angle: float) -> tuple[float, float]:
    return radius * math.cos(angle), radius * math.sin(angle)


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    r, g, b = np.clip(np.round(values), 0, 255).astype(int).tolist()
    return r, g, b

"""Scenes: sampling, captions and drawing."""

import random

import numpy as np
import pytest

from visualchat.tiny.scenes import (
    CELLS,
    COLOURS,
    COMPOSITIONS,
    HELD_OUT,
    PICTURE_SIZE,
    SEEN,
    SHAPES,
    Scene,
    Shape,
    draw,
    random_scene,
    sample_scene,
)


def test_compositions_split_into_seen_and_held_out():
    assert len(COMPOSITIONS) == len(COLOURS) * len(SHAPES) == 30
    assert set(SEEN) | set(HELD_OUT) == set(COMPOSITIONS)
    assert not set(SEEN) & set(HELD_OUT)
    # every colour and every shape is still seen, in other company
    assert {colour for colour, _ in SEEN} == set(COLOURS)
    assert {shape for _, shape in SEEN} == set(SHAPES)


def test_caption_is_in_raster_order():
    scene = Scene((Shape("red", "circle", 0), Shape("blue", "square", 3)))
    assert scene.caption == "a red circle top-left, a blue square bottom-right"


@pytest.mark.parametrize("cells", [(), (1, 0), (2, 2), (4,)])
def test_a_scene_needs_distinct_cells_in_raster_order(cells):
    with pytest.raises(ValueError, match="raster order"):
        Scene(tuple(Shape("red", "circle", cell) for cell in cells))


def test_sampling_keeps_to_its_pairs_and_requirements():
    rng = random.Random(0)
    counts = set()
    for _ in range(300):
        scene = sample_scene(rng, SEEN, [("red", "star")])
        pairs = [shape.pair for shape in scene.shapes]
        assert ("red", "star") in pairs
        pairs.remove(("red", "star"))
        assert set(pairs) <= set(SEEN)
        counts.add(len(scene.shapes))
    assert counts == {1, 2, 3, 4}


def test_drawing_depends_on_the_scene_alone():
    scene = random_scene(7)
    assert scene == random_scene(7) != random_scene(8)
    first, second = draw(scene), draw(scene)
    assert first.tobytes() == second.tobytes()
    assert (first.size, first.mode) == ((PICTURE_SIZE, PICTURE_SIZE), "RGB")
    assert first.info["caption"] == scene.caption


def test_no_two_pictures_are_alike():
    shapes = (Shape("red", "circle", 0),)
    pictures = {draw(Scene(shapes, look)).tobytes() for look in range(200)}
    assert len(pictures) == 200


@pytest.mark.parametrize("cell", range(len(CELLS)))
@pytest.mark.parametrize("pair", COMPOSITIONS, ids=" ".join)
def test_a_shape_stays_in_its_cell_and_has_its_colour(pair, cell):
    for look in range(5):
        pixels = np.asarray(draw(Scene((Shape(*pair, cell),), look)), dtype=float)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        covered = np.abs(pixels - ground).max(axis=-1) > 60
        half = PICTURE_SIZE // 2
        inside = np.zeros_like(covered)
        row, column = divmod(cell, 2)
        inside[row * half : (row + 1) * half, column * half : (column + 1) * half] = True
        assert covered.sum() > 60
        assert not (covered & ~inside).any()
        middle = np.median(pixels[covered], axis=0)
        nearest = min(COLOURS, key=lambda name: float(np.square(middle - np.array(COLOURS[name])).sum()))
        assert nearest == pair[0]

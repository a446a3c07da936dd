"""Images drawn in a terminal's characters."""

import numpy as np
import pytest
from PIL import Image

from visualchat.cli.image_in_blocks import image_in_blocks


def picture(seed=0, width=16, height=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("width", "height", "lines"),
    [(64, 64, 16), (64, 32, 8), (32, 64, 32), (1000, 1, 1), (100, 99, 16), (99, 100, 16)],
)
def test_a_picture_is_drawn_in_blocks_of_two_pixels(width, height, lines):
    text = image_in_blocks(picture(0, width, height))
    assert text.plain == ("▀" * 32 + "\n") * lines


def test_blocks_have_the_colours_of_the_pixels():
    image = picture(0, 4, 6)
    text = image_in_blocks(image, columns=4)
    assert text.plain == "▀▀▀▀\n" * 3
    found = [(tuple(span.style.color.triplet), tuple(span.style.bgcolor.triplet)) for span in text.spans]
    expected = [(image.getpixel((x, y)), image.getpixel((x, y + 1))) for y in (0, 2, 4) for x in range(4)]
    assert found == expected

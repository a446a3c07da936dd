"""A token's patch is the part of the image that the encoder sees there, to the pixel."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from visualchat.model.vision.patches import patch_grid
from visualchat.model.vision.pixels import scaled

NEAREST = {"resample": Image.Resampling.NEAREST}  # so that what is painted stays where it is
CASES = {
    "cut out of a wide image": (CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16, **NEAREST), (60, 48)),
    "cut out of a tall image": (CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=16, **NEAREST), (60, 84)),
    "squeezed": (SiglipImageProcessorPil(size={"height": 16, "width": 16}, **NEAREST), (32, 80)),
    "with a rest that is of no patch": (SiglipImageProcessorPil(size={"height": 18, "width": 22}, **NEAREST), (66, 54)),
    "with a class token": (SiglipImageProcessorPil(size={"height": 8, "width": 8}, **NEAREST), (16, 16)),
}


def configured(tokens, patch=4):
    return SimpleNamespace(
        vision_config=SimpleNamespace(patch_size=patch), projector_type="linear", image_seq_length=tokens
    )


@pytest.mark.parametrize("name", CASES)
def test_a_patch_is_where_it_is_painted(name):
    processor, size = CASES[name]
    plain = Image.new("RGB", size)
    before = scaled(processor, plain)
    rows, columns = before.shape[1] // 4, before.shape[2] // 4
    tokens = rows * columns + (name == "with a class token")
    grid = patch_grid(configured(tokens), processor, plain)
    assert (grid.rows, grid.columns, grid.first) == (rows, columns, tokens - rows * columns)
    left, top, right, bottom = (share * side for share, side in zip(grid.box, size * 2, strict=True))
    width, height = (right - left) / columns, (bottom - top) / rows
    for row in range(rows):
        for column in range(columns):
            painted = plain.copy()
            x, y = left + column * width, top + row * height
            assert all(abs(place - round(place)) < 1e-9 for place in (x, y, width, height))
            painted.paste("white", (round(x), round(y), round(x + width), round(y + height)))
            changed = np.argwhere((scaled(processor, painted) != before).numpy().all(0))
            expected = np.add(np.argwhere(np.ones((4, 4))), (4 * row, 4 * column))
            np.testing.assert_array_equal(changed, expected)


def test_tokens_that_are_of_no_patch_are_refused():
    image, processor = Image.new("RGB", (16, 16)), CASES["squeezed"][0]
    with pytest.raises(ValueError, match="one for each of 4 x 4 patches, perhaps one more before them, found 9"):
        patch_grid(configured(9), processor, image)
    with pytest.raises(ValueError, match="does not tell the size of its patches"):
        patch_grid(configured(16, patch=None), processor, image)
    padding = SiglipImageProcessorPil(size={"height": 16, "width": 16}, do_pad=True)
    padding.do_pad = True
    with pytest.raises(ValueError, match="has its own way of scaling images"):
        patch_grid(configured(16), padding, image)

"""Pictures are prepared bit for bit as transformers' own processors prepare them, one at a time."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from visualchat.model.vision.pixels import normalised, scaled

PROCESSORS = {
    "CLIP": CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 36, "width": 36}),
    "CLIP, a crop within": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 35, "width": 31}),
    "CLIP, a crop beyond": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size={"height": 36, "width": 36}),
    "Qwen-VL": CLIPImageProcessorPil(size={"height": 28, "width": 28}, do_center_crop=False),
    "SigLIP": SiglipImageProcessorPil(size={"height": 32, "width": 32}),
    "another scale": CLIPImageProcessorPil(
        rescale_factor=1 / 127, size={"height": 9, "width": 9}, do_center_crop=False
    ),
    "raw": CLIPImageProcessorPil(do_normalize=False, size={"height": 28, "width": 28}, do_center_crop=False),
}
SIZES = ((64, 48), (48, 64), (33, 33), (97, 20), (30, 211), (36, 36))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_transformers_to_the_last_bit(name):
    processor, pictures = PROCESSORS[name], [noise(*size) for size in SIZES]
    expected = processor(images=pictures, return_tensors="pt")["pixel_values"]
    found = normalised(processor, [scaled(processor, picture) for picture in pictures])
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_every_value_of_a_pixel_is_the_one_of_transformers():
    values = Image.fromarray(np.arange(3 * 256, dtype=np.uint8).reshape(16, 16, 3))
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    expected = processor(images=[values], return_tensors="pt")["pixel_values"]
    assert len(expected.unique()) == 3 * 256
    assert torch.equal(normalised(processor, [scaled(processor, values)]), expected)


def test_most_are_kept_as_bytes():
    """Which is what makes them quick; where a step is the processor's own, they are left to it."""
    assert scaled(PROCESSORS["CLIP"], noise(64, 48)).dtype == torch.uint8
    assert scaled(PROCESSORS["raw"], noise(64, 48)).dtype == torch.float32

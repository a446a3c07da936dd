"""Images -> `pixel_values`: scaled by PIL as transformers does, one at a time, and normalised by torch, all together.

Bit for bit what transformers' PIL processors give, which normalise image by image in numpy. Whatever else an image
processor does (its own steps, padding, torchvision) is left to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_backends import PilBackend

_STEPS = ("resize", "center_crop", "rescale", "normalize", "_preprocess", "convert_to_rgb", "process_image")


@dataclass(frozen=True)
class Framing:
    """How an image gets to the encoder's size.

    Attributes:
        size: Width and height that it is scaled to.
        box: What is cut out of that: left, top, right and bottom, in its pixels.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]


def framing(processor: Any, image: Image.Image) -> Framing | None:
    """The framing of an RGB image; None where only the processor itself knows its steps."""
    size = _target(processor, image)
    if size is None:
        return None
    if not processor.do_center_crop:
        return Framing(size, (0, 0, *size))
    width, height = processor.crop_size["width"], processor.crop_size["height"]
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return Framing(size, (left, top, left + width, top + height))


def scaled(processor: Any, image: Image.Image) -> Tensor:
    """An RGB image at the encoder's size: uint8 (3, height, width), or already normalised where only it knows how."""
    frame = framing(processor, image)
    if frame is None:
        values: Tensor = processor(images=[image], return_tensors="pt")["pixel_values"][0]
        return values
    if processor.do_resize:
        image = image.resize(frame.size, processor.resample)
    if processor.do_center_crop:
        image = image.crop(frame.box)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def normalised(processor: Any, images: Sequence[Tensor]) -> Tensor:
    """`pixel_values` (N, 3, height, width) of what `scaled` gave, at least one."""
    whole = torch.stack(list(images)) if len({image.dtype for image in images}) == 1 else None
    if whole is None:  # some images needed the processor itself
        return torch.cat([normalised(processor, [image]) for image in images])
    if whole.dtype != torch.uint8:
        return whole
    mean, std = (torch.tensor(list(values)).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    if processor.rescale_factor == 1 / 255:  # a division of such numbers rounds alike in half the bits
        return whole.float().div_(255).sub_(mean).div_(std)
    return (whole.double() * processor.rescale_factor).float().sub_(mean).div_(std)


def _target(processor: Any, image: Image.Image) -> tuple[int, int] | None:
    """Width and height to which an image is scaled; None where the processor takes other steps."""
    kind: Any = type(processor)
    if not issubclass(kind, PilBackend) or any(getattr(kind, n) is not getattr(PilBackend, n) for n in _STEPS):
        return None
    if not (processor.do_rescale and processor.do_normalize and image.mode == "RGB") or getattr(
        processor, "do_pad", None
    ):
        return None
    width, height = image.size
    if processor.do_resize:
        size = dict(processor.size)
        given = {name for name, value in size.items() if value}
        if given == {"shortest_edge"}:
            short, long = min(width, height), max(width, height)
            other = int(size["shortest_edge"] * long / short)
            width, height = (size["shortest_edge"], other) if width <= height else (other, size["shortest_edge"])
        elif given == {"height", "width"}:
            width, height = size["width"], size["height"]
        else:
            return None
    if processor.do_center_crop:
        crop = dict(processor.crop_size)
        if not crop.get("height") or not crop.get("width") or crop["height"] > height or crop["width"] > width:
            return None
    return width, height

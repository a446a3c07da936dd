"""Which part of an image each of its tokens is of, where the encoder gives one token a patch.

Patches are squares of the image as the encoder sees it: scaled, cut out, in row-major order. At the right and at the
bottom up to a patch's width less a pixel is of no patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.vision.configuration_qwen_vl import QwenVLVisionConfig
from visualchat.model.vision.pixels import framing


@dataclass(frozen=True)
class PatchGrid:
    """Where an image's tokens lie in it.

    Attributes:
        rows: Of patches.
        columns: Likewise.
        first: The first patch's token: 1 where a class token, which is of the whole image, stands before it, else 0.
        box: What all patches cover: left, top, right and bottom, as shares of the image's width and height.
    """

    rows: int
    columns: int
    first: int
    box: tuple[float, float, float, float]


def why_no_patches(config: VisualChatConfig) -> str | None:
    """Why tokens of a model's images are not of one patch each; None where they are."""
    if isinstance(config.vision_config, QwenVLVisionConfig):
        return "Qwen-VL's encoder resamples patches into tokens that each read the whole image"
    if config.projector_type == "perceiver":
        return "the perceiver's tokens each read the whole image"
    if not isinstance(getattr(config.vision_config, "patch_size", None), int):
        return f"the encoder ({type(config.vision_config).__name__}) does not tell the size of its patches"
    return None


def patch_grid(config: VisualChatConfig, image_processor: Any, image: Image.Image) -> PatchGrid:
    """Where the tokens of a decoded image lie in it.

    Raises:
        ValueError: The tokens are not of one patch each, or how the image is scaled is not known.
    """
    why = why_no_patches(config)
    frame = framing(image_processor, image)
    if why is None and frame is None:
        why = f"{type(image_processor).__name__} has its own way of scaling images"
    if why is not None:
        raise ValueError(f"tokens cannot be drawn over an image: {why}")
    assert frame is not None
    patch: int = config.vision_config.patch_size  # type: ignore[union-attr]
    left, top, right, bottom = frame.box
    columns, rows = (right - left) // patch, (bottom - top) // patch
    first = config.image_seq_length - rows * columns
    if first not in (0, 1):
        raise ValueError(
            f"tokens cannot be drawn over an image: expected one for each of {rows} x {columns} patches, perhaps one "
            f"more before them, found {config.image_seq_length}"
        )
    width, height = frame.size
    box = left / width, top / height, (left + columns * patch) / width, (top + rows * patch) / height
    return PatchGrid(rows, columns, first, box)

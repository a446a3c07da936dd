"""What people hand over as an image -> `ImageInput`: paths, data URIs, base64, arrays, tensors; nothing is fetched."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import torch
from PIL import Image

from visualchat.images import ArchivedImage, ImageInput

_BEGINNINGS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
"""How encoded images begin, to know raw base64 from a path."""


def is_image_input(value: Any) -> bool:
    """Whether a value is one image, not several."""
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim < 4
    return isinstance(value, Image.Image | Path | bytes | ArchivedImage | str)


def image_input(value: Any, name: str) -> ImageInput:
    """One image, whatever it is given as.

    Args:
        value: An image, its encoded bytes, a path, a `file:` or `data:` address, raw base64, or an array or tensor
            (height, width), (height, width, channels) or (channels, height, width), of whole numbers from 0 to 255 or
            fractions from 0 to 1.
        name: What error messages call it.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(value, Image.Image | Path | bytes | ArchivedImage):
        return value
    if isinstance(value, str):
        return _from_text(value, name)
    if isinstance(value, torch.Tensor):
        return _from_array(
            value.detach().cpu().float().numpy() if value.is_floating_point() else value.cpu().numpy(), name
        )
    if isinstance(value, np.ndarray):
        return _from_array(value, name)
    raise ValueError(
        f"{name}: cannot read an image from {type(value).__name__}, expected a PIL image, a path, bytes, a data URI, "
        "base64, a numpy array or a torch tensor"
    )


def _from_text(text: str, name: str) -> ImageInput:
    if text.startswith("data:"):
        head, _, encoded = text.partition(",")
        if not (head.startswith("data:image/") and head.endswith(";base64")):
            raise ValueError(f"{name}: expected data:image/...;base64, found {head!r:.100}")
        return decode_base64(encoded, name)
    if text.startswith("file://"):
        return Path(unquote(text.removeprefix("file://")))
    scheme, separator, _ = text.partition("://")
    if separator and scheme.isalnum():
        raise ValueError(f"{name}: nothing is fetched from {text!r:.100}; download it and give its path")
    try:
        if Path(text).is_file():
            return Path(text)
        decoded = base64.b64decode(text, validate=True)
    except (OSError, ValueError):  # too long for a path; no base64
        decoded = b""
    return decoded if decoded.startswith(_BEGINNINGS) else Path(text)


def decode_base64(text: str, name: str) -> bytes:
    """The bytes that base64 stands for.

    Raises:
        ValueError: It is not valid.
    """
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one, too
        raise ValueError(f"{name}: not valid base64: {error}") from error


def _from_array(pixels: np.ndarray, name: str) -> Image.Image:
    shape = pixels.shape
    if pixels.ndim == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"{name}: expected (height, width), (height, width, channels) or (channels, height, width) with 1, 3 or 4 "
            f"channels, found shape {shape}"
        )
    fractions = np.issubdtype(pixels.dtype, np.floating)
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    if not (low >= 0 and high <= (1 if fractions else 255)):  # NaN is refused, too
        expected = "fractions from 0 to 1" if fractions else "whole numbers from 0 to 255"
        raise ValueError(f"{name}: expected {expected}, found {pixels.dtype} from {low:g} to {high:g}")
    whole = ((pixels * 255).round() if fractions else pixels).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(whole.squeeze(2) if whole.ndim == 3 and whole.shape[2] == 1 else whole))

"""A folder of frozen vision features: what an encoder made of each image, kept between epochs and between runs.

One safetensors file an image, found by the image's pixels and by all that its features depend on otherwise. Files
appear whole or not at all, so any number of processes may read and write one folder, and be killed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from visualchat.files import whole_file

log = logging.getLogger(__name__)


def image_key(image: Image.Image) -> str:
    """A name (hex) for a decoded image: equal exactly where mode, size and every pixel are."""
    header = f"{image.mode} {image.width}x{image.height}\n"
    return hashlib.sha256(header.encode() + image.tobytes()).hexdigest()


@dataclass(frozen=True)
class Lookup:
    """What a store knows of N images.

    Attributes:
        features: (N, P, D), 0 where an image is unknown; None where all are.
        keys: For each image its key if it is unknown, else an empty string.
        damaged: Files that could not be trusted; their images count as unknown.
    """

    features: Tensor | None
    keys: list[str]
    damaged: int


class FeatureStore:
    """The features that one encoder makes, under one folder that may hold those of others too.

    Args:
        folder: Made when something is first written.
        maker: All that features depend on beside the image (encoder, preprocessing, precision), in words or hashes.
    """

    def __init__(self, folder: str | Path, maker: Mapping[str, str]) -> None:
        self.description = json.dumps(dict(maker), indent=1, sort_keys=True)
        self.maker = hashlib.sha256(self.description.encode()).hexdigest()
        self.folder = Path(folder) / self.maker[:32]

    def path(self, key: str) -> Path:
        """Where the features of the image of that key are, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def lookup(self, pictures: Sequence[str]) -> Lookup:
        """The features of the images of those keys, as far as known; a damaged file is named in the log."""
        keys = [*pictures]
        known: dict[int, Tensor] = {}
        damaged = 0
        for index, key in enumerate(keys):
            try:
                features = self.read(key)
            except ValueError as error:
                log.warning("%s; the image is encoded again", error)
                damaged += 1
                continue
            if features is not None:
                known[index], keys[index] = features, ""
        if not known:
            return Lookup(None, keys, damaged)
        some = next(iter(known.values()))
        features_of_all = some.new_zeros((len(keys), *some.shape))
        for index, features in known.items():
            features_of_all[index] = features
        return Lookup(features_of_all, keys, damaged)

    def read(self, key: str) -> Tensor | None:
        """The features (P, D) of the image of that key, as they were written; None where they are not there.

        Raises:
            ValueError: The file is cut, altered, or of another image or encoder.
        """
        path = self.path(key)
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                features: Tensor = file.get_tensor("features")
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"feature file {str(path)!r} cannot be read: {error}") from error
        expected = self._notes(key, features)
        if notes != expected:
            odd = ", ".join(f"{name} is {notes.get(name)}, expected {expected[name]}" for name in expected)
            raise ValueError(f"feature file {str(path)!r} does not hold what its name says: {odd}")
        return features

    def write(self, key: str, features: Tensor) -> None:
        """Keep the features (P, D) of the image of that key, bit for bit.

        Raises:
            OSError: The folder cannot be written to, or the disk is full.
        """
        path = self.path(key)
        if not path.parent.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.folder / "about.json", synced=False) as draft:
                draft.write_text(self.description)
        features = features.detach().cpu().contiguous()
        with whole_file(path, synced=False) as draft:  # `load` checks the sum
            draft.write_bytes(save({"features": features}, metadata=self._notes(key, features)))

    def _notes(self, key: str, features: Tensor) -> dict[str, str]:
        """What a file says of itself."""
        checksum = zlib.crc32(features.contiguous().flatten().view(torch.uint8).numpy().data)
        return {"picture": key, "maker": self.maker, "crc32": f"{checksum:08x}"}

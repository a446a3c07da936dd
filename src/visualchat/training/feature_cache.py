"""The cache of frozen vision features in training: encodes the images that are not in the store, and keeps them.

The datamodule's processes look images up (`visualchat.images.feature_store`); what they did not find arrives as
`pixel_values`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import PIL
import torch
import transformers

from visualchat.images.feature_store import FeatureStore
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.fingerprint import weights_fingerprint
from visualchat.model.processing_visualchat import VisualChatProcessor
from visualchat.model.sharding import is_split_model

log = logging.getLogger(__name__)


def open_store(
    folder: str | Path, model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, precision: str
) -> FeatureStore:
    """The store for what this model's frozen encoder makes of this processor's images.

    Args:
        folder: Of the cache.
        model: Its encoder makes the features.
        processor: Prepares the images.
        precision: The trainer's.

    Raises:
        ValueError: Something in the encoder trains, or it is sharded.
    """
    tower = model.vision_tower
    if training := [name for name, parameter in tower.named_parameters() if parameter.requires_grad]:
        raise ValueError(
            f"data.feature_cache keeps what a frozen vision encoder makes, but {len(training)} of its parameters train "
            f"(the first is {training[0]}); set data.feature_cache=null or choose what trains without the encoder"
        )
    if is_split_model(tower):
        raise ValueError(
            "data.feature_cache needs the whole vision encoder on every rank, found it sharded: choose another "
            "trainer/strategy (auto, ddp, zero1, zero2), or data.feature_cache=null"
        )
    architecture = tower.config.to_dict()
    architecture.pop("_name_or_path", None)
    prepared = json.dumps(processor.image_processor.to_dict(), sort_keys=True, default=str)
    maker = {
        "encoder": type(tower).__name__,
        "weights": weights_fingerprint(tower),
        "architecture": json.dumps(architecture, sort_keys=True, default=str),
        "layer": str(model.config.vision_feature_layer),
        "strategy": model.config.vision_feature_select_strategy,
        "precision": f"{precision}, {model.dtype}",
        "preprocessing": f"{type(processor.image_processor).__name__} {prepared}",
        "versions": f"transformers {transformers.__version__}, pillow {PIL.__version__}",
    }
    return FeatureStore(folder, maker)


class FeatureFiller:
    """Completes batches whose images were looked up; writes what it encodes.

    Args:
        store: Where features are kept. When it cannot be written to (a full disk), that is logged once and training
            continues.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.writing = True

    def complete(self, model: VisualChatForConditionalGeneration, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with `vision_features` of all its images instead of `pixel_values` of the unknown ones."""
        if "feature_keys" not in batch:
            return batch
        batch = dict(batch)
        keys, known = batch.pop("feature_keys"), batch.pop("vision_features", None)
        pixels = batch.pop("pixel_values", None)
        if pixels is not None:
            model.vision_tower.eval()  # a feature must be the same every time
            with torch.no_grad():
                encoded = model.vision_features(pixels)
            missing = [index for index, key in enumerate(keys) if key]
            if known is None:
                known = encoded
            else:
                known = known.to(encoded.dtype)
                known[missing] = encoded
            self._keep([keys[index] for index in missing], encoded.cpu())
        return {**batch, "vision_features": known}

    def _keep(self, keys: list[str], encoded: torch.Tensor) -> None:
        if not self.writing:
            return
        try:
            for key, features in zip(keys, encoded, strict=True):
                self.store.write(key, features)
        except OSError as error:
            self.writing = False
            log.warning("features are no longer kept in %s: %s", self.store.folder, error)

"""Any vision encoder by its path: configuration, weights and image processor, the one place that knows which is which.

A path is a folder or Hub name of an encoder of transformers, of a model that contains one (CLIP, SigLIP), of a Qwen-VL
or Qwen-VL-Chat checkpoint, or the file of Qwen-VL's encoder alone.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.utils import IMAGE_PROCESSOR_NAME, cached_file

from visualchat.model.remote_code import load_without_code
from visualchat.model.vision.checkpoint import read_encoder
from visualchat.model.vision.configuration_qwen_vl import QwenVLVisionConfig
from visualchat.model.vision.modeling_qwen_vl import QwenVLVisionModel, expected_shapes


def vision_config(path: str | Path) -> PreTrainedConfig:
    """The configuration of the encoder at a path; the published sizes for a file of Qwen-VL's encoder alone.

    Raises:
        ValueError: There is no vision encoder.
        OSError: There is nothing (transformers' own error).
    """
    return _config(path)[0]


def _config(path: str | Path) -> tuple[PreTrainedConfig, bool]:
    """The encoder's configuration, and whether its weights are in Qwen-VL's own layout."""
    if Path(path).is_file():
        return QwenVLVisionConfig(), True
    raw, _ = PreTrainedConfig.get_config_dict(path)
    if raw.get("model_type") == "qwen":  # never AutoConfig, which would ask to run the checkpoint's own code
        if not isinstance(raw.get("visual"), dict):
            raise ValueError(f"{path} is a Qwen without a vision encoder: its config.json has no dict `visual`")
        return QwenVLVisionConfig.from_qwen(raw["visual"]), True
    config = load_without_code(AutoConfig.from_pretrained, path)
    config = getattr(config, "vision_config", config)
    if not hasattr(config, "image_size"):
        raise ValueError(f"{path} holds no vision encoder: its configuration is a {config.model_type!r}")
    return config, False


def load_vision_tower(path: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """The encoder at a path with its weights, in evaluation mode.

    Args:
        path: As in this module's description.
        dtype: Of all weights.

    Raises:
        ValueError: There is no vision encoder, or its weights are damaged or not complete.
    """
    config, is_qwen_layout = _config(path)
    if is_qwen_layout:
        assert isinstance(config, QwenVLVisionConfig)
        qwen_vl = assign_weights(config, read_encoder(path, expected_shapes(config)), dtype)
        qwen_vl.config.name_or_path = str(path)
        return qwen_vl
    tower, report = load_without_code(
        AutoModel.from_pretrained, path, config=config, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(
            f"{path}: the weights lack {', '.join(missing[:4])} ({len(missing)} names of the vision encoder)"
        )
    return tower


def assign_weights(config: QwenVLVisionConfig, state: dict[str, Tensor], dtype: torch.dtype) -> QwenVLVisionModel:
    """The encoder with the weights of `state`, which are checked to be complete.

    transformers builds it without memory and assigns the weights; under ZeRO-3 it partitions them.
    """
    return QwenVLVisionModel.from_pretrained(None, config=config, state_dict=state, dtype=dtype)


def load_image_processor(path: str | Path) -> BaseImageProcessor:
    """The image processor of the encoder at a path."""
    config, is_qwen_layout = _config(path)
    if is_qwen_layout or (isinstance(config, QwenVLVisionConfig) and not _has_image_processor(path)):
        return qwen_vl_image_processor(config)
    image_processor: BaseImageProcessor = load_without_code(AutoImageProcessor.from_pretrained, path)
    return image_processor


def qwen_vl_image_processor(config: PreTrainedConfig) -> CLIPImageProcessorPil:
    """Qwen-VL's preprocessing: CLIP's mean and deviation, the whole image bicubically to a square, without a crop."""
    size = {"height": config.image_size, "width": config.image_size}
    return CLIPImageProcessorPil(size=size, do_center_crop=False)


def _has_image_processor(path: str | Path) -> bool:
    if Path(path).is_dir():
        return (Path(path) / IMAGE_PROCESSOR_NAME).is_file()
    return cached_file(str(path), IMAGE_PROCESSOR_NAME, _raise_exceptions_for_missing_entries=False) is not None

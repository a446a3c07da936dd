"""Vision encoders: any of transformers, and the one inside Qwen-VL, known to the Auto classes."""

from transformers import AutoConfig, AutoModel

from visualchat.model.vision.configuration_qwen_vl import QwenVLVisionConfig
from visualchat.model.vision.loading import assign_weights, load_image_processor, load_vision_tower, vision_config
from visualchat.model.vision.modeling_qwen_vl import QwenVLVisionModel

AutoConfig.register(QwenVLVisionConfig.model_type, QwenVLVisionConfig, exist_ok=True)
AutoModel.register(QwenVLVisionConfig, QwenVLVisionModel, exist_ok=True)

__all__ = [
    "QwenVLVisionConfig",
    "QwenVLVisionModel",
    "assign_weights",
    "load_image_processor",
    "load_vision_tower",
    "vision_config",
]

"""The model as a Hugging Face triple: configuration, processing, modeling; known to transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

from visualchat.model.base_model import VisualChatModel
from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.modeling_visualchat import VisualChatForConditionalGeneration
from visualchat.model.processing_visualchat import VisualChatProcessor

AutoConfig.register(VisualChatConfig.model_type, VisualChatConfig, exist_ok=True)
AutoModel.register(VisualChatConfig, VisualChatModel, exist_ok=True)
AutoModelForImageTextToText.register(VisualChatConfig, VisualChatForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(VisualChatConfig, VisualChatForConditionalGeneration, exist_ok=True)
AutoProcessor.register(VisualChatConfig, VisualChatProcessor, exist_ok=True)

__all__ = ["VisualChatConfig", "VisualChatForConditionalGeneration", "VisualChatModel", "VisualChatProcessor"]

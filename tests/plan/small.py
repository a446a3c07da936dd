"""A small model for the planner's tests."""

import torch
from transformers import LlamaConfig

from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.trainable import set_trainable

VISION = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "vocab_size": 300}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def build(dtype=torch.float32, kind="causal"):
    """A small model whose language layers are large enough that what counts per token counts most."""
    torch.manual_seed(0)
    text = LlamaConfig(**TEXT, **HEADS, tie_word_embeddings=False).to_dict()
    config = VisualChatConfig(
        vision_config=VISION,
        text_config=text,
        attention_kind=kind,
        image_seq_length=4,
        vision_feature_select_strategy="default",
    )
    model = VisualChatForConditionalGeneration(config).to(dtype)
    set_trainable(model)
    return model.train()

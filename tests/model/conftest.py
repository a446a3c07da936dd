"""Random models deep enough that attention by depth differs: nothing reads the last layer's image tokens."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from visualchat.model import VisualChatForConditionalGeneration


@pytest.fixture(scope="session")
def make_deep_model(backbones, tmp_path_factory) -> Callable[..., VisualChatForConditionalGeneration]:
    """As `make_model`, with a language model of four layers."""
    folder = tmp_path_factory.mktemp("deep")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(backbones.language, num_hidden_layers=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbones.language).save_pretrained(folder)

    def make(**settings) -> VisualChatForConditionalGeneration:
        torch.manual_seed(0)
        settings = {"image_seq_length": 4, "vision_feature_select_strategy": "default", **settings}
        return VisualChatForConditionalGeneration.from_backbones(backbones.vision, folder, **settings)

    return make

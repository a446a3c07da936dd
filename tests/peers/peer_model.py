"""transformers' common tests of configurations and models on ours, both classes, as its own LLaVA runs them."""

from __future__ import annotations

import unittest

import torch
from transformers import LlamaConfig, SiglipVisionConfig

from peers import mixin, skip
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration, VisualChatModel

IMAGES, IMAGE_TOKENS, TEXT = 1, 4, 10


class Tester:
    """Small configurations and inputs, by the names that the mixins ask for."""

    batch_size = 3
    seq_length = IMAGES * IMAGE_TOKENS + TEXT
    is_training = True
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    encoder_seq_length = seq_length
    vocab_size = 99

    def __init__(self, attention_kind: str) -> None:
        self.attention_kind = attention_kind

    def get_config(self) -> VisualChatConfig:
        text = LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=37,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=2,
            max_position_embeddings=256,
            pad_token_id=1,
        )
        vision = SiglipVisionConfig(  # every weight of which takes part in the features
            hidden_size=32,
            intermediate_size=37,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=8,
            patch_size=4,
            vision_use_head=False,
        )
        return VisualChatConfig(
            vision_config=vision,
            text_config=text,
            attention_kind=self.attention_kind,
            image_seq_length=IMAGE_TOKENS,
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[VisualChatConfig, dict[str, torch.Tensor]]:
        config = self.get_config()
        ids = torch.randint(2, self.vocab_size - 1, (self.batch_size, self.seq_length))
        types = torch.zeros_like(ids)
        types[:, 2 : 2 + IMAGES * IMAGE_TOKENS] = 1
        pixels = torch.rand(self.batch_size * IMAGES, 3, 8, 8)
        return config, {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": types,
            "pixel_values": pixels,
        }

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class ModelTests(mixin("test_modeling_common", "ModelTesterMixin")):
    """What both kinds of attention are tested for."""

    all_model_classes = (VisualChatModel, VisualChatForConditionalGeneration)
    all_generative_model_classes = (VisualChatForConditionalGeneration,)
    _is_composite = True
    attention_kind: str

    def setUp(self) -> None:
        self.model_tester = Tester(self.attention_kind)


NOT_SHIPPED = {
    "test_generation_tester_mixin_inheritance": "the source package lacks the generation mixin: test_generation.py"
}
NO_WEIGHTS = "multi-modal causal attention gives no attention weights: refused, as test_modeling.py tests"
OWN_NAMES = "a plain name chooses how the kind is computed, 'mmca_eager' for 'eager', as test_modeling.py tests"
OWN_SDPA = "it begins as 'causal_sdpa', transformers' own but for packed rows, as test_modeling.py tests"


@skip(
    NOT_SHIPPED
    | {
        "test_attention_outputs": NO_WEIGHTS,
        "test_capture_outputs_decorator": NO_WEIGHTS,
        "test_model_outputs_equivalence": NO_WEIGHTS,
        "test_retain_grad_hidden_states_attentions": NO_WEIGHTS,
        "test_attn_implementation_composite_models": OWN_NAMES,
        "test_can_set_attention_dynamically": OWN_NAMES,
        "test_can_set_attention_dynamically_composite_model": OWN_NAMES,
        "test_sdpa_can_dispatch_composite_models": OWN_NAMES,
    }
)
class MmcaTest(ModelTests, unittest.TestCase):
    attention_kind = "mmca"


@skip(NOT_SHIPPED | {"test_sdpa_can_dispatch_composite_models": OWN_SDPA})
class CausalTest(ModelTests, unittest.TestCase):
    attention_kind = "causal"


class ConfigTest(unittest.TestCase):
    def test_common(self) -> None:
        self.model_tester = Tester("mmca")
        tester = mixin("test_configuration_common", "ConfigTester")
        tester(self, config_class=VisualChatConfig, has_text_modality=False).run_common_tests()

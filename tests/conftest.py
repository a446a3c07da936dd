"""What the test tiers promise: nothing downloads, and a `gpu` test fails without a CUDA device. Small random models."""

import gc
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

# Before anything imports transformers or wandb, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from visualchat.data.batching.collate import Collator
from visualchat.dialogue import Dialogue
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules and tests stay: no later collection need look at them


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.fail("this test is marked gpu and found no CUDA device", pytrace=False)


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE whose only merges are the prompt's headings."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["### Image 1:\n", "### Question:\n", "### Answer:\n"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def backbones(tmp_path_factory, tokenizer) -> SimpleNamespace:
    """Folders of a random CLIP vision encoder (16 pixels, 4 patches) and a random LLaMA with tied embeddings."""
    folder = tmp_path_factory.mktemp("backbones")
    vision, language = folder / "vision", folder / "language"
    torch.manual_seed(0)
    decoder = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,  # spread enough that answers depend on what was asked
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(decoder).save_pretrained(language)
    tokenizer.save_pretrained(language)
    encoder = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    CLIPVisionModel(encoder).save_pretrained(vision)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16).save_pretrained(vision)
    return SimpleNamespace(vision=vision, language=language)


@pytest.fixture(scope="session")
def make_model(backbones) -> Callable[..., VisualChatForConditionalGeneration]:
    """Builds a seeded model on the random backbones; the class token is left out, so an image is 4 tokens."""

    def make(**config) -> VisualChatForConditionalGeneration:
        torch.manual_seed(0)
        config = {"image_seq_length": 4, "vision_feature_select_strategy": "default", **config}
        return VisualChatForConditionalGeneration.from_backbones(backbones.vision, backbones.language, **config)

    return make


@pytest.fixture
def model(make_model) -> VisualChatForConditionalGeneration:
    return make_model()


@pytest.fixture(scope="session")
def processor(backbones) -> VisualChatProcessor:
    return VisualChatProcessor.from_backbones(backbones.vision, backbones.language, image_seq_length=4)


@pytest.fixture(scope="session")
def collated() -> Callable[..., dict[str, Any]]:
    """One training batch of dialogues: `rows` says how many share each row; settings are the collator's."""

    def collate(
        processor: VisualChatProcessor, dialogues: list[Dialogue], rows: list[int] | None = None, **settings: Any
    ) -> dict[str, Any]:
        collator = Collator(processor, **settings)
        examples = iter([collator.read(dialogue, {}) for dialogue in dialogues])
        counts = [1] * len(dialogues) if rows is None else rows
        return collator([[next(examples) for _ in range(n)] for n in counts], packed=rows is not None)

    return collate

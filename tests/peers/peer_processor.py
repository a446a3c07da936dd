"""transformers' common tests of processors on ours."""

from __future__ import annotations

import unittest

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from peers import mixin, skip
from visualchat.model import VisualChatProcessor

VIDEO = "it gives the processor a video, which is refused, as test_processing_prompts.py tests"


@skip(
    {
        "test_flat_kwarg_applied_when_modality_dict_lacks_it": VIDEO,
        "test_model_input_names": VIDEO,
        "test_replacement_offsets": "an image slot is structure, not a text that a token's text replaces",
        "test_subprocessor_defaults_0_text": "a text becomes a prompt, not the tokens of its words alone",
        "test_subprocessor_defaults_preserved_by_kwargs_0_images": "how prompts are padded is said in the call alone",
    }
)
class ProcessorTest(mixin("test_processing_common", "ProcessorTesterMixin"), unittest.TestCase):
    processor_class = VisualChatProcessor
    image_token = "<image>"

    @classmethod
    def _setup_image_processor(cls):
        return CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=16)

    @classmethod
    def _setup_tokenizer(cls):
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=alphabet)
        raw.train_from_iterator([], trainer)
        return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")

    @staticmethod
    def prepare_processor_dict():
        return {"image_seq_length": 4, "system": ""}

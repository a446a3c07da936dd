"""An epoch of dialogues that are at hand, measured by a sample of them, without images and without the Hub."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from visualchat.data.blend.mixture import Mixture
from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import IGNORE_INDEX, Encoding, encode_segments
from visualchat.dialogue.template import PAPER, render
from visualchat.model.processing_visualchat import prompt_template
from visualchat.model.remote_code import load_without_code
from visualchat.plan.workload import Workload

SAMPLE = 256
"""Dialogues that are measured."""

CHARACTERS_PER_TOKEN = 3.17
"""Of English in LLaMA 2's tokenizer; LLaMA 3's makes fewer tokens, 3.94 (arXiv 2407.21783, section 3.2)."""


def measured(encodings: Sequence[Encoding], images: Sequence[int], dialogues: int, source: str) -> Workload:
    """An epoch of so many dialogues, of which these are a sample.

    Args:
        encodings: Of the sample.
        images: How many images each of the sample shows.
        dialogues: Of the whole epoch.
        source: What is measured.
    """
    image_tokens = [sum(encoding.mm_token_type_ids) for encoding in encodings]  # image tokens are 1, text is 0
    count = len(encodings)
    return Workload(
        dialogues,
        sum(images) / count,
        (sum(map(len, encodings)) - sum(image_tokens)) / count,
        sum(label != IGNORE_INDEX for encoding in encodings for label in encoding.labels) / count,
        f"{source}: {dialogues} dialogues, of which {count} were measured",
        max(map(len, encodings)),
        max(images),
    )


class TokenEstimate:
    """Stands in for a tokenizer that would have to be downloaded: as many tokens as a text's length suggests."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        """As a tokenizer of transformers is called with several texts; the ids mean nothing."""
        return {"input_ids": [[0] * math.ceil(len(text) / CHARACTERS_PER_TOKEN) for text in texts]}


def local_tokenizer(path: str | Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or of the local Hub cache; None where it would have to be downloaded."""
    folder = Path(path)
    if not folder.is_dir():
        cached = try_to_load_from_cache(str(path), "tokenizer_config.json")
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    tokenizer: PreTrainedTokenizerBase = load_without_code(AutoTokenizer.from_pretrained, folder)
    return tokenizer


def measured_workload(
    dialogues: Sequence[Dialogue], language: str | Path, system: str, template_name: str, image_seq_length: int
) -> Workload:
    """What an epoch of dialogues holds, by the language model's tokenizer, or by an estimate where it is not here.

    Args:
        dialogues: Of the epoch; a mixture's `epoch_size` is how many of them it takes.
        language: The folder or Hub name of the language model.
        system: The text before the first turn.
        template_name: Of the prompt.
        image_seq_length: Tokens of an image.
    """
    sample = [dialogues[index] for index in range(min(SAMPLE, len(dialogues)))]
    tokenizer = local_tokenizer(language)
    template = PAPER
    if tokenizer is not None:
        template = prompt_template(template_name, tokenizer)
        tokenizer.add_tokens([*template.tokens], special_tokens=True)
    counter: Any = TokenEstimate() if tokenizer is None else tokenizer
    encode = partial(encode_segments, tokenizer=counter, image_seq_length=image_seq_length, template=template)
    encodings = [encode(render(dialogue, system, template)) for dialogue in sample]
    size = Mixture.of(dialogues).epoch_size
    workload = measured(encodings, [len(dialogue.images) for dialogue in sample], size, "the configured data")
    if tokenizer is not None:
        return workload
    source = f"{workload.source}, with {CHARACTERS_PER_TOKEN} characters a token (the tokenizer is not on this machine)"
    return replace(workload, source=source, longest=None)

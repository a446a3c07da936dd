"""The tiny world's tokenizer: byte-level BPE in which every word of the world is one token and any other text is bytes.

The split pattern keeps the prompt's headings whole ("### Question:", "### Image"), so that a prompt takes few tokens.
"""

from __future__ import annotations

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from visualchat.dialogue.template import TextSegment
from visualchat.tiny.dialogues import SPLITS, caption_segments, sketch_dialogue
from visualchat.tiny.hop_dialogues import MOST_IMAGES, sketch_hops
from visualchat.tiny.scenes import CELLS, COLOURS, SHAPES

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
FILLER_WORD = " empty"
"""The word that stands for a patch with nothing on it."""

_PATTERN = r"### (?:Question:\n|Answer:\n|Image)|:\n|\n\n| ?[A-Za-z]+(?:-[A-Za-z]+)*| ?[0-9]| ?[^\sA-Za-z0-9]+|\s"
_MOST_TOKENS = 512  # more than there is to merge: training ends when every word is one token


def train_tokenizer(hops: bool = False, dialogues: int = 3000) -> PreTrainedTokenizerFast:
    """Train the tokenizer on generated dialogues, those with hops or the plain ones; the same ones give the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MOST_TOKENS,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(hops, dialogues), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _corpus(hops: bool, dialogues: int) -> Iterator[str]:
    """Texts of dialogues, and each word of the world with and without a space before it."""
    for word in (*COLOURS, *SHAPES, "yes", "no", "image", *CELLS, "a"):
        yield from (word, f" {word}") * 10
    yield from [FILLER_WORD] * 10
    for index in range(dialogues):
        split = SPLITS[index % 3]
        sketch = sketch_hops(split, -1, index, (1, MOST_IMAGES), 8) if hops else sketch_dialogue(split, -1, index)
        segments = caption_segments(sketch)
        yield from (segment.text for segment in segments if isinstance(segment, TextSegment))

"""Sessions whose logits are kept, what they must equal, and small models of several families."""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from visualchat.chat.session import ChatSession
from visualchat.model import VisualChatForConditionalGeneration

MOST = 4  # tokens of an answer


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


class Recorded(ChatSession):
    """A session that keeps the logits of every step."""

    def __init__(self, model, processor, **settings):
        super().__init__(model, processor, **{"max_new_tokens": MOST, **settings})

    def answer(self, question, images=()):
        """The logits of an answer's steps, (steps, V)."""
        return self.recorded(self.ask(question, images))

    def recorded(self, stream):
        """As `answer`, of an answer that begins."""
        rows = []
        hook = self.model.get_output_embeddings().register_forward_hook(lambda m, a, out: rows.append(out[0, -1]))
        "".join(stream)
        hook.remove()
        return torch.stack(rows)


def a_dialogue(model, processor, store, rounds):
    """The logits of every step of a new session over a store."""
    session = Recorded(model, processor, store=store)
    return [session.answer(question, [picture(seed) for seed in seeds]) for question, seeds in rounds], session


def assert_same_bits(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@torch.no_grad()
def from_nothing(model, session):
    """The likeliest token after each token of a conversation, in one pass without a cache or a store."""
    images = [image for turn in session.turns for image in turn.images]
    out = model(
        torch.tensor([session.ids]),
        session.processor.image_processor(images=images, return_tensors="pt")["pixel_values"],
        mm_token_type_ids=torch.tensor([session.modality]),
        unit_ids=torch.tensor([session.units]),
        use_cache=False,
    )
    return out.logits[0]


def assert_answers_are_those_of_one_pass(model, session, logits):
    """Every step of every answer, to float32's rounding; `logits` as of `Recorded.answer`."""
    whole = from_nothing(model, session)
    for kept, steps in zip(session.rounds, logits, strict=True):
        start = kept.end - len(kept.said)
        torch.testing.assert_close(steps, whole[start - 1 : start - 1 + len(steps)], atol=2e-3, rtol=1e-3)
        assert steps.argmax(-1).tolist() == kept.said[: len(steps)]


def language_folder(folder, tokenizer, name, **config):
    sys.path.insert(0, str(Path(__file__).parents[1] / "attention"))
    try:
        from twins import language_model
    finally:
        sys.path.pop(0)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    language_model(name, vocab_size=len(tokenizer), **ids, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def joined(backbones, folder, kind):
    torch.manual_seed(0)
    return VisualChatForConditionalGeneration.from_backbones(
        backbones.vision, folder, attention_kind=kind, image_seq_length=4, vision_feature_select_strategy="default"
    )

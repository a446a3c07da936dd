"""Dialogues with an open turn, of other lengths and numbers of images, and what a session alone says to them."""

from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from visualchat.chat import ChatSession
from visualchat.dialogue import Dialogue, Turn

MOST = 8  # tokens of an answer


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def asked(question, seeds=()):
    return Dialogue((Turn.ask(question, [picture(seed) for seed in seeds]),))


DIALOGUES = (
    asked("What is it?", [0]),
    asked("What is it?", [1]),
    asked("And this, compared with that?", [1, 0]),
    asked("Nothing to see here."),
    asked("Three of them; which is the odd one out, and why is it?", [2, 0, 1]),
    asked("?", [2]),
)

KINDS = {
    "mmca": {},
    "numbered": {"attention_kind": "mmca_joint", "image_numbers": "learned"},
    "unit": {"attention_kind": "unit"},
    "unit_split": {"attention_kind": "unit_split"},
    "causal": {"attention_kind": "causal"},
    "image": {"attention_kind": "image"},
    "mmca_reference": {"attention_kind": "mmca_reference"},
    "shared": {"image_positions": "shared"},
    "early": {"attention_kind": "mmca_joint", "early_attention_kind": "image", "early_attention_share": 0.5},
    "cross": {"attention_kind": "cross", "cross_attention_every": 1},
}


def opened(model):
    """The model with images that make a difference: loud ones, open gates, vectors of their numbers."""
    torch.manual_seed(1)
    with torch.no_grad():
        if model.multi_modal_projector.last_norm is not None:
            model.multi_modal_projector.last_norm.weight.mul_(4)
        if model.image_numbers is not None:
            model.image_numbers.weight.normal_()
        for name, weight in model.named_parameters():
            if "gate" in name and "gate_proj" not in name:
                weight.fill_(0.2)
    return model


def alone(model, processor, dialogue, settings=MappingProxyType({})):
    """The answer's tokens of a session that is asked the same, with a store of its own."""
    session = ChatSession(model, processor, max_new_tokens=MOST, **settings)
    for turn in dialogue.turns:
        list(session.ask(turn.question, turn.images))
    return session.rounds[-1].said[:MOST]

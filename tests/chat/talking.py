"""A conversation of three rounds, and what a session must make of it."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from visualchat.dialogue import Dialogue, Turn

MOST = 12  # tokens of an answer


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


ROUNDS = (
    ("What are these?", (picture(0), picture(1))),
    ("Are you sure?", ()),
    ("And what is this?", (picture(2),)),
)


def talk(session, rounds=ROUNDS):
    """The pieces of each answer."""
    return [list(session.ask(question, images)) for question, images in rounds]


def state(session):
    return session.turns, list(session.ids), list(session.modality), session.cache.get_seq_length()


def prompt_of(processor, rounds, answers):
    """Token ids and modality of a whole conversation with an open last turn, by the answers' own tokens."""
    turns = [Turn.ask(question, images, answer="") for question, images in rounds]
    encoding = processor.encode(Dialogue((*turns[:-1], replace(turns[-1], answer=None))))
    ids, modality = encoding.input_ids, encoding.mm_token_type_ids
    for (start, stop), answer in reversed(list(zip(encoding.answer_spans, answers, strict=True))):
        ids[start:stop] = answer
        modality[start:stop] = [0] * len(answer)
    return ids, modality


def recompute(model, processor, rounds, *, cached):
    """Each answer's tokens, end token included, from the whole conversation and nothing kept between rounds.

    With `cached` by one `generate`, else by a full forward pass a token.
    """
    eos = processor.tokenizer.eos_token_id
    answers = []
    for k in range(1, len(rounds) + 1):
        ids, modality = prompt_of(processor, rounds[:k], answers)
        images = [image for _, images in rounds[:k] for image in images]
        pixels = processor.image_processor(images=images, return_tensors="pt")["pixel_values"] if images else None
        whole = torch.tensor([ids])
        kinds = torch.tensor([modality])
        if cached:
            out = model.generate(
                input_ids=whole,
                attention_mask=torch.ones_like(whole),
                mm_token_type_ids=kinds,
                pixel_values=pixels,
                do_sample=False,
                max_new_tokens=MOST,
                eos_token_id=eos,
                pad_token_id=processor.tokenizer.pad_token_id,
            )
            answer = out[0, len(ids) :].tolist()
        else:
            answer = []
            with torch.no_grad():
                while len(answer) < MOST and eos not in answer:
                    said = torch.tensor([answer], dtype=torch.long)
                    out = model(
                        input_ids=torch.cat([whole, said], 1),
                        mm_token_type_ids=torch.cat([kinds, torch.zeros_like(said)], 1),
                        pixel_values=pixels,
                        use_cache=False,
                    )
                    answer.append(int(out.logits[0, -1].argmax()))
        answers.append(answer if answer[-1] == eos else [*answer, eos])
    return answers

"""Hints of questions with hops point at the words that an answer is read from."""

import random

from visualchat.dialogue.encoding import Modality
from visualchat.tiny.hop_dialogues import HopDialogues
from visualchat.tiny.pretraining.hints import ABOUT, BOTH
from visualchat.tiny.pretraining.language_data import encode_sketch
from visualchat.tiny.pretraining.tokenizer import train_tokenizer
from visualchat.tiny.scenes import CELL_OF_PATCH, CELLS, PATCHES

TOKENIZER = train_tokenizer(hops=True, dialogues=300)
DATA = HopDialogues("train", 60, images=(2, 8), rounds=10)


def hinted(item, where):
    """(query, keys) of a head's hints."""
    return [(hint.query, hint.keys) for hint in item.hints if hint.where == where]


def test_from_an_answer_to_the_places_of_the_things_in_question():
    found = 0
    for sketch in (DATA.sketch(index) for index in range(len(DATA))):
        item = encode_sketch(sketch, TOKENIZER, "text", random.Random(0))
        ids, spans = item.encoding.input_ids, item.encoding.answer_spans
        about = dict(hinted(item, ABOUT))
        both = dict(hinted(item, BOTH))
        for number, (turn, (start, _)) in enumerate(zip(sketch.rounds, spans, strict=True)):
            question = turn.question
            words = sorted(CELLS[cell] for _, cell in question.about)
            if question.kind in ("colour", "which", "count", "odd") and words:
                assert sorted(TOKENIZER.decode(ids[key]).strip() for key in about[start - 1]) == words
            elif question.kind == "same":
                paid = [keys for query, keys in hinted(item, BOTH) if query == start - 1]
                assert all(len(keys) == 1 for keys in paid)  # to each as much as to the other
                assert [int(TOKENIZER.decode(ids[key])) for (key,) in paid] == [n for n, _ in question.about]
            elif question.kind.startswith("back"):
                (key,) = both[start - 1]
                earlier = number - int(question.kind[-1])
                assert int(TOKENIZER.decode(ids[key])) == question.about[0][0]
                assert sketch.rounds[earlier].question.about == question.about
                assert (spans[earlier - 1][1] if earlier else 0) <= key < spans[earlier][0]
                assert TOKENIZER.decode(ids[about[key][0]]).strip() == CELLS[question.about[0][1]]
            elif question.kind == "list":
                images = sorted({n for n, _ in question.about})
                for step, image in enumerate(images):
                    keys = about[start + 3 * step]
                    cells = sorted(CELLS[cell] for n, cell in question.about if n == image)
                    assert sorted(TOKENIZER.decode(ids[key]).strip() for key in keys) == cells
            else:
                continue
            found += 1
    assert found > 100


def test_folded_captions_are_looked_at_patch_by_patch():
    sketch = next(s for s in map(DATA.sketch, range(60)) if s.rounds[0].question.kind == "which")
    item = encode_sketch(sketch, TOKENIZER, "folded", random.Random(0))
    ((image, cell),) = sketch.rounds[0].question.about
    slots = [i for i, kind in enumerate(item.encoding.mm_token_type_ids) if kind == Modality.IMAGE]
    of_cell = [slots[(image - 1) * PATCHES + patch] for patch in range(PATCHES) if CELL_OF_PATCH[patch] == cell]
    start = item.encoding.answer_spans[0][0]
    assert (start - 1, tuple(of_cell)) in hinted(item, ABOUT)

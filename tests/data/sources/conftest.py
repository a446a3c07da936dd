"""A data root to fill, and a whole comparison of what becomes of a row."""

import pytest
from corpora import IMAGE, SLOT, Corpus, shade_of

from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import IGNORE_INDEX, encode_segments
from visualchat.dialogue.template import render


@pytest.fixture
def corpus(tmp_path) -> Corpus:
    return Corpus(tmp_path)


@pytest.fixture
def expect(tokenizer):
    """Compares a dialogue whole: token ids, labels, modality, and the shades of its images in order.

    `pieces` is the prompt as texts, `IMAGE`, and answers as one-element tuples.
    """

    def check(dialogue: Dialogue, pieces, shades) -> None:
        ids, labels, modality = [tokenizer.bos_token_id], [IGNORE_INDEX], [0]
        for piece in pieces:
            if piece is IMAGE:
                new = [tokenizer.pad_token_id] * SLOT
            else:
                text = piece[0] if isinstance(piece, tuple) else piece
                new = tokenizer(text, add_special_tokens=False)["input_ids"]
            if isinstance(piece, tuple):
                new = [*new, tokenizer.eos_token_id]
            ids += new
            labels += new if isinstance(piece, tuple) else [IGNORE_INDEX] * len(new)
            modality += [int(piece is IMAGE)] * len(new)
        found = encode_segments(render(dialogue, "S"), tokenizer, image_seq_length=SLOT)
        assert tokenizer.decode(found.input_ids) == tokenizer.decode(ids)
        assert (found.input_ids, found.labels, found.mm_token_type_ids) == (ids, labels, modality)
        assert [shade_of(image) for image in dialogue.images] == pytest.approx(shades, abs=3)

    return check

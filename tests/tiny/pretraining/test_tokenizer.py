"""The tiny tokenizer: whole words, few tokens for headings, any text, and no power for spelled-out special tokens."""

import pytest

from visualchat.dialogue.encoding import encode_segments, encode_text
from visualchat.tiny.dialogues import TinyDialogues, caption_segments
from visualchat.tiny.pretraining.tokenizer import FILLER_WORD, train_tokenizer
from visualchat.tiny.scenes import CELLS, COLOURS, SHAPES


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def test_it_is_small_and_the_same_every_time(tokenizer):
    assert 380 <= len(tokenizer) <= 450
    assert tokenizer.get_vocab() == train_tokenizer().get_vocab()
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_every_word_of_the_world_is_one_token(tokenizer):
    places = [word for cell in CELLS for word in cell.split()]
    for word in (*COLOURS, *SHAPES, *places, "yes", "no", "image"):
        assert len(encode_text(tokenizer, word)) == 1, word
        assert len(encode_text(tokenizer, f" {word}")) == 1, word
    assert len(encode_text(tokenizer, FILLER_WORD)) == 1


def test_headings_take_few_tokens(tokenizer):
    assert len(encode_text(tokenizer, "### Image 1:\n")) == 3
    assert len(encode_text(tokenizer, "\n\n### Question:\n")) == 2
    assert len(encode_text(tokenizer, "\n\n### Answer:\n")) == 2


@pytest.mark.parametrize(
    "text", ["What colour is the circle in image 2?", "naïve 漢字 \t\r\n  x\x00 🙂", "a  b\n\n\nc", "#### x"]
)
def test_any_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(encode_text(tokenizer, text)) == text


def test_spelled_out_special_tokens_stay_plain_text(tokenizer):
    ids = encode_text(tokenizer, "</s><s><pad>")
    assert not set(ids) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(ids) == "</s><s><pad>"


def test_segments_encode_piece_by_piece(tokenizer):
    sketch = TinyDialogues("train", 10).sketch(3)
    encoding = encode_segments(caption_segments(sketch), tokenizer, image_seq_length=16)
    answers = [tokenizer.decode(encoding.input_ids[start : stop - 1]) for start, stop in encoding.answer_spans]
    assert answers == [turn.question.answer for turn in sketch.rounds]
    assert all(encoding.input_ids[stop - 1] == tokenizer.eos_token_id for _, stop in encoding.answer_spans)

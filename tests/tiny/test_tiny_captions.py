"""The tiny world's captions: true, five at most, of images that no other split or data set shows."""

import pytest

from visualchat.images.feature_store import image_key
from visualchat.tiny import TinyCaptions, TinyDialogues
from visualchat.tiny.questions import enumerate_shapes
from visualchat.tiny.scenes import HELD_OUT


@pytest.mark.parametrize("split", ["train", "validation", "unseen"])
def test_every_caption_is_true_and_the_first_is_in_raster_order(split):
    data = TinyCaptions(split, 40)
    for index in range(40):
        (turn,), shapes = data[index].turns, data.scene(index).shapes
        said = [turn.answer, *turn.expected.references]
        assert len(said) == len(set(said)) <= 5
        assert turn.answer == enumerate_shapes(shapes)
        for caption in said:
            assert sorted(caption.replace(" and ", ", ").split(", ")) == sorted(f"a {shape.name}" for shape in shapes)
        assert any(shape.pair in HELD_OUT for shape in shapes) == (split == "unseen")


def test_images_are_those_of_their_split_seed_and_index_alone():
    sets = [TinyCaptions(split, 30, seed) for split in ("train", "validation") for seed in (0, 1)]
    sets.append(TinyDialogues("train", 30))
    keys = [image_key(image) for data in sets for index in range(30) for image in data[index].images]
    assert len(keys) == len(set(keys))
    assert [TinyCaptions("train", 9)[n].turns[0] for n in range(9)] == [sets[0][n].turns[0] for n in range(9)]
    assert sets[0][-1].id == sets[0][29].id
    assert len({data.digest() for data in sets}) == len(sets)


@pytest.mark.parametrize("wrong", [("trian", 3), ("train", -1)])
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValueError, match=f"{wrong[0] if wrong[1] > 0 else 'negative, found -1'}"):
        TinyCaptions(*wrong)
    with pytest.raises(IndexError):
        TinyCaptions("train", 2)[2]

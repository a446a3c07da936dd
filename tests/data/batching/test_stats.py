"""Statistics of a batch against counts made dialogue by dialogue."""

import pickle

import pytest
from PIL import Image

from visualchat.data.batching.collate import BatchMaker, Collator
from visualchat.data.batching.sampler import BatchSpec
from visualchat.data.blend.mixture import Mixture
from visualchat.data.blend.origin import digest_of
from visualchat.dialogue import Dialogue, Turn

PICTURE = Image.new("RGB", (16, 16), "red")


def dialogue(name: str, images: int, *answers: str) -> Dialogue:
    return Dialogue(tuple(Turn.ask(f"Number {n}?", [PICTURE] * images, a) for n, a in enumerate(answers)), id=name)


MIXTURE = Mixture(
    {
        "words": [dialogue("w0", 0, "yes"), dialogue("w1", 0, "a long answer", "no")],
        "nothing": [],
        "pictures": [dialogue("p0", 2, "two pictures"), dialogue("p1", 1, "one", "and one", "more")],
    }
)
SOURCES = (0, 0, 2, 2)


def test_sources_are_the_parts_of_a_mixture():
    assert MIXTURE.names == ("words", "nothing", "pictures")
    assert tuple(MIXTURE.source_of(n) for n in range(4)) == SOURCES


def test_a_plain_data_set_is_of_one_source_without_a_name():
    assert Mixture.of(MIXTURE) is MIXTURE
    plain = Mixture.of([dialogue("a", 0, "b")])
    assert plain.names == ()
    assert plain.source_of(0) == 0
    assert plain.digest() == digest_of([dialogue("a", 0, "b")])


@pytest.mark.parametrize(
    ("packed", "rows"), [(False, ((3,), (0,), (2,), (1,))), (True, ((3, 0), (2,), (1, 0, 2))), (True, ((1,),))]
)
def test_whose_answers_and_how_much(processor, packed, rows):
    maker = BatchMaker(MIXTURE, Collator(processor), packed=packed)
    batch = pickle.loads(pickle.dumps(maker[BatchSpec(rows)]))  # as from a worker
    stats = batch.stats
    order = [number for row in rows for number in row]
    encodings = {number: processor.encode(MIXTURE[number]) for number in order}
    trained = {n: sum(label >= 0 for label in e.labels) for n, e in encodings.items()}
    assert stats.token_source.tolist() == [SOURCES[n] for n in order for _ in range(trained[n])]
    assert len(stats.token_source) == int((batch["labels"] >= 0).sum())
    assert stats.answer_source == tuple(SOURCES[n] for n in order for _ in MIXTURE[n].turns)
    assert stats.answer_tokens == tuple(sum(trained[n] for n in order if SOURCES[n] == s) for s in range(3))
    assert stats.tokens == sum(len(encodings[n]) for n in order)
    assert stats.positions == len(rows) * max(sum(len(encodings[n]) for n in row) for row in rows)
    assert stats.images == sum(len(MIXTURE[n].images) for n in order)


@pytest.mark.parametrize("packed", [False, True])
def test_an_idle_batch_holds_padding_alone(processor, packed):
    batch = BatchMaker(MIXTURE, Collator(processor), packed=packed)[BatchSpec(())]
    assert len(batch.stats.token_source) == 0
    assert batch.stats[1:] == ((), (0, 0, 0), 0, batch["labels"].numel(), 0)

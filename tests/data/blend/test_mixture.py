"""Mixtures: what an epoch holds, in which order, and that the sides of a blend share no source row."""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from visualchat.data.batching.sampler import batches_of_rank
from visualchat.data.blend.compose import Join, LlavaOtter
from visualchat.data.blend.mixture import Blend, Mixture, turn_through
from visualchat.data.sources.base import Source
from visualchat.data.sources.rows import Entry
from visualchat.dialogue import Dialogue, Turn


@dataclass(frozen=True)
class Made(Source):
    """Dialogues over images that are named, not drawn."""

    name: str = "made"
    images: tuple[tuple[str, ...], ...] = ()
    root: str = "."
    on_error: str = "error"
    built: list = field(default_factory=list, compare=False)

    def _scan(self, tally):
        for number, images in enumerate(self.images):
            tally.rows += 1
            id = f"{self.name}:{number}"
            tally.entries.append(Entry(id, id, (id,), images, (number,)))

    def _build(self, entry):
        self.built.append(entry.id)
        return Dialogue((Turn((*(image.encode() for image in entry.images), f"{entry.id}?"), entry.id),), entry.id)


def named(name, size):
    return Made(name, ((f"{name}.jpg",),) * size)


def dialogues(name, size):
    return list(named(name, size))


def test_an_epoch_has_every_dialogue_once_by_default():
    mixture = Mixture({"a": dialogues("a", 7), "b": dialogues("b", 5), "none": []})
    assert mixture.epoch_size == len(mixture) == 12
    orders = [mixture.order(0, epoch) for epoch in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    assert orders[1] == mixture.order(0, 1) != mixture.order(1, 1)
    assert [mixture[place].id for place in range(12)] == [*(f"a:{n}" for n in range(7)), *(f"b:{n}" for n in range(5))]
    assert mixture[-1].id == "b:4"
    assert [dialogue.id for dialogue in mixture[6:8]] == ["a:6", "b:0"]


def test_weights_and_counts_take_all_before_any_comes_again():
    parts = {"a": dialogues("a", 10), "b": dialogues("b", 4), "c": dialogues("c", 6)}
    mixture = Mixture(parts, weights={"a": 0.5, "b": 2}, counts={"c": 4})
    assert mixture.epoch_size == 5 + 8 + 4
    taken = [Counter(mixture.locate(place) for place in mixture.order(3, epoch)) for epoch in range(3)]
    assert [sum(n for (part, _), n in epoch.items() if part == "c") for epoch in taken] == [4, 4, 4]
    assert all(epoch["b", n] == 2 for epoch in taken for n in range(4))
    assert taken[0].keys() & {("a", n) for n in range(10)} == {("a", n) for n in range(10)} - taken[1].keys()
    total = sum(taken, Counter())
    assert [total["c", n] for n in range(6)] == [2] * 6  # 12 of 6 in three epochs


def test_a_part_can_be_left_out_of_an_epoch():
    mixture = Mixture({"a": dialogues("a", 3), "b": dialogues("b", 3)}, weights={"a": 0})
    assert sorted(mixture.order(0, 0)) == [3, 4, 5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"x": 1}}, "names the part 'x'; the parts are a"),
        ({"counts": {"a": -1}}, "part a: a weight or count cannot be negative, found -1"),
        ({"weights": {"a": 1}, "counts": {"a": 1}}, "part a has both a weight and a count"),
    ],
)
def test_amounts_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        Mixture({"a": dialogues("a", 3)}, **options)


def test_a_place_out_of_range():
    mixture = Mixture({"a": dialogues("a", 3)})
    for place in (3, -4):
        with pytest.raises(IndexError, match="out of range for 3 dialogues"):
            mixture[place]


@pytest.mark.parametrize(("size", "count"), [(10, 3), (10, 10), (3, 10), (1, 4), (5, 0)])
def test_turning_through_is_one_endless_list(size, count):
    taken = [n for epoch in range(12) for n in turn_through(size, count, epoch, "s")]
    whole = len(taken) // size
    assert all(sorted(taken[k * size : (k + 1) * size]) == list(range(size)) for k in range(whole))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_an_epoch_without_overlap(ranks):
    order = Mixture({"a": dialogues("a", 21)}).order(5, 2)
    rows = [(index,) for index in order]
    shares = [[row for spec in batches_of_rank(rows, 1, rank, ranks) for row in spec.rows] for rank in range(ranks)]
    assert sorted(row for share in shares for row in share) == sorted(rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def blend(**options):
    single = Made("llava", tuple((f"{n}.jpg",) for n in range(120)))
    dial = Made("llava_dial", tuple((f"{n % 40}.jpg",) for n in range(80)))
    pairs = Made("cgd", tuple((f"{n % 30}.jpg", f"{(n * 7) % 50}.jpg") for n in range(200)))
    parts = {
        "llava": Join("llava", 1, 3),
        "llava_dial": Join("llava_dial", 1, 2),
        "cgd": Join("cgd"),
        "llava_otter_blend": LlavaOtter(["llava", "llava_dial"], "cgd"),
    }
    return Blend({"llava": single, "llava_dial": dial, "cgd": pairs}, parts, **{"validation": 0.3, **options})


def rows_of(mixture) -> set[str]:
    """Every source row that stands in a dialogue of the mixture, told by its answers."""
    return {turn.answer for dialogue in mixture for turn in dialogue.turns}


@pytest.mark.parametrize("seed", range(3))
def test_no_source_row_is_on_both_sides_after_composition(seed):
    made = blend(seed=seed)
    train, validation = rows_of(made.train), rows_of(made.validation)
    assert train.isdisjoint(validation)
    assert len(train) + len(validation) == 120 + 80 + 200
    assert all(len(part) for mixture in (made.train, made.validation) for part in mixture.parts.values())
    planned = {
        side: {place for part in mixture.parts.values() for recipe in part.recipes for place in recipe.source_rows}
        for side, mixture in (("train", made.train), ("validation", made.validation))
    }
    assert planned["train"].isdisjoint(planned["validation"])


def test_blends_are_functions_of_the_seed():
    first, again, other = blend(), blend(), blend(seed=1)
    assert list(first.train) == list(again.train)
    assert first.train.order(0, 0) == again.train.order(0, 0)
    assert list(first.train) != list(other.train)


def test_a_row_is_on_one_side_in_every_blend_that_draws_from_it():
    whole = blend()
    alone = Blend({"cgd": whole.sources["cgd"]}, {"cgd": Join("cgd")}, validation=0.3)
    assert list(alone.validation) == list(whole.validation.parts["cgd"])


def test_the_split_by_image_reaches_the_blend():
    single = Made("llava", tuple((f"{n % 50}.jpg",) for n in range(200)))
    dial = Made("llava_dial", tuple((f"{n % 50}.jpg",) for n in range(100)))
    parts = {"llava": Join("llava", 1, 3), "llava_dial": Join("llava_dial")}
    made = Blend({"llava": single, "llava_dial": dial}, parts, validation=0.3, split_by="image")
    shown = [{image for dialogue in m for image in dialogue.images} for m in (made.train, made.validation)]
    assert shown[0].isdisjoint(shown[1])
    assert len(shown[0] | shown[1]) == 50
    with pytest.raises(ValueError, match="cannot be split by image: use split_by=row"):
        len(blend(split_by="image").train)


def test_weights_count_for_training_only():
    made = blend(weights={"llava": 0.5}, counts={"cgd": 3})
    assert made.train.wanted["cgd"] == 3
    assert made.train.wanted["llava"] == round(0.5 * len(made.train.parts["llava"]))
    assert made.validation.epoch_size == len(made.validation)


def test_planning_builds_no_dialogue():
    made = blend()
    assert len(made.train) > 100
    made.train.order(0, 0)
    assert not any(source.built for source in made.sources.values())


def test_a_part_of_an_unknown_source():
    with pytest.raises(ValueError, match="part x needs the source 'nowhere'; the sources are a"):
        len(Blend({"a": named("a", 3)}, {"x": Join("nowhere")}).train)


def test_reports():
    made = blend()
    assert [(report.source, report.members) for report in made.prepare()] == [
        ("llava", 120),
        ("llava_dial", 80),
        ("cgd", 200),
    ]
    assert made.reports() == made.prepare()

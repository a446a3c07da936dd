"""The split: a row's side depends on its identity alone, and images can be kept on one side."""

import pytest
from PIL import Image

from visualchat.data.blend.split import image_groups, split_of, split_sources
from visualchat.data.sources.base import image_identity
from visualchat.data.sources.root import DataRoot
from visualchat.data.sources.rows import Entry


def entries(*images, name="s"):
    return [Entry(f"{name}{n}", f"{name}{n}", (f"{name}{n}",), shown, (n,)) for n, shown in enumerate(images)]


def test_sides_are_fixed_for_all_time():
    """Written down once: a change here would move people's rows from training to validation."""
    names = [f"llava/detail_23k.json:{n:012d}" for n in range(40)]
    held = [n for n, name in enumerate(names) if split_of(name) == "validation"]
    assert held == [11, 20, 33]
    assert split_of("a", 0) == split_of("a", 0.0) == "train"
    assert split_of("a", 1) == split_of("a", 1.0) == "validation"


def test_the_share_is_met_and_grows_monotonically():
    names = [f"row {n}" for n in range(20_000)]
    tenth = {name for name in names if split_of(name) == "validation"}
    assert len(tenth) == pytest.approx(2000, abs=4 * (20_000 * 0.1 * 0.9) ** 0.5)  # four standard deviations
    assert tenth < {name for name in names if split_of(name, 0.2) == "validation"}
    other = {name for name in names if split_of(name, salt="7") == "validation"}
    assert len(tenth & other) == pytest.approx(200, abs=4 * 200**0.5)


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none(share):
    with pytest.raises(ValueError, match=f"must lie between 0 and 1, found {share}"):
        split_of("a", share)


def test_a_row_stays_when_others_come_and_go():
    many = entries(*[()] * 200)
    both = split_sources({"a": many, "b": entries(*[()] * 50, name="b")})
    alone = split_sources({"a": many[:120]})
    assert [p for p in both["a"]["validation"] if p < 120] == alone["a"]["validation"]
    assert sorted(both["a"]["train"] + both["a"]["validation"]) == list(range(200))


def test_rows_of_one_group_are_on_one_side():
    rows = [Entry(f"{n % 20}#{n}", f"{n % 20}", (f"{n}",), (), (n,)) for n in range(100)]
    splits = split_sources({"a": rows}, 0.5)["a"]
    assert {n % 20 for n in splits["train"]}.isdisjoint({n % 20 for n in splits["validation"]})
    assert splits["train"]
    assert splits["validation"]


def test_by_image_no_picture_is_on_both_sides():
    first = entries(*[(f"i{n % 90}",) for n in range(200)])
    pairs = entries(*[(f"i{n}", f"j{n}") for n in range(0, 90, 7)], *[()] * 5, name="p")
    splits = split_sources({"a": first, "p": pairs}, 0.3, "image")
    shown = {
        kind: {
            image
            for name, rows in (("a", first), ("p", pairs))
            for place in splits[name][kind]
            for image in rows[place].images
        }
        for kind in ("train", "validation")
    }
    assert shown["train"]
    assert shown["validation"]
    assert shown["train"].isdisjoint(shown["validation"])
    assert sorted(splits["p"]["train"] + splits["p"]["validation"]) == list(range(len(pairs)))


def test_image_groups_join_chains():
    rows = entries(("c", "b"), ("b", "a"), ("x",), ("y",), ("z",), ("w",), ("v",), ("u",))
    groups = image_groups({"a": rows})
    assert (groups["a"], groups["b"], groups["c"], groups["x"]) == ("a", "a", "a", "x")


def test_one_chain_of_pictures_cannot_be_split():
    rows = entries(*[(f"i{n}", f"i{n + 1}") for n in range(50)], ("x",))
    with pytest.raises(ValueError, match=r"50 of 51 dialogues are connected by shared images.*use split_by=row"):
        split_sources({"a": rows}, by="image")


def test_an_unknown_way_to_split():
    with pytest.raises(ValueError, match="split by row or image, not by 'date'"):
        split_sources({}, by="date")


def test_pictures_in_memory_are_told_apart_by_size_and_mode(tmp_path):
    root = DataRoot(tmp_path)
    wide, high, grey = Image.new("L", (12, 2)), Image.new("L", (2, 12)), Image.new("RGB", (4, 2))
    red, blue = (Image.new("P", (2, 2)) for _ in range(2))
    red.putpalette([255, 0, 0] * 256)
    blue.putpalette([0, 0, 255] * 256)
    assert len({image_identity(image, root) for image in (wide, high, grey, red, blue)}) == 5
    assert image_identity(wide, root) == image_identity(wide.copy(), root)

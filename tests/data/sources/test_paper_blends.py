"""The paper's three sets, from files in the published form over the configuration tree to training dialogues."""

import pickle
import re
from collections import Counter

import pytest
from corpora import shade_of
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from published_files import llava_rows, write_published
from torch.utils.data import DataLoader

from visualchat.cli.config import CONF
from visualchat.cli.references import look_at_references
from visualchat.data.blend.mixture import Blend
from visualchat.dialogue.encoding import encode_segments
from visualchat.dialogue.template import render

PARTS = ("llava", "llava_dial", *(f"otter_mimicit_{part}" for part in ("cgd", "sd", "sn", "tvc", "vst")))


@pytest.fixture
def published(corpus, monkeypatch):
    """All nine datasets under the data root that configurations read."""
    write_published(corpus)
    monkeypatch.setenv("VISUALCHAT_DATA", str(corpus.root))
    return corpus


def made(name, *overrides) -> Blend:
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", [f"data/blend={name}", *overrides])
    return instantiate(config.blend)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("set1", (*PARTS, "llava_otter_blend")),
        ("set2", (*PARTS, "llava_otter_blend", "sparkles_dialogue")),
        ("single_image", PARTS[:2]),
    ],
)
def test_the_papers_sets(published, name, parts, tokenizer):
    blend = made(name, "blend.validation=0.3")
    assert tuple(blend.parts) == parts
    train, validation = blend.train, blend.validation
    assert tuple(train.parts) == parts
    answers = [{turn.answer for dialogue in side for turn in dialogue.turns} for side in (train, validation)]
    assert answers[0].isdisjoint(answers[1])  # every source row has answers of its own
    members = [
        {place for part in side.parts.values() for recipe in part.recipes for place in recipe.source_rows}
        for side in (train, validation)
    ]
    assert members[0].isdisjoint(members[1])
    everything = {(source, n) for source, found in blend.sources.items() for n in range(len(found))}
    assert members[0] | members[1] == everything  # nothing is lost by grouping
    for dialogue in train:
        found = encode_segments(render(dialogue), tokenizer, image_seq_length=4)
        assert found.mm_token_type_ids.count(1) == 4 * len(dialogue.images)
        assert len(found.answer_spans) == len(dialogue.turns)


def test_what_the_sources_say_of_themselves(published):
    reports = {report.source: report for report in made("set2").reports()}
    assert {name: (r.rows, r.members, r.dialogues, sum(r.left_out.values())) for name, r in reports.items()} == {
        "llava": (100, 100, 100, 0),
        "llava_dial": (50, 50, 50, 0),
        "otter_mimicit_cgd": (60, 60, 30, 0),
        "otter_mimicit_sd": (30, 30, 30, 0),
        "otter_mimicit_sn": (30, 30, 30, 0),
        "otter_mimicit_tvc": (30, 0, 0, 30),
        "otter_mimicit_vst": (30, 15, 15, 15),
        "sparkles_dialogue": (45, 45, 45, 0),
    }


def test_a_blended_dialogue_shows_each_image_before_it_is_asked_about(published):
    part = made("set1", "blend.validation=0").train.parts["llava_otter_blend"]
    assert len(part) == 30
    for dialogue, recipe in zip(part, part.recipes, strict=True):
        first = int(dialogue.turns[-1].answer.split()[-1]) // 2 * 2
        shown = [20 * (1 + first % 12), 20 * (1 + (first + 3) % 12)]
        assert [shade_of(image) for image in dialogue.images] == pytest.approx(shown, abs=3)
        assert dialogue.turns[-1].answer.startswith("A CGD")
        assert dialogue.turns[0].answer.startswith("gpt ")
        assert recipe.pair[0] == "otter_mimicit_cgd"


def test_a_blend_travels_to_workers(published):
    train = made("set2").train
    again = pickle.loads(pickle.dumps(train))
    assert list(again) == list(train)
    assert again.order(1, 2) == train.order(1, 2)
    loader = DataLoader(train, batch_size=None, sampler=train.order(1, 2), num_workers=2)
    assert list(loader) == [train[place] for place in train.order(1, 2)]


def test_joined_dialogues_have_the_papers_sizes(published):
    blend = made("single_image", "blend.validation=0")
    for part, high in (("llava", 3), ("llava_dial", 2)):
        sizes = Counter(len(recipe.source_rows) for recipe in blend.train.parts[part].recipes)
        assert set(sizes) == set(range(1, high + 1))
    assert {len(d.turns) for d in blend.train.parts["llava"]} == {1, 2, 3}
    assert {len(d.turns) for d in blend.train.parts["llava_dial"]} == {3, 6}


def test_bad_rows_are_one_setting_for_all_sources(published):
    published.write("llava/conversation_58k.json", [*llava_rows("t", 20, 1, 3), {"id": "broken"}])
    with pytest.raises(ValueError, match="llava_dial: 1 of 21 rows are damaged"):
        len(made("single_image").train)
    blend = made("single_image", "++data.bad_rows=skip")
    assert blend.reports()[1].rejected == {"wrong form": 1}


def test_references_of_the_papers_blends(published):
    """Section 5.2.4: with shuffled image numbers fewer images are spoken of, and it is unclear which more often."""
    said = {"A CGD": "The first image shows a road, image 2 a field: ", "gpt": "The image shows a dog: "}
    letters = str.maketrans("0123456789", "abcdefghij")  # numbers in words would be left alone

    def reworded(match: re.Match[str]) -> str:
        return said.get(match[1], "") + match[0].translate(letters)

    for name in ("MIMIC-IT/CGD_instructions.json", "llava/detail_23k.json", "llava/complex_reasoning_77k.json"):
        path = published.root / name
        path.write_text(re.sub(r'(A CGD|Q CGD|gpt|human) [\w ]+(?=")', reworded, path.read_text()))
    found = {}
    for name in ("set1", "set1_shuffled"):
        blend = made(name, "blend.validation=0")
        figures, _ = look_at_references({"train": blend.train}, blend.sources, 0, 1)
        found[name] = figures
        assert {label.removeprefix("source: ") for label in figures if "source" in label} == set(blend.sources)
        assert all(of.unsound_share == 0 for of in figures.values()), "every number is rewritten, or left as it was"
    plain, shuffled = found["set1"], found["set1_shuffled"]
    pairs = plain["train: otter_mimicit_cgd"], shuffled["train: otter_mimicit_cgd_shuffled"]
    assert [of.named / of.images for of in pairs] == [1, pytest.approx(60 / pairs[1].images)]
    assert pairs[1].images > 60
    joined = plain["train: llava"], shuffled["train: llava_shuffled"]
    assert [of.verdicts["unclear"] > 0 for of in joined] == [False, True]
    assert plain["train: llava_otter_blend"].linked == plain["train: llava_otter_blend"].dialogues
    assert shuffled["train: llava (weight 0)"].verdicts == plain["train: llava"].verdicts
    of = plain["train"], shuffled["train"]
    assert of[1].named / of[1].images < of[0].named / of[0].images
    assert of[1].verdicts["unclear"] > of[0].verdicts["unclear"] == 0

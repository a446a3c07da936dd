"""The ways of knowing images: which give the answers of one pass, which do not, what is computed; and their page."""

import json
import random
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from reuse_ways import SHARES, ImagesAlone, Recomputed, ways_of

from chat import CASES, model_of, pictures, processor_of, prompt
from visualchat.model.light import save_light
from visualchat.model.trainable import Trainable, set_trainable
from visualchat.studies import kept as keeping

SIDE, IMAGES = 32, 3
BUDGET = 1 << 30
PROCESSOR = processor_of(SIDE)


def conversation(model, seed):
    """A prompt, the same images in an order of its own, and the places of its last tokens."""
    tokens = prompt(model, CASES["another text before"], seed, IMAGES)[1]
    images = random.Random(seed).sample(pictures(IMAGES, SIDE), IMAGES)
    return tokens, images, torch.arange(len(tokens.ids) - 20, len(tokens.ids))


def inputs(tokens, images):
    """The model's, of one pass."""
    pixels = PROCESSOR.image_processor(images=images, return_tensors="pt")["pixel_values"]
    ids, modality, units = (torch.tensor([of]) for of in (tokens.ids, tokens.modality, tokens.units))
    return {"input_ids": ids, "pixel_values": pixels, "mm_token_type_ids": modality, "unit_ids": units}


def in_one_pass(model, tokens, images, asked):
    """By the model alone, without any cache."""
    return model(**inputs(tokens, images)).logits[0, asked]


def assert_alike(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "attention",
    [
        {"attention_kind": "mmca"},
        {"attention_kind": "mmca_joint", "image_numbers": "learned"},
        {"attention_kind": "unit"},
        {"attention_kind": "label"},
        {"attention_kind": "cross", "cross_attention_every": 1},
        {"attention_kind": "causal"},
    ],
    ids=lambda given: given["attention_kind"],
)
def test_exact_ways_answer_as_one_pass_about_images_that_other_conversations_made_known(attention):
    model = model_of(2, SIDE, **attention)
    for name, parameter in model.named_parameters():
        if "gate" in name or "image_numbers" in name:  # which start at zero
            torch.nn.init.normal_(parameter)
    way = ways_of("it", model, PROCESSOR, BUDGET)["it"]
    assert way.exact
    other, images, asked = conversation(model, 1)
    for turn in range(IMAGES):  # known as every number
        way.logits(other, images[turn:] + images[:turn], asked)
    known = way.unknown
    assert_alike(way.logits(*conversation(model, 0)), in_one_pass(model, *conversation(model, 0)))
    assert way.unknown == known


@torch.no_grad()
def test_a_causal_models_images_are_not_what_they_are_alone_unless_all_tokens_are_recomputed():
    model = model_of(2, SIDE, attention_kind="causal")
    ways, asked = ways_of("causal", model, PROCESSOR, BUDGET), conversation(model, 0)
    assert [way.exact for way in ways.values()] == [True, False, False, False, False]
    true = in_one_pass(model, *asked)
    found = {name: way.logits(*asked) for name, way in ways.items()}
    off = {name: float((logits - true).abs().max() / true.std()) for name, logits in found.items()}
    assert off.pop("causal") < 1e-4
    assert min(off.values()) > 0.01
    assert len({round(value, 6) for value in off.values()}) == 4
    alone = ways["causal, turned"].alone
    assert_alike(Recomputed(alone, 1.0).logits(*asked), true)
    assert alone.store.stats.misses == IMAGES


@torch.no_grad()
def test_turned_images_answer_as_a_mask_says_under_which_each_sees_itself_alone():
    model = model_of(2, SIDE, attention_kind="causal")
    tokens, images, asked = conversation(model, 0)
    turned = Recomputed(ImagesAlone(model, PROCESSOR, BUDGET), 0.0).logits(tokens, images, asked)
    given = inputs(tokens, images)
    features = model.get_image_features(given["pixel_values"]).pooler_output
    embeds = model.splice(model.get_input_embeddings()(given["input_ids"]), given["mm_token_type_ids"], features)
    of_image = torch.where(given["mm_token_type_ids"][0] == 1, given["unit_ids"][0], 0)
    seen = torch.ones(len(of_image), len(of_image)).tril().bool()
    seen &= (of_image[:, None] == 0) | (of_image[:, None] == of_image)
    masked = model.language_model(inputs_embeds=embeds, attention_mask=seen[None, None])
    assert_alike(turned, masked.logits[0, asked])


@torch.no_grad()
def test_one_layer_has_the_same_keys_anywhere():
    """So that here every way is exact: what is turned, left out and computed stands in its place."""
    model = model_of(1, SIDE, attention_kind="causal", image_numbers="learned")
    torch.nn.init.normal_(model.image_numbers.weight)
    true = in_one_pass(model, *conversation(model, 0))
    for way in ways_of("causal", model, PROCESSOR, BUDGET).values():
        assert_alike(way.logits(*conversation(model, 0)), true)


@pytest.fixture
def arms(tmp_path, make_model, backbones, processor):
    """What is typed of two arms of one run each."""
    kinds = {"causal": "causal", "joint": "mmca_joint"}
    for name, kind in kinds.items():
        run = tmp_path / name / "0"
        model = make_model(attention_kind=kind)
        set_trainable(model, Trainable())
        save_light(model, run / "light", backbones.vision, backbones.language)
        processor.save_pretrained(run / "light")
        (run / "metrics.json").write_text("{}")
    return [f"{name}={tmp_path / name}" for name in kinds]


@pytest.mark.slow
def test_the_typed_command_leaves_its_files_and_computes_nothing_twice(arms, tmp_path, monkeypatch, capsys):
    benchmark, results = import_module("reuse"), tmp_path / "results"
    sizes = ["--dialogues", "2", "--repeats", "1", "--layers", "1", "--images", "2", "--image-side", "16"]
    typed = [*arms, *sizes, "--results", str(results)]
    subprocess.run([sys.executable, benchmark.__file__, *typed], check=True, cwd=tmp_path)
    ways = ["causal", *(f"causal, {way}" for way in SHARES), "joint"]
    kept = keeping.read(results / "reuse" / "answers.jsonl.xz")
    assert [run.arm[0] for run in kept.runs] == sorted(ways)
    assert {question.part for question in kept.questions} == {"seen", "more", "unseen"}
    times = json.loads((results / "reuse" / "times.json").read_text())
    assert times["exact"] == {way: ", " not in way for way in ways}
    assert times["ms"].keys() == times["exact"].keys()
    assert (results / "reuse.png").stat().st_size > 1000
    page = (results / "reuse.md").read_text()
    assert "| causal, turned is worse than causal |" in page
    assert "| joint is better than causal, turned |" in page

    (results / "reuse.md").write_text(f"{page}\n## Discussion\n\nBy hand.\n")
    for name in ("measure", "Answers"):
        monkeypatch.setattr(benchmark, name, None)
    for again in (typed, ["--results", str(results)]):
        monkeypatch.setattr(sys, "argv", ["reuse.py", *again])
        benchmark.main()
        assert (results / "reuse.md").read_text() == f"{page}\n## Discussion\n\nBy hand.\n"
    monkeypatch.setattr(sys, "argv", ["reuse.py", f"causal={results}"])
    with pytest.raises(SystemExit) as refused:
        benchmark.main()
    assert refused.value.code == 2
    assert "found no finished run; expected FOLDER/SEED/light" in capsys.readouterr().err

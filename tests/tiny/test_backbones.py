"""The shipped backbones: they load by `from_pretrained`, do what their card says, and name no place of their making."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer

from visualchat.tiny import BACKBONES
from visualchat.tiny.pretraining.__main__ import SCORES
from visualchat.tiny.pretraining.card import card
from visualchat.tiny.pretraining.language import score_language
from visualchat.tiny.pretraining.recipes import RECIPES
from visualchat.tiny.pretraining.tokenizer import train_tokenizer
from visualchat.tiny.pretraining.vision import pixels_of
from visualchat.tiny.scenes import draw, random_scene

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("language_causal", "language_mixed", "language_hops")


def test_vision_tower_gives_16_tokens_of_width_96():
    tower = AutoModel.from_pretrained(BACKBONES / "vision").eval()
    processor = AutoImageProcessor.from_pretrained(BACKBONES / "vision")
    scenes = [random_scene(seed) for seed in range(3)]
    pixels = processor(images=[draw(scene) for scene in scenes], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, pixels_of(scenes))
    with torch.no_grad():
        states = tower(pixels).last_hidden_state
    assert states.shape == (3, 16, 96)
    assert states.dtype == torch.float32


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_models_answer_from_captions(name):
    model = AutoModelForCausalLM.from_pretrained(BACKBONES / name).eval()
    tokenizer = AutoTokenizer.from_pretrained(BACKBONES / name)
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size
    recorded = json.loads((BACKBONES / SCORES).read_text())[name]["scores"]
    hops = RECIPES[name].hops
    for split in ("validation", "unseen"):
        found = score_language(model, tokenizer, "text", "causal", split, hops=hops)["all"]["exact"]
        assert found > (0.85 if hops else 0.95)
        # Another machine's sums may tip an answer or two of about 1200.
        assert found == pytest.approx(recorded[f"text, causal, {split}"]["all"]["exact"], abs=0.005)


def test_mixed_model_answers_from_folded_captions_with_mmca():
    model = AutoModelForCausalLM.from_pretrained(BACKBONES / "language_mixed").eval()
    tokenizer = AutoTokenizer.from_pretrained(BACKBONES / "language_mixed")
    assert score_language(model, tokenizer, "folded", "mmca", dialogues=60)["all"]["exact"] > 0.90


def test_the_one_for_hops_compares_images_that_it_reads_about():
    scores = json.loads((BACKBONES / SCORES).read_text())["language_hops"]["scores"]
    assert scores["text, causal, validation"]["kind"]["same"] >= 0.95


def test_the_table_of_the_documents_is_of_the_scores():
    scores = json.loads((BACKBONES / SCORES).read_text())
    table = (ROOT / "docs" / "tiny-world.md").read_text()
    for choice, name in (
        ("tiny_causal", "language_causal"),
        ("tiny", "language_mixed"),
        ("tiny_hops", "language_hops"),
    ):
        same = scores[name]["scores"]["text, causal, validation"]["kind"]["same"]
        assert re.search(rf"^\| `{choice}` \| .* \| {100 * same:.1f} \|$", table, re.MULTILINE)


@pytest.mark.parametrize("name", LANGUAGES)
def test_embedding_and_head_are_two_equal_matrices(name):
    model = AutoModelForCausalLM.from_pretrained(BACKBONES / name)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    torch.testing.assert_close(model.lm_head.weight, model.model.embed_tokens.weight, rtol=0, atol=0)


@pytest.mark.parametrize("name", LANGUAGES)
def test_tokenizer_is_the_one_that_the_code_trains(name):
    assert (
        AutoTokenizer.from_pretrained(BACKBONES / name).get_vocab() == train_tokenizer(RECIPES[name].hops).get_vocab()
    )


def test_generation_stops_at_the_end_token():
    model = AutoModelForCausalLM.from_pretrained(BACKBONES / "language_causal").eval()
    tokenizer = AutoTokenizer.from_pretrained(BACKBONES / "language_causal")
    prompt = (
        "<s>Answer questions about the images.\n\n### Image 1:\na red circle top-left\n\n"
        "### Question:\nWhat colour is the circle?\n\n### Answer:\n"
    )
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    out = model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    assert tokenizer.decode(out) == "red</s>"


def test_files_are_small_and_name_no_place():
    files = [path for path in BACKBONES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6
    for path in files:
        if path.suffix in (".json", ".md"):
            text = path.read_text()
            assert "name_or_path" not in text, path
            assert not any(root in text for root in ("/tmp", "/home", "/root", "/work", "/Users")), path


def test_card_is_written_from_the_scores():
    scores = json.loads((BACKBONES / SCORES).read_text())
    assert (BACKBONES / "README.md").read_text() == card(scores)
    assert scores["vision"]["scores"]["colour"] > 0.985
    assert scores["vision"]["scores"]["shape"] > 0.985
    assert scores["vision"]["scores"]["count"] > 0.99


def test_random_scenes_are_new_every_time():
    rng = random.Random(0)
    seeds = [rng.getrandbits(32) for _ in range(50)]
    assert len({random_scene(seed) for seed in seeds}) == 50

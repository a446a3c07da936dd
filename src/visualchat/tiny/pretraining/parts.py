"""The parts of the tiny world's backbones, each made in a process of its own."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from visualchat.tiny.pretraining import OnStep
from visualchat.tiny.pretraining.language import score_language, train_language
from visualchat.tiny.pretraining.recipes import RECIPES
from visualchat.tiny.pretraining.tokenizer import train_tokenizer
from visualchat.tiny.pretraining.vision import VisionRecipe, image_processor, train_vision


def make_tokenizer(out: Path) -> None:
    """Train the tokenizers, of plain dialogues and of those with hops, and save each in its language folders."""
    tokenizers = {hops: train_tokenizer(hops) for hops in (False, True)}
    for name in RECIPES:
        tokenizers[RECIPES[name].hops].save_pretrained(out / name)


def make_vision(out: Path, seed: int, on_step: OnStep) -> dict[str, Any]:
    """Train and save the vision tower with its image processor; returns its scores."""
    tower, scores = train_vision(VisionRecipe(), seed, on_step)
    save_half(tower, out / "vision")
    image_processor().save_pretrained(out / "vision")
    return {"parameters": sum(p.numel() for p in tower.parameters()), "scores": scores}


def make_language(name: str, out: Path, seed: int, on_step: OnStep) -> dict[str, Any]:
    """Train, untie and save one language model beside its tokenizer; returns its scores on (folded) captions."""
    recipe = RECIPES[name]
    if not (out / name / "tokenizer.json").exists():
        train_tokenizer(recipe.hops).save_pretrained(out / name)
    tokenizer = AutoTokenizer.from_pretrained(out / name)
    start = out / recipe.start if recipe.start else None
    checkpoint = out / f"{name}.checkpoint"
    model = untied(train_language(recipe, tokenizer, seed, on_step, start, checkpoint))
    save_half(model, out / name)
    model = LlamaForCausalLM.from_pretrained(
        out / name, dtype=torch.float32
    ).eval()  # what is scored is what is shipped
    scores = {}
    for form, kind in dict.fromkeys(recipe.course):
        for split in ("validation", "unseen"):
            found = score_language(model, tokenizer, form, kind, split, hops=recipe.hops)
            scores[f"{form}, {kind}, {split}"] = found
    checkpoint.unlink(missing_ok=True)
    return {"parameters": sum(p.numel() for p in model.parameters()), "scores": scores}


def untied(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """The same model with a head of its own, so that the embedding can be tuned alone."""
    config = LlamaConfig(**{**model.config.to_dict(), "tie_word_embeddings": False})
    copy = LlamaForCausalLM(config)
    copy.load_state_dict(model.state_dict())
    return copy


def save_half(model: PreTrainedModel, folder: Path) -> None:
    """Save weights in float16 under a configuration that asks for float32, so that a plain load computes in float32."""
    model.half().save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def end_with_the_command() -> None:
    """Let this process end when the one that started it does, however that ends."""
    command = multiprocessing.parent_process()
    assert command is not None, "for a process that multiprocessing started"

    def watch() -> None:
        command.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def train_part(name: str, out: Path, seed: int, messages: Any) -> dict[str, Any]:
    """Train one part and send its progress through a queue; for a process of its own.

    Args:
        name: "vision" or a recipe's.
        out: The folder of all parts.
        seed: Decides weights and data.
        messages: The queue, of (name, steps done, steps in all, loss).

    Returns:
        What the score file keeps of it.
    """
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    last = 0.0

    def on_step(done: int, total: int, loss: float) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > 1:
            last = time.monotonic()
            messages.put((name, done, total, loss))

    start = time.monotonic()
    result = make_vision(out, seed, on_step) if name == "vision" else make_language(name, out, seed, on_step)
    return {**result, "seed": seed, "seconds": round(time.monotonic() - start)}

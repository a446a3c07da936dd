"""Pretraining of the tiny language models: an induction warm-up, then dialogues in words, without a single pixel.

`language_causal` sees captions under causal attention only. `language_mixed` also sees folded captions, under the
paper's multi-modal causal attention (arXiv 2309.14327, section 4.1) and under causal attention.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from visualchat.attention import implementation_name
from visualchat.dialogue.encoding import IGNORE_INDEX, Modality
from visualchat.evaluation.exact_match import correct_answers
from visualchat.tiny.dialogues import Sketch, Split, TinyDialogues, sketch_dialogue
from visualchat.tiny.hop_dialogues import MOST_IMAGES, HopDialogues, sketch_hops
from visualchat.tiny.pretraining import OnStep
from visualchat.tiny.pretraining.growing import grow
from visualchat.tiny.pretraining.hints import Hint, hint_loss
from visualchat.tiny.pretraining.language_data import (
    Form,
    Item,
    TextBatch,
    bucketed,
    collate,
    copy_batch,
    encode_sketch,
)
from visualchat.tiny.pretraining.recipes import LanguageRecipe

HEAD_SIZE = 32
CHECKPOINT_EVERY = 50  # steps
POOL = 8  # batches' worth of dialogues that are sorted by length together


def language_config(tokenizer: PreTrainedTokenizerBase, recipe: LanguageRecipe) -> LlamaConfig:
    """The architecture: a LLaMA; embedding and head are tied in pretraining."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        head_dim=HEAD_SIZE,
        intermediate_size=3 * recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.width // HEAD_SIZE,
        num_key_value_heads=recipe.width // HEAD_SIZE,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
        initializer_range=0.06,
    )


def embed(model: LlamaForCausalLM, batch: TextBatch, noise: float = 0.0) -> Tensor:
    """Embeddings [B, S, D] of a batch, folded captions spliced in at their slots.

    Args:
        model: The language model.
        batch: What `collate` gave.
        noise: Spread of the noise added to folded captions, in units of the embedding's root mean square.
    """
    embeds = model.model.embed_tokens(batch.input_ids)
    if not len(batch.words):
        return embeds
    slots = (batch.mm_token_type_ids == int(Modality.IMAGE)).unsqueeze(-1)
    return embeds.masked_scatter(slots, _folded(model, batch.words, noise))


def _folded(model: LlamaForCausalLM, words: Tensor, noise: float) -> Tensor:
    """The sums of the embeddings of words [N, W], padding left out, with noise: [N, D]."""
    embedding = model.model.embed_tokens
    known = words.ne(embedding.padding_idx).unsqueeze(-1)
    folded = (embedding(words) * known).sum(dim=1)
    spread = embedding.weight.detach().square().mean().sqrt()
    return folded + noise * spread * torch.randn_like(folded)


def forward(model: LlamaForCausalLM, embeds: Tensor, batch: TextBatch, kind: str) -> Tensor:
    """Logits [B, S, vocabulary] of an embedded batch under an attention kind, to which the model is switched."""
    model.set_attn_implementation(implementation_name(kind))
    # Rows are padded on the right, so that causal attention needs no mask for it, which is quicker.
    inputs = {"inputs_embeds": embeds, "attention_mask": None if kind == "causal" else batch.attention_mask}
    return model(**inputs, key_modality=batch.mm_token_type_ids, use_cache=False).logits


def forward_hinted(
    model: LlamaForCausalLM, embeds: Tensor, attention_mask: Tensor | None, hints: Sequence[Sequence[Hint]]
) -> tuple[Tensor, Tensor]:
    """Logits under causal attention, and the loss of the hints."""
    model.set_attn_implementation("eager")  # the one that returns its weights
    output = model(inputs_embeds=embeds, attention_mask=attention_mask, use_cache=False, output_attentions=True)
    return output.logits, hint_loss(output.attentions, hints)


def train_language(
    recipe: LanguageRecipe,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    on_step: OnStep = lambda done, total, loss: None,
    start: Path | None = None,
    checkpoint: Path | None = None,
) -> LlamaForCausalLM:
    """Train a language model: strings to copy unless it grows from another one, then dialogues over all compositions.

    Args:
        recipe: Steps, rates and course.
        tokenizer: The tiny world's tokenizer.
        seed: Decides weights and data.
        on_step: Called after each step with steps done, steps in all and the loss.
        start: The folder of the model that `recipe.start` names, where it names one.
        checkpoint: A file that keeps how far the dialogues are; where there is one, training resumes from it.

    Returns:
        The model in evaluation mode, embedding and head still tied.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(language_config(tokenizer, recipe))
    copy_steps = 0 if start else recipe.copy_steps
    if start:
        smaller = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
        grow(model, tokenizer, smaller, AutoTokenizer.from_pretrained(start))
    optimizer = _Optimizer(model, recipe.learning_rate, recipe.steps, recipe.warmup_share, recipe.decay_share)
    done = optimizer.resume(checkpoint)
    if not done:
        _learn_to_copy(model, recipe, tokenizer, seed, copy_steps, on_step)
    for step, (batch, kind) in enumerate(_dialogue_batches(recipe, tokenizer, seed), start=1):
        if step <= done:
            continue
        hints = [item.hints for item in batch.items]
        embeds = embed(model, batch, recipe.noise)
        if step <= recipe.hinted_share * recipe.steps and kind == "causal" and any(hints):
            logits, hint = forward_hinted(model, embeds, None, hints)
        else:
            logits, hint = forward(model, embeds, batch, kind), torch.zeros(())
        loss = _dialogue_loss(logits, batch, recipe.other_weight)
        optimizer.step(loss + recipe.hint_weight * hint)
        if step % CHECKPOINT_EVERY == 0:
            optimizer.save(checkpoint, step)
        on_step(copy_steps + step, copy_steps + recipe.steps, loss.item())
    return model.eval()


def _learn_to_copy(
    model: LlamaForCausalLM,
    recipe: LanguageRecipe,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    steps: int,
    on_step: OnStep,
) -> None:
    """The warm-up on strings to copy."""
    optimizer = _Optimizer(model, recipe.copy_rate, max(1, steps))
    for step, (ids, labels, hints) in enumerate(_copy_batches(recipe, tokenizer, seed, steps), start=1):
        logits, hint = forward_hinted(model, model.model.embed_tokens(ids), None, hints)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.step(loss + recipe.hint_weight * hint)
        on_step(step, steps + recipe.steps, loss.item())


class _Optimizer:
    """AdamW with a linear warm-up, then a constant rate, which falls to zero by a cosine at the end.

    Args:
        model: What trains.
        rate: The constant rate.
        steps: All of them.
        warmup: The share of the steps in which the rate rises.
        decay: The share of the steps, at the end, in which it falls.
    """

    def __init__(self, model: nn.Module, rate: float, steps: int, warmup: float = 0.05, decay: float = 1.0) -> None:
        self.model = model
        self.adam = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)

        def share(step: int) -> float:
            falling = max(0.0, (step - (1 - decay) * steps) / (decay * steps))
            return min(1.0, (step + 1) / (warmup * steps)) * 0.5 * (1 + math.cos(math.pi * falling))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.adam, share)

    def step(self, loss: Tensor) -> None:
        """One update from a loss."""
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.adam.step()
        self.schedule.step()

    def save(self, path: Path | None, step: int) -> None:
        """Keep in a file all that the next step depends on."""
        if path is None:
            return
        states = [part.state_dict() for part in (self.model, self.adam, self.schedule)]
        torch.save((step, states, torch.get_rng_state()), path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def resume(self, path: Path | None) -> int:
        """Go back to what a file kept; returns its step, or 0 where there is none."""
        if path is None or not path.exists():
            return 0
        step, states, rng = torch.load(path)
        self.model.load_state_dict(states[0])
        self.adam.load_state_dict(states[1])
        self.schedule.load_state_dict(states[2])
        torch.set_rng_state(rng)
        return int(step)


def _copy_batches(
    recipe: LanguageRecipe, tokenizer: PreTrainedTokenizerBase, seed: int, steps: int
) -> Iterator[tuple[Tensor, Tensor, list[tuple[Hint, ...]]]]:
    """Strings to copy, of the tokens that the world uses."""
    rng = random.Random(f"strings to copy {seed}")
    sketches = [_sketch(recipe, seed, index) for index in range(300)]
    used = {token for s in sketches for token in encode_sketch(s, tokenizer, "text", rng).encoding.input_ids}
    tokens = sorted(used - set(tokenizer.all_special_ids))
    for _ in range(steps):
        yield copy_batch(rng, recipe.copy_batch_size, tokens, tokenizer.bos_token_id)


def _dialogue_batches(
    recipe: LanguageRecipe, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Iterator[tuple[TextBatch, str]]:
    """`recipe.steps` batches with their attention kind, in the course's order, dialogues of one image first."""
    rng = random.Random(f"dialogue batches {seed}")
    index = 0
    waiting: dict[Form, list[list[Item]]] = defaultdict(list)
    for step in range(recipe.steps):
        form, kind = recipe.course[step % len(recipe.course)]
        most = most_images(recipe, step / recipe.steps)
        if not waiting[form]:
            count = POOL * recipe.batch_size
            sketches = [_sketch(recipe, seed, index + i, most) for i in range(count)]
            index += count
            items = [encode_sketch(sketch, tokenizer, form, rng) for sketch in sketches]
            waiting[form] = list(bucketed(items, recipe.batch_size, rng))
        yield collate(waiting[form].pop(), tokenizer.pad_token_id), kind


def most_images(recipe: LanguageRecipe, progress: float) -> int:
    """Images of the longest dialogues at some share of the steps."""
    if progress < recipe.one_image_share:
        return 1
    return MOST_IMAGES if recipe.hops and progress >= recipe.one_image_share + recipe.few_images_share else 4


def _sketch(recipe: LanguageRecipe, seed: int, index: int, most_images: int = 4) -> Sketch:
    """A dialogue over all compositions."""
    if recipe.hops:
        return sketch_hops("pretraining", seed, index, (1, most_images), recipe.most_rounds)
    return sketch_dialogue("pretraining", seed, index, (1, most_images), recipe.most_rounds)


def _dialogue_loss(logits: Tensor, batch: TextBatch, other_weight: float) -> Tensor:
    """Mean loss of answer tokens, plus `other_weight` times that of all other text tokens that follow text or image."""
    answers = batch.labels[:, 1:]
    text = (batch.attention_mask[:, 1:] == 1) & (batch.mm_token_type_ids[:, 1:] == Modality.TEXT)
    others = batch.input_ids[:, 1:].masked_fill(~text | (answers != IGNORE_INDEX), IGNORE_INDEX)
    logits = logits[:, :-1].flatten(0, 1)
    return cross_entropy(logits, answers.flatten()) + other_weight * cross_entropy(logits, others.flatten())


@torch.no_grad()
def score_language(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    kind: str,
    split: Split = "validation",
    dialogues: int = 400,
    seed: int = 0,
    hops: bool = False,
) -> dict[str, dict[str, float]]:
    """Share of answers that greedy decoding would give exactly, from one teacher-forced pass.

    Returns:
        "all" (without "describe"), then by question type ("kind") and by number of images ("images", likewise).
    """
    rng = random.Random(f"score {seed}")
    data = (
        HopDialogues(split, dialogues, seed, images=(1, MOST_IMAGES)) if hops else TinyDialogues(split, dialogues, seed)
    )
    sketches = [data.sketch(index) for index in range(dialogues)]
    items = [encode_sketch(sketch, tokenizer, form, rng) for sketch in sketches]
    results: list[tuple[str, int, bool]] = []
    for chunk in bucketed(items, 50, rng):
        batch = collate(chunk, tokenizer.pad_token_id)
        results += exact_matches(forward(model, embed(model, batch), batch, kind), batch.labels, chunk)
    return summarise(results)


def exact_matches(logits: Tensor, labels: Tensor, items: Sequence[Item]) -> list[tuple[str, int, bool]]:
    """For every answer its question type, the dialogue's number of images, and whether each token is the likeliest one.

    Args:
        logits: [B, S, vocabulary].
        labels: [B, S], `IGNORE_INDEX` outside answers.
        items: The dialogues of the batch.
    """
    exact = correct_answers(logits[:, :-1][labels[:, 1:] != IGNORE_INDEX], labels)
    asked = [(kind, item.images) for item in items for kind in item.kinds]
    return [(kind, images, right) for (kind, images), right in zip(asked, exact, strict=True)]


def summarise(results: Sequence[tuple[str, int, bool]]) -> dict[str, dict[str, float]]:
    """Mean exact match overall and by number of images (without "describe"), and by question type."""
    plain = [result for result in results if result[0] != "describe"]

    def mean(values: list[bool]) -> float:
        return round(sum(values) / max(1, len(values)), 4)

    return {
        "all": {"exact": mean([r[2] for r in plain]), "answers": len(plain)},
        "kind": {k: mean([r[2] for r in results if r[0] == k]) for k in sorted({r[0] for r in results})},
        "images": {str(n): mean([r[2] for r in plain if r[1] == n]) for n in sorted({r[1] for r in plain})},
    }

"""How each language model of the tiny world is pretrained: architecture, course, steps and rates."""

from __future__ import annotations

from dataclasses import dataclass, replace

from visualchat.tiny.pretraining.language_data import Form

Course = tuple[tuple[Form, str], ...]
"""Forms and attention kinds that take turns, batch by batch."""

CAUSAL_COURSE: Course = (("text", "causal"),)
MIXED_COURSE: Course = (
    ("text", "causal"),
    ("folded", "mmca"),
    ("text", "causal"),
    ("folded", "mmca"),
    ("folded", "causal"),
)


@dataclass(frozen=True)
class LanguageRecipe:
    """How a language model is trained.

    Attributes:
        course: What tells the causal models from the mixed ones.
        start: The smaller language model to grow from, without a warm-up; empty for none.
        hops: Whether the dialogues are those with hops (`visualchat.tiny.hops`).
        layers: Of the model.
        width: Of the model, which has a head for every 32 dimensions.
        copy_steps: Steps of the warm-up on strings to copy.
        copy_batch_size: Strings a step.
        copy_rate: Learning rate of the warm-up.
        steps: Steps on dialogues.
        batch_size: Dialogues a step.
        learning_rate: Learning rate on dialogues.
        warmup_share: Share of the steps in which the learning rate rises.
        decay_share: Share of the steps, at the end, in which it falls to zero.
        one_image_share: Share of the steps, at the start, with dialogues of one image only.
        few_images_share: Share of the steps, after these, with at most four; the plain dialogues have no more.
        hinted_share: Share of the steps, at the start, with hints (under causal attention).
        hint_weight: Weight of the loss of hints, on strings and dialogues.
        other_weight: Weight of the loss of text that is not an answer.
        noise: Spread of the noise on folded captions, in units of the embedding's root mean square.
        most_rounds: Rounds of the longest dialogues; more than later, for more answers a token.
    """

    course: Course
    start: str = ""
    hops: bool = False
    layers: int = 4
    width: int = 128
    copy_steps: int = 450
    copy_batch_size: int = 32
    copy_rate: float = 3e-3
    steps: int = 2500
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_share: float = 0.05
    decay_share: float = 1.0
    one_image_share: float = 0.12
    few_images_share: float = 0.4
    hinted_share: float = 0.4
    hint_weight: float = 0.3
    other_weight: float = 0.1
    noise: float = 0.2
    most_rounds: int = 8


_HOPS = LanguageRecipe(
    CAUSAL_COURSE,
    start="language_causal",
    hops=True,
    layers=6,
    steps=8000,
    batch_size=8,
    learning_rate=1.5e-3,
    warmup_share=0.02,
    decay_share=0.35,
    one_image_share=0.0,
    few_images_share=0.45,
    hinted_share=0.6,
    most_rounds=16,
)

RECIPES = {
    "language_causal": LanguageRecipe(CAUSAL_COURSE, steps=3000),
    "language_mixed": LanguageRecipe(MIXED_COURSE, steps=4500),
    "language_hops": _HOPS,
    "language_hops_mixed": replace(_HOPS, course=MIXED_COURSE, start="language_mixed"),
    "language_hops_wide": replace(_HOPS, start="language_hops", width=192, steps=2000, hinted_share=0.0),
}
"""The recipe of each shipped language model."""

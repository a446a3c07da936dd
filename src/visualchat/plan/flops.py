"""Floating-point operations (FLOPs) of a dialogue, forward and backward, and the days that a run of them takes.

Shapes: T text tokens of a row, I image tokens in N images of P tokens each, S = T + I.
"""

from __future__ import annotations

from dataclasses import dataclass

from visualchat.attention import KINDS
from visualchat.plan.machine import Machine
from visualchat.plan.shapes import Sizes
from visualchat.plan.workload import Workload


def attention_pairs(kind: str, text: float, images: float, image_tokens: int) -> float:
    """Pairs of query and key that a layer computes for one dialogue, if its images arrive evenly spread.

    For `mmca` and its like an image token computes none; one that sees its own image or unit counts that square.
    """
    total = text + images * image_tokens
    before = text * image_tokens * images * (images + 1) / (2 * max(images, 1.0))  # the text after an image sees it
    if kind == "cross":
        return text * text / 2
    if kind not in KINDS or KINDS[kind].image_context in ("all", "text"):
        return total * total / 2
    within = 0.0 if KINDS[kind].image_context == "self" else images * image_tokens**2
    return text * text / 2 + before + within


@dataclass(frozen=True)
class Flops:
    """FLOPs of one dialogue, forward and backward, by part."""

    vision: float
    projector: float
    linear: float
    attention: float
    head: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.linear + self.attention + self.head + self.recomputed


def flops(
    sizes: Sizes, workload: Workload, kind: str, *, checkpointing: bool, early: tuple[str, float] | None = None
) -> Flops:
    """FLOPs of the mean dialogue.

    A linear map costs 2 a weight and token forward and as many for its input's gradient; for its weight's gradient only
    where it trains. Attention costs 4 D a pair and head forward and 2.5 times that backward (its scores are computed
    again). The frozen vision encoder has no backward pass. `early` names the kind of the first layers and their share.
    """
    images = workload.images
    image_tokens = images * sizes.image_tokens
    tokens = workload.text + (images if kind == "cross" else image_tokens)
    vision = images * sizes.vision_flops * (2 if sizes.vision_trained else 1)
    vision += 2 * images * sizes.patches * sizes.vision_trained
    projector = 2 * sizes.projector_linear * image_tokens * (3 if sizes.vision_trained else 2)
    pairs = attention_pairs(kind, workload.text, images, sizes.image_tokens)
    if early is not None:
        pairs += early[1] * (attention_pairs(early[0], workload.text, images, sizes.image_tokens) - pairs)
    attention = 4 * sizes.layers * sizes.heads * sizes.head_size * pairs
    linear = 2 * sizes.linear * tokens
    if kind == "cross":  # its maps train; text reads the images before it
        cross_pairs = workload.text * image_tokens * (images + 1) / (2 * max(images, 1.0))
        attention += 4 * sizes.cross_layers * sizes.hidden * cross_pairs
        trained = sizes.linear_trained * tokens + sizes.cross_linear * tokens
        linear += 2 * sizes.cross_linear * tokens
    else:
        trained = sizes.linear_trained * tokens
    head = 4 * sizes.vocabulary * sizes.hidden * workload.answers
    not_again = 2 * sizes.layers * sizes.hidden * sizes.feed_forward * tokens  # a layer's last map: nothing needs it
    recomputed = linear - not_again + attention if checkpointing else 0.0
    return Flops(vision, projector, 2 * linear + 2 * trained, 3.5 * attention, head, recomputed)


def days(total: float, machine: Machine) -> float:
    """Days of computing so many FLOPs."""
    return total / (machine.gpus * machine.peak_tflops * 1e12 * machine.utilisation) / 86_400

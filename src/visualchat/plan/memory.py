"""What a training step keeps on each GPU, by part and strategy.

Formulas, each held against real tensors by a test where a CPU can: bytes a token and layer of a LLaMA-like decoder are
counted from what its backward pass needs. A frozen linear map keeps no input; a norm keeps its input in fp32; attention
keeps query, key, value and output; a gated MLP keeps gate, activation and up.

Letters: E hidden size, D head size, Hq and Hkv heads of queries and keys, F width of the MLP, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from visualchat.model.loss import CHUNK
from visualchat.model.parameters import Part, PartSize
from visualchat.plan.shapes import Sizes

Place = Literal["gpu", "cpu", "nvme"]

LIVE_ELEMENTS = 1_000_000_000
"""What ZeRO-3 holds gathered at most: `stage3_max_live_parameters` in conf/trainer/strategy/zero3.yaml."""

QUANTISED_BITS = {8: 8.0, 4: 4.5}
"""Bits a weight of the language layers takes quantised: NF4 has one fp32 scale to 64 weights."""

QUANTISED_NAME = {8: "int8", 4: "nf4"}
"""How such weights are called."""


@dataclass(frozen=True)
class Strategy:
    """How a strategy shards what a run keeps.

    Attributes:
        shards: What is sharded over the ranks.
        weights_on: Where the weights rest.
        optimizer_on: Where masters, moments and gradients rest.
        gathers_layers: Whether split weights are gathered by whole layers, two at a time, not up to `LIVE_ELEMENTS`.
    """

    shards: frozenset[Literal["weights", "gradients", "optimizer"]] = frozenset()
    weights_on: Place = "gpu"
    optimizer_on: Place = "gpu"
    gathers_layers: bool = False


STRATEGIES: dict[str, Strategy] = {
    "auto": Strategy(),
    "ddp": Strategy(),
    "zero1": Strategy(frozenset({"optimizer"})),
    "zero2": Strategy(frozenset({"optimizer", "gradients"})),
    "fsdp2": Strategy(frozenset({"optimizer", "gradients", "weights"}), gathers_layers=True),
    "zero3": Strategy(frozenset({"optimizer", "gradients", "weights"})),
    "zero3_offload": Strategy(frozenset({"optimizer", "gradients", "weights"}), "cpu", "cpu"),
    "zero3_nvme": Strategy(frozenset({"optimizer", "gradients", "weights"}), "nvme", "nvme"),
}
"""By the names of conf/trainer/strategy, the fastest first among those that share more and more."""


@dataclass(frozen=True)
class Step:
    """One batch on one GPU.

    Attributes:
        rows: Rows of the batch.
        tokens: Tokens of a full row.
        images: Images of a full row.
        answers: Positions of a full row that predict an answer token.
        checkpointing: Whether each layer keeps only its input and is computed again in the backward pass.
    """

    rows: int
    tokens: int
    images: int
    answers: int
    checkpointing: bool


@dataclass(frozen=True)
class Memory:
    """Bytes by part on one GPU, and what one GPU's process keeps in CPU memory and on disk."""

    gpu: dict[str, float]
    cpu: float = 0.0
    nvme: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the GPU."""
        return sum(self.gpu.values())


def layer_activations(sizes: Sizes) -> int:
    """Bytes that one decoder layer keeps for one token's backward pass."""
    element = sizes.element
    attention = (2 * sizes.heads + 2 * sizes.key_heads) * sizes.head_size * element + 4 * sizes.heads
    norms = 2 * (4 * sizes.hidden + 4)
    mlp = 3 * sizes.feed_forward * element
    inputs = (2 * sizes.hidden + sizes.heads * sizes.head_size + sizes.feed_forward) * element
    return attention + norms + mlp + (inputs if sizes.linear_trained else 0)


def kept_activations(sizes: Sizes, step: Step) -> int:
    """Bytes that the language model keeps from its forward pass; every layer's input alone with checkpointing.

    A gated cross-attention layer keeps an attention and an MLP of width 4E with the inputs of its maps, which train.
    """
    tokens = step.rows * step.tokens
    last_norm = tokens * (4 * sizes.hidden + 4)
    if step.checkpointing:
        return tokens * sizes.layers * sizes.hidden * sizes.element + last_norm
    rotary = 2 * step.tokens * sizes.head_size * sizes.element
    cross_attention = sizes.cross_layers * tokens * 20 * sizes.hidden * sizes.element
    return sizes.layers * tokens * layer_activations(sizes) + cross_attention + rotary + last_norm


def activations(sizes: Sizes, step: Step) -> int:
    """Bytes of the language model's activations at the peak: what is kept, and with checkpointing one layer at work."""
    at_work = step.rows * step.tokens * (layer_activations(sizes) + (20 * sizes.hidden if sizes.cross_layers else 0))
    return kept_activations(sizes, step) + (at_work if step.checkpointing else 0)


def vision_activations(sizes: Sizes, step: Step) -> int:
    """Bytes in the vision encoder: one layer at work where it is frozen, all of them where something in it trains."""
    tokens = step.rows * step.images * sizes.patches
    layer = tokens * (6 * sizes.vision_hidden + 2 * sizes.vision_feed_forward) * sizes.element
    return layer * (sizes.vision_layers if sizes.vision_trained else 1)


def logits(sizes: Sizes, step: Step, whole: bool) -> int:
    """Bytes of the answer rows' logits: in the weights' type, in fp32, their log-softmax and their gradient.

    A chunk of them at a time (`visualchat.model.loss`), beside which the gradient of all rows is kept in fp32; `whole`
    where the head trains or is split over the ranks.
    """
    rows = step.rows * step.answers
    row = sizes.vocabulary * (12 + (sizes.element if sizes.element != 4 else 0))
    if whole:
        return rows * row
    return min(rows, max(1, CHUNK // sizes.vocabulary)) * row + rows * sizes.hidden * 4


def held_parts(sizes: Sizes, base_bits: int | None) -> list[PartSize]:
    """The model's parts as a GPU holds them, the frozen language layers quantised to so many bits if asked."""
    if base_bits is None:
        return [*sizes.parts]
    return [_quantised(size, base_bits) if size.part is Part.LANGUAGE else size for size in sizes.parts]


def _quantised(size: PartSize, bits: int) -> PartSize:
    frozen = (size.parameters - size.trainable) * QUANTISED_BITS[bits] / 8
    dtypes = (QUANTISED_NAME[bits], *size.dtypes) if size.trainable else (QUANTISED_NAME[bits],)
    return replace(size, dtypes=dtypes, bytes=size.trainable_bytes + round(frozen))


def weight_bytes(sizes: Sizes, base_bits: int | None) -> int:
    """Bytes of all weights as a GPU holds them."""
    return sum(size.bytes for size in held_parts(sizes, base_bits))


def estimate(
    sizes: Sizes, strategy: Strategy, gpus: int, step: Step, *, base_bits: int | None = None, reserve: float = 0.0
) -> Memory:
    """What a step keeps on each GPU at its peak.

    Args:
        sizes: Of the model.
        strategy: How it is sharded.
        gpus: Over how many.
        step: The batch on each.
        base_bits: 8 or 4 for quantised language layers.
        reserve: Bytes for what no formula counts: CUDA's context, buffers of communication, fragments.
    """
    assert gpus >= 1

    def share(what: Literal["weights", "gradients", "optimizer"], amount: float) -> float:
        return amount / gpus if what in strategy.shards else amount

    weights = share("weights", weight_bytes(sizes, base_bits))
    sixteen = sizes.trained_bytes < 4 * sizes.trained
    masters = share("optimizer", 4.0 * sizes.trained) if sixteen else 0.0
    gradients = share("gradients", sizes.trained_bytes) + masters  # a step works on fp32 copies of its share
    moments = share("optimizer", 2.0 * 4 * sizes.trained)
    gpu = {"weights": weights if strategy.weights_on == "gpu" else 0.0}
    if "weights" in strategy.shards:
        whole = 2 * sizes.layer_bytes if strategy.gathers_layers else LIVE_ELEMENTS * sizes.element
        gpu["gathered weights"] = float(min(whole, sizes.weights))
    resting = {"fp32 masters": masters, "gradients": gradients, "optimizer (two moments)": moments}
    gpu |= {name: amount if strategy.optimizer_on == "gpu" else 0.0 for name, amount in resting.items()}
    gpu["activations, language"] = activations(sizes, step)
    gpu["activations, vision"] = vision_activations(sizes, step)
    head_trains = any(size.trainable for size in sizes.parts if size.part is Part.HEAD)
    gpu["logits of answers"] = logits(sizes, step, whole=head_trains or "weights" in strategy.shards)
    gpu["reserve"] = reserve
    away = {"gpu": 0.0, "cpu": 0.0, "nvme": 0.0}
    away[strategy.weights_on] += weights
    away[strategy.optimizer_on] += sum(resting.values())
    return Memory(gpu, away["cpu"], away["nvme"])

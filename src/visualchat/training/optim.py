"""AdamW with warm-up and cosine, as the paper has them (arXiv 2309.14327, section 5.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import lightning
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.trainable import NEW_PARTS, parameters_by_part


@dataclass(frozen=True)
class OptimizerSettings:
    """How the trained parts move.

    Attributes:
        learning_rate: Peak of all that is new: projector and adapters.
        embedding_learning_rate: Peak of the token embedding; as `learning_rate` if None.
        backbone_learning_rate: Peak of a backbone that trains as a whole; as `learning_rate` if None.
        betas: AdamW's; (0.0, 0.95) in the paper.
        weight_decay: AdamW's.
        warmup_fraction: Share of all steps over which the rate rises from 0 in a line; it falls to 0 by a cosine after
            that.
    """

    learning_rate: float = 1e-3
    embedding_learning_rate: float | None = None
    backbone_learning_rate: float | None = None
    betas: tuple[float, float] = (0.0, 0.95)
    weight_decay: float = 0.0
    warmup_fraction: float = 0.1


def build_optimizer(
    settings: OptimizerSettings, model: VisualChatForConditionalGeneration, mixed_precision: bool = False
) -> AdamW:
    """AdamW over the parameters that require gradients, in a group each: `new`, `embedding`, `backbone`.

    Args:
        settings: How they move.
        model: Whose they are.
        mixed_precision: Whether the trainer's precision is a mixed one.

    Raises:
        ValueError: Nothing trains.
    """
    groups: dict[str, list[nn.Parameter]] = {"new": [], "embedding": [], "backbone": []}
    for part, parameters in parameters_by_part(model).items():
        group = "new" if part in NEW_PARTS else "embedding" if part == "token embedding" else "backbone"
        groups[group] += [parameter for parameter in parameters if parameter.requires_grad]
    if not any(groups.values()):
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    rates = {"embedding": settings.embedding_learning_rate, "backbone": settings.backbone_learning_rate}
    # One pass over memory on a CPU instead of six. Under mixed precision Lightning refuses to clip before a fused step.
    on_cpu = all(type(p) is nn.Parameter and p.device.type == "cpu" for group in groups.values() for p in group)
    fused = on_cpu and not mixed_precision
    return AdamW(
        [
            {"params": group, "lr": settings.learning_rate if rates.get(name) is None else rates[name], "name": name}
            for name, group in groups.items()
            if group
        ],
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=fused or None,
    )


def warmup_cosine(optimizer: AdamW, steps: int, warmup_fraction: float) -> LambdaLR:
    """Rate factor after s of `steps` optimizer steps: a line up to 1, then half a cosine down to 0."""
    warmup = max(1, round(steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return LambdaLR(optimizer, factor)


def optimizer_steps(trainer: lightning.Trainer, batches: int) -> int:
    """Optimizer steps of the whole run, from the trainer's limits and the batches of an epoch on each rank.

    Lightning's own `estimated_stepping_batches` sets up the loaders early and so loses their state on resume (Lightning
    #20550).

    Raises:
        ValueError: The run has no end.
    """
    limit = trainer.limit_train_batches
    if isinstance(limit, float):
        batches = int(batches * limit)
    elif limit is not None:
        batches = min(batches, limit)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches)
    bounds = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        bounds.append(trainer.max_epochs * per_epoch)
    if trainer.max_steps >= 0:
        bounds.append(trainer.max_steps)
    if not bounds:
        raise ValueError("the learning rate needs an end: set trainer.max_epochs or trainer.max_steps")
    return min(bounds)

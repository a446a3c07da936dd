"""AdamW with linear warm-up and cosine decay, as the paper has them (arXiv 2309.14327, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR

from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.parameters import Part, parameters_by_part

RATES = {
    "new": "learning_rate",
    "embedding": "embedding_learning_rate",
    "adapters": "adapter_learning_rate",
    "backbone": "backbone_learning_rate",
}
"""The setting of each group's rate; a group whose setting is None has the rate of the first."""


@dataclass(frozen=True)
class OptimizerSettings:
    """The update rule of what trains: rates, and AdamW's own numbers.

    Attributes:
        learning_rate: Peak rate of newly initialised parameters: the projector, image numbers, cross-attention.
        embedding_learning_rate: Peak rate of the token embedding; as `learning_rate` if None.
        adapter_learning_rate: Peak rate of low-rank adapters beside a backbone; as `learning_rate` if None.
        backbone_learning_rate: Peak rate of a backbone that trains as a whole; as `learning_rate` if None.
        betas: AdamW's; (0.0, 0.95) in the paper.
        weight_decay: AdamW's.
        warmup_fraction: Share of all steps that are linear warm-up from 0; cosine decay to 0 follows.

    Raises:
        ValueError: A number is out of its range; torch looks at the rates of groups no more.
    """

    learning_rate: float = 1e-3
    embedding_learning_rate: float | None = None
    adapter_learning_rate: float | None = None
    backbone_learning_rate: float | None = None
    betas: tuple[float, float] = (0.0, 0.95)
    weight_decay: float = 0.0
    warmup_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in (*RATES.values(), "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"optimizer.{name}={value}: expected 0 or more")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"optimizer.warmup_fraction={self.warmup_fraction}: expected a share between 0 and 1")

    def rate(self, group: str) -> float:
        """The peak rate of a group of `RATES`."""
        own: float | None = getattr(self, RATES[group])
        return self.learning_rate if own is None else own

    def halved(self, groups: Iterable[str]) -> dict[str, float]:
        """Half of each rate that is set for these groups, and of the one that the others take, by the setting."""
        names = {"learning_rate", *(RATES[group] for group in groups)}
        return {
            name: getattr(self, name) / 2
            for name in RATES.values()
            if name in names and getattr(self, name) is not None
        }


class MasterAdamW(AdamW):
    """AdamW that updates fp32 masters of 16-bit parameters, with fp32 moments, and rounds them into the parameters.

    A bf16 number keeps 8 bits: a step smaller than 1/512 of it would round away, step after step. Parameters of more
    bits are updated as by torch's AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of what has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not updated:
                continue
            states = [self._state_of(parameter) for parameter in updated]
            masters = [state.get("master", parameter) for parameter, state in zip(updated, states, strict=True)]
            adamw(
                masters,
                [parameter.grad.to(master.dtype) for parameter, master in zip(updated, masters, strict=True)],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=group["fused"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for parameter, master in zip(updated, masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)
        return loss

    def _state_of(self, parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter, made at its first update."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            master = parameter
            if has_sixteen_bits(parameter):
                master = state["master"] = parameter.detach().to(torch.float32, copy=True)
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(master), torch.zeros_like(master)
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which rounds a state to its parameter's type, but masters and moments stay fp32."""
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, values in state_dict["state"].items():
            parameter = parameters[number]
            if has_sixteen_bits(parameter):
                self.state[parameter] |= {
                    name: value.to(parameter.device, torch.float32, copy=True)
                    for name, value in values.items()
                    if name != "step"
                }


def has_sixteen_bits(parameter: Tensor) -> bool:
    """Whether a parameter is one that small updates would not change."""
    return parameter.dtype in (torch.bfloat16, torch.float16)


def build_optimizer(
    settings: OptimizerSettings,
    model: VisualChatForConditionalGeneration,
    mixed_precision: bool = False,
    masters: bool = True,
) -> AdamW:
    """AdamW over the parameters that require gradients, in the groups of `RATES`.

    Args:
        settings: Their update rule.
        model: Whose they are.
        mixed_precision: Whether the trainer's precision is a mixed one.
        masters: Whether 16-bit parameters get fp32 masters; not where the strategy keeps its own.

    Raises:
        ValueError: Nothing trains.
    """
    groups = trained_groups(model)
    if not groups:
        raise ValueError("no parameter requires a gradient: there is nothing to train")
    # One pass over memory on a CPU instead of six. Under mixed precision Lightning refuses to clip before a fused step.
    on_cpu = all(type(p) is nn.Parameter and p.device.type == "cpu" for group in groups.values() for p in group)
    fused = on_cpu and not mixed_precision
    kind = MasterAdamW if masters and any(has_sixteen_bits(p) for group in groups.values() for p in group) else AdamW
    return kind(
        [{"params": group, "lr": settings.rate(name), "name": name} for name, group in groups.items()],
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        fused=fused or None,
    )


def trained_groups(model: VisualChatForConditionalGeneration) -> dict[str, list[nn.Parameter]]:
    """The parameters that require gradients, by their group of `RATES`; groups of none are left out."""
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in RATES}
    for part, parameters in parameters_by_part(model).items():
        groups[_group(part)] += [parameter for parameter in parameters if parameter.requires_grad]
    return {name: parameters for name, parameters in groups.items() if parameters}


def _group(part: Part) -> str:
    """The optimizer's group of a part."""
    if part is Part.EMBEDDING:
        return "embedding"
    if part is Part.ADAPTERS:
        return "adapters"
    return "new" if part.is_new else "backbone"


def warmup_cosine(optimizer: AdamW, steps: int, warmup_fraction: float) -> LambdaLR:
    """Rate factor after s of `steps` optimizer steps: linear warm-up to 1, then cosine decay to 0."""
    warmup = max(1, round(steps * warmup_fraction))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

    return LambdaLR(optimizer, factor)


GROUP_SETTINGS = ("initial_lr", "betas", "weight_decay")
"""What the settings say of a group of the optimizer, and a checkpoint would set back to what it was then."""


def group_settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What the settings say of each group; to be taken once its schedule is made."""
    return [{name: group[name] for name in GROUP_SETTINGS} for group in optimizer.param_groups]


def set_group_settings(optimizer: Optimizer, schedule: LambdaLR, settings: Sequence[Mapping[str, Any]]) -> None:
    """Let a resumed run train as its own settings say, from the step that the checkpoint has reached."""
    schedule.base_lrs = [group["initial_lr"] for group in settings]
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    for group, wanted, factor in zip(optimizer.param_groups, settings, factors, strict=True):
        group.update(wanted, lr=wanted["initial_lr"] * factor)


def training_steps(trainer: lightning.Trainer, batches: int) -> int:
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

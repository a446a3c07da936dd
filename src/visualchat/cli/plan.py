"""`visualchat-plan`: parameters, memory, tokens, steps and days of a run, before it is paid for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from visualchat.cli.combinations import check_combination
from visualchat.cli.config import check_attention, silence_libraries
from visualchat.cli.main import plan as main
from visualchat.model import VisualChatConfig, VisualChatForConditionalGeneration
from visualchat.model.trainable import set_trainable
from visualchat.plan.machine import machine_of
from visualchat.plan.measure import measured_workload
from visualchat.plan.report import show
from visualchat.plan.run import Plan, RunSettings, plan_run
from visualchat.plan.shapes import Architecture, meta_model, sizes_of
from visualchat.plan.workload import SETS, Workload, of_table


def architecture(node: DictConfig) -> Architecture:
    """A backbone's configuration: the values in its YAML, else its folder."""
    values = node.get("architecture")
    if values is not None:
        return OmegaConf.to_container(values, resolve=True)  # type: ignore[return-value]
    return located(node.path)


def located(path: DictConfig | str) -> str:
    """A folder or Hub name: as it stands, or what its `_target_` gives."""
    return path if isinstance(path, str) else instantiate(path)


def build_without_weights(config: DictConfig) -> VisualChatForConditionalGeneration:
    """The model of a training configuration on the meta device, with what trains."""
    known = {field: value for field, value in config.build_model.items() if field in VisualChatConfig.__annotations__}
    dtype = getattr(torch, config.dtype)
    model = meta_model(architecture(config.model.vision), architecture(config.model.language), dtype, **known)
    set_trainable(model, instantiate(config.model.trainable))
    return model


def find_workload(config: DictConfig, blend: str | None) -> Workload:
    """What an epoch of the configuration holds.

    Raises:
        ValueError: It can neither be looked up nor measured.
    """
    typed = {name: value for name, value in config.workload.items() if value is not None}
    if len(typed) == len(config.workload):
        return Workload(**typed, source="as given by workload.*")
    if blend in SETS:
        return replace(of_table(SETS[str(blend)], 1.0 - config.blend.validation), **typed)
    train, prompt = instantiate(config.data, processor=None).train, config.processor
    language = located(prompt.language)
    measured = measured_workload(train, language, prompt.system, prompt.template, prompt.image_seq_length)
    return replace(measured, **typed)


def make_plan(config: DictConfig, choices: dict[str, Any]) -> Plan:
    """Plan the run of a configuration; `choices` are Hydra's.

    Raises:
        ValueError: A name is unknown or a number makes no sense.
    """
    check_attention(config.attention)
    check_combination(config)
    trainer, data = config.trainer, config.data
    if trainer.max_epochs is None or trainer.max_epochs < 1:
        raise ValueError(f"a plan needs the number of epochs, found trainer.max_epochs={trainer.max_epochs}")
    settings = RunSettings(
        kind=config.attention.kind,
        strategy=choices["trainer/strategy"],
        checkpointing=bool(config.get("gradient_checkpointing", False)),
        bits=config.model.quantization.bits,
        batch_size=data.batch_size,
        accumulate=trainer.accumulate_grad_batches,
        epochs=trainer.max_epochs,
        max_length=data.max_length,
        packing=data.packing,
        early=(config.attention.early_kind, config.attention.early_share) if config.attention.early_kind else None,
    )
    machine = machine_of(
        config.gpu,
        config.gpus,
        trainer.get("num_nodes", 1),
        utilisation=config.utilisation,
        reserve=config.reserve,
        memory=config.gpu_memory,
        peak_tflops=config.peak_tflops,
    )
    sizes = sizes_of(build_without_weights(config))
    workload = find_workload(config, choices.get("data/blend"))
    return plan_run(title(choices), settings, sizes, machine, workload)


def title(choices: dict[str, Any]) -> str:
    """The run by its choices: its experiment and its data."""
    names = ("experiment", "scale", "data", "data/source", "data/blend")
    return ", ".join(f"{name}={choices[name]}" for name in names if choices.get(name))


def run(config: DictConfig) -> None:
    """The command."""
    silence_libraries()
    show(make_plan(config, dict(HydraConfig.get().runtime.choices)), Console())


if __name__ == "__main__":
    main()

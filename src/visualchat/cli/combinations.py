"""What cannot be trained together, told from the configuration alone, before anything is loaded."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

QUANTIZED_STRATEGIES = {8: "auto, ddp, zero1 or zero2", 4: "auto, ddp, zero1, zero2 or fsdp2"}
"""The trainer/strategy that can hold a language model of so many bits."""


TRUE_PRECISION = {"bf16-true": "bfloat16", "16-true": "float16", "64-true": "float64"}
"""The dtype to which the trainer would cast all weights, the frozen ones too."""


LEAST = {
    "trainer.gradient_clip_val": 0,  # torch would turn every gradient round
    "trainer.accumulate_grad_batches": 1,
    "model.trainable.lora_rank": 1,
    "evaluation.batch_size": 1,  # these are needed when training is over
    "evaluation.most": 1,
    "evaluation.samples": 0,
    "evaluation.max_new_tokens": 1,
}
"""The least that numbers may be of which other packages do not ask it, or too late."""


def check_combination(config: DictConfig) -> None:
    """Refuse weights of another type than the trainer's, quantized ones that the run cannot have, and batches overfit.

    And numbers below what is in `LEAST`, and the best model of a run that keeps no best checkpoint.

    Args:
        config: Of a training command, or of a plan of one.

    Raises:
        ValueError: It cannot be trained; says what can.
    """
    for name, least in LEAST.items():
        value = OmegaConf.select(config, name, throw_on_resolution_failure=False)
        if isinstance(value, int | float) and not value >= least:
            raise ValueError(f"{name}={value}: expected {least} or more")
    precision = OmegaConf.select(config, "trainer.precision")
    held = TRUE_PRECISION.get(str(precision), config.dtype)
    if held != config.dtype:  # a cast base would not be the one that its checkpoints name
        raise ValueError(
            f"trainer.precision={precision} trains weights of {held}, found dtype={config.dtype}: choose dtype={held}"
        )
    if overfit := OmegaConf.select(config, "trainer.overfit_batches"):  # it wants a data set of rows in a fixed order
        raise ValueError(
            f"trainer.overfit_batches={overfit} is not supported: each epoch's batches are planned. Train on few rows "
            "instead, by data.train.size=8 in the tiny world or source.files= that name a small file"
        )
    of_images = OmegaConf.select(config, "model.trainable.language") == "lora_images"
    if of_images and (save := OmegaConf.select(config, "save") or "light") != "light":
        raise ValueError(f"adapters of image tokens alone cannot be merged: choose save=light, found save={save}")
    if OmegaConf.select(config, "load_best_model_at_end"):
        lacking = [name for name in ("callbacks.checkpoint", "data.validation") if not OmegaConf.select(config, name)]
        if lacking or OmegaConf.select(config, "trainer.fast_dev_run"):
            lacks = f"found {lacking[0]}=null" if lacking else "a run with trainer.fast_dev_run keeps no checkpoint"
            raise ValueError(f"load_best_model_at_end=true takes the checkpoint of the best validation: {lacks}")
    bits = config.model.quantization.bits
    if not bits:
        return
    split = _splits_weights(OmegaConf.select(config, "trainer.strategy"))
    if split == "ZeRO-3" or (split == "FSDP2" and bits == 8):
        raise ValueError(
            f"{split} cannot split a language model of {bits} bits over the processes: with model/quantization choose "
            f"trainer/strategy={QUANTIZED_STRATEGIES.get(bits, 'auto or ddp')}, or model/quantization=none"
        )
    if OmegaConf.select(config, "model.trainable.language") == "full":
        raise ValueError(
            "a quantized language model is frozen: with model/quantization choose model/trainable=projector_embedding "
            "or lora_language, or model/quantization=none"
        )


def _splits_weights(strategy: Any) -> str | None:
    """How a strategy is called that splits weights over the processes; None for one that keeps them whole."""
    if isinstance(strategy, str):
        return {"deepspeed_stage_3": "ZeRO-3", "deepspeed_stage_3_offload": "ZeRO-3"}.get(strategy)
    if OmegaConf.select(strategy, "zero_optimization.stage") == 3:
        return "ZeRO-3"
    return "FSDP2" if str(OmegaConf.select(strategy, "_target_")).endswith(".Fsdp2Strategy") else None

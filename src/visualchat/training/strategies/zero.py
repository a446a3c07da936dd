"""All that is particular to ZeRO: DeepSpeed's stages as a Lightning strategy, on GPUs and on CPUs.

Source: arXiv 1910.02054 (ZeRO), 2101.06840 (offload), 2104.07857 (NVMe). What it changes in Lightning's own strategy:

- It runs on the CPU accelerator too, over gloo, so that a test machine runs the very code of a cluster.
- Hugging Face weights are split over the ranks while they load (Lightning #19259): see `model_sharded_context`.
- Lightning accumulates gradients, as with every other strategy. DeepSpeed would divide each loss a second time by the
  number of batches, and would carry what is left of an epoch over to the next one.
- Checkpoints hold what trains only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.strategies.deepspeed import _format_precision_config
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor

from visualchat.model.sharding import is_split
from visualchat.training.checkpoint_io import begin, damage, finish, nothing_but_tensors, remove, write
from visualchat.training.ranks import of_all_ranks

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""DeepSpeed's sections on precision, and what weights are under them; fp32 without."""

_TAG = "checkpoint"
"""Lightning's name for the folder of the ranks' files within a checkpoint."""


class ZeroStrategy(DeepSpeedStrategy):
    """DeepSpeed's ZeRO.

    While it holds a ZeRO-3 model, transformers' `generate` keeps the ranks in step by itself (its `synced_gpus` is set
    where an `HfDeepSpeedConfig` lives), provided that every rank calls it, and equally often.

    Args:
        zero_optimization: DeepSpeed's own section of this name.
        aio: DeepSpeed's section on NVMe files; only for offload to NVMe.
        loss_scale_window: fp16: steps without overflow after which the loss scale doubles.
        **settings: Further arguments of Lightning's strategy that do not concern DeepSpeed's configuration.
    """

    strategy_name = "visualchat_zero"

    def __init__(
        self,
        zero_optimization: Mapping[str, Any],
        aio: Mapping[str, Any] | None = None,
        loss_scale_window: int = 100,
        **settings: Any,
    ) -> None:
        config = {
            "train_micro_batch_size_per_gpu": 1,  # for DeepSpeed's own log only
            "gradient_accumulation_steps": 1,  # Lightning accumulates
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW on offloaded parts: few train, and nothing to compile
            "zero_optimization": dict(zero_optimization),
        }
        if aio is not None:
            config["aio"] = dict(aio)
        super().__init__(config=config, loss_scale_window=loss_scale_window, exclude_frozen_parameters=True, **settings)
        self._transformers_config: Any = None

    @property
    def handles_gradient_accumulation(self) -> bool:
        """No: Lightning does."""
        return False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Lightning's hook around all but the last batch of an optimizer step: gradients add up, no step follows."""
        self.deepspeed_engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.deepspeed_engine.set_gradient_accumulation_boundary(True)

    @property
    def root_device(self) -> torch.device:
        """This rank's device; DeepSpeed wants one with an index."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Lightning's, on CPUs as well."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        _use_cpus()
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Join the other ranks; Lightning's, without its check of GPU indices where there are only CPUs."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _format_config(self) -> None:
        """Complete DeepSpeed's configuration from the trainer's settings."""
        assert isinstance(self.config, dict)
        assert self.lightning_module is not None
        self.config["gradient_clipping"] = self.lightning_module.trainer.gradient_clip_val or 0.0
        _format_precision_config(
            config=self.config,
            precision=self.precision_plugin.precision,
            loss_scale=self.loss_scale,
            loss_scale_window=self.loss_scale_window,
            min_loss_scale=self.min_loss_scale,
            initial_scale_power=self.initial_scale_power,
            hysteresis=self.hysteresis,
        )

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """Lightning's context around `configure_model`: under ZeRO-3 `from_pretrained` splits weights while it loads.

        transformers does so while an `HfDeepSpeedConfig` lives; without one it would find the parameters of Lightning's
        `zero.Init` empty and initialise every weight again. Lightning's `zero.Init` itself is left out: what is made
        here beside the backbones is small, has ordinary values while it is put together, and is split with rank 0's
        values when DeepSpeed takes the model over.
        """
        self._init_config_if_needed()
        if self.zero_stage_3:
            from transformers.integrations.deepspeed import HfDeepSpeedConfig

            self._transformers_config = HfDeepSpeedConfig(self.config)
        yield

    def setup(self, trainer: lightning.Trainer) -> None:
        """Lightning's; under ZeRO-3 the parts that DeepSpeed has not yet split take the precision of those it has."""
        self._init_config_if_needed()
        if self.zero_stage_3:
            assert isinstance(self.config, dict)
            assert self.lightning_module is not None
            dtype = next((d for d in _DTYPES if self.config.get(d, {}).get("enabled")), None)
            for parameter in self.lightning_module.parameters():
                if not is_split(parameter):
                    parameter.data = parameter.data.to(_DTYPES[dtype] if dtype else torch.float32)
        super().setup(trainer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Mapping[str, Any] | None = None
    ) -> None:
        """Lightning's, each rank its own files, within one folder that takes its name when all are done.

        Raises:
            OSError: On all ranks: the disk of one does not take its file; what was there is as it was.
        """
        path = Path(self.broadcast(filepath))
        part = path.with_suffix(".part")
        failures: list[OSError] = []

        def attempt(action: Callable[..., Any], *arguments: Any) -> None:
            try:
                action(*arguments)
            except OSError as error:  # a rank that raised by itself would leave the others waiting
                failures.append(error)

        def settle() -> None:
            if errors := [error for errors in of_all_ranks(failures) for error in errors]:
                if self.is_global_zero:
                    remove(part)
                raise errors[0]

        def write_all() -> None:
            try:
                DeepSpeedStrategy.save_checkpoint(self, checkpoint, part)
            except OSError:
                self.barrier()  # the one with which DeepSpeed ends a save
                raise

        if self.is_global_zero:
            attempt(lambda: (begin(path) / _TAG).mkdir())
        settle()
        engine = self.deepspeed_engine.checkpoint_engine
        engine.save = lambda state_dict, path: attempt(write, state_dict, path)
        attempt(write_all)
        del engine.save
        settle()
        if self.is_global_zero:
            attempt(finish, part, path, checkpoint, storage_options)
        settle()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Lightning's; of the files nothing is unpickled that could run code."""
        with nothing_but_tensors(*_zero_types()):
            return super().load_checkpoint(checkpoint_path, weights_only)

    def teardown(self) -> None:
        """Lightning's; models made after it are ordinary ones."""
        self._transformers_config = None
        super().teardown()


def _use_cpus() -> None:
    """Let DeepSpeed run on CPUs even where there are GPUs, and without compiling its shared-memory collectives."""
    from deepspeed import ops
    from deepspeed.accelerator import get_accelerator, set_accelerator
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    if get_accelerator().device_name() != "cpu":
        set_accelerator(CPU_Accelerator())
    ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _zero_types() -> tuple[type, ...]:
    """What DeepSpeed's own files hold beside tensors and plain containers: numbers in classes, no code."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address


def trained_parts(checkpoint: str | Path) -> dict[str, Tensor]:
    """The whole parameters that a ZeRO checkpoint holds, by their names in the model, in fp32 on the CPU.

    Args:
        checkpoint: The folder that a run under `ZeroStrategy` saved, of any stage and number of ranks.

    Raises:
        ValueError: It is not such a folder, or damaged.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    if not (Path(checkpoint) / _TAG).is_dir():
        raise ValueError(f"{checkpoint} is not a ZeRO checkpoint: expected a folder that holds a folder '{_TAG}'")
    if reason := damage(Path(checkpoint)):
        raise ValueError(f"{checkpoint} is not usable: {reason}")
    with nothing_but_tensors(*_zero_types()):
        state = get_fp32_state_dict_from_zero_checkpoint(checkpoint, tag=_TAG, exclude_frozen_parameters=True)
    return {name.removeprefix("model."): value for name, value in state.items()}

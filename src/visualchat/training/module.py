"""The LightningModule: the model, what of it trains, its loss and its checkpoints."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torchmetrics import MeanMetric

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue.encoding import IGNORE_INDEX
from visualchat.evaluation.exact_match import correct_answers
from visualchat.model import VisualChatForConditionalGeneration
from visualchat.model.fingerprint import base_fingerprint
from visualchat.model.trainable import Trainable, not_finite, set_trainable, trainable_state
from visualchat.training.feature_cache import FeatureFiller, open_store
from visualchat.training.optim import (
    OptimizerSettings,
    build_optimizer,
    group_settings,
    set_group_settings,
    trained_groups,
    training_steps,
    warmup_cosine,
)
from visualchat.training.ranks import largest_of_ranks, of_all_ranks
from visualchat.training.stopping import RunStopped
from visualchat.training.strategies.fsdp import Fsdp2Strategy, split_layers


class VisualChatModule(lightning.LightningModule):
    """Visual instruction tuning of what `trainable` names.

    Args:
        build_model: Makes the model; called in `configure_model`, so that a strategy can shard it at birth.
        optimizer: The update rule of what trains.
        trainable: What trains; projector and token embedding if None.
        base: What the frozen backbones are called in error messages.
        gradient_checkpointing: Whether the language model's layers keep only their inputs and compute the rest again
            in the backward pass.
        fill: Puts weights to start from into a new model, once it is settled what trains; None for none.
        settings: Of the run, which its checkpoints keep; see `visualchat.training.resume`.
    """

    model: VisualChatForConditionalGeneration

    def __init__(
        self,
        build_model: Callable[[], VisualChatForConditionalGeneration],
        optimizer: OptimizerSettings | None = None,
        trainable: Trainable | None = None,
        base: str = "the frozen backbones",
        gradient_checkpointing: bool = False,
        fill: Callable[[VisualChatForConditionalGeneration], None] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.build_model = build_model
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.trainable = trainable or Trainable()
        self.base = base
        self.gradient_checkpointing = gradient_checkpointing
        self.fill = fill
        self.run_settings = dict(settings or {})
        self.exact_match = MeanMetric()
        self.validation_loss = MeanMetric()  # Lightning's own mean over ranks rounds their weights (2.6)
        self._base_fingerprint: str | None = None
        self._wrong: tuple[int, float] | None = None  # a validation batch and its loss, if that is not finite
        self.feature_filler: FeatureFiller | None = None
        self._features: defaultdict[str, Counter[bool]] = defaultdict(Counter)  # images by whether they were encoded
        self.strict_loading = False  # checkpoints hold what trains only; `on_load_checkpoint` checks them

    @property
    def data(self) -> VisualChatDataModule:
        """The data module of the run."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Build the model, once, and split it where the strategy wants that."""
        if not hasattr(self, "model"):
            self.model = self.assemble()
            if isinstance(self.trainer.strategy, Fsdp2Strategy):
                assert self.device_mesh is not None
                split_layers(self.model, self.device_mesh["data_parallel"])

    def assemble(self) -> VisualChatForConditionalGeneration:
        """A new model, ready to train."""
        model = self.build_model().train()
        set_trainable(model, self.trainable)
        if self.fill is not None:
            self.fill(model)
        if self.gradient_checkpointing:
            # not the reentrant way, which needs an input that requires gradients
            model.language_model.activation_checkpointing_enable({"use_reentrant": False})
        return model

    def on_fit_start(self) -> None:
        """Know the base, and open the cache of vision features, if the data has one, before the loaders start."""
        self.fingerprint()
        precision = str(self.trainer.precision)
        store = self.data.open_features(lambda folder, processor: open_store(folder, self.model, processor, precision))
        self.feature_filler = None if store is None else FeatureFiller(store)

    def on_train_start(self) -> None:
        """Rates and the like are those of the settings, also where a checkpoint has brought those of another time."""
        set_group_settings(self.trainer.optimizers[0], self.lr_schedulers(), self._group_settings)  # type: ignore[arg-type]

    def _inputs(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """What the model takes of a batch, with the vision features that it lacks; how many it brought is counted."""
        batch = {name: value for name, value in batch.items() if name != "stats"}
        if self.feature_filler is None or "feature_keys" not in batch:
            return batch
        self._features["train" if self.trainer.training else "validation"].update(map(bool, batch["feature_keys"]))
        return self.feature_filler.complete(self.model, batch)

    def _log_features_read(self, stage: str) -> None:
        """Log the share of images whose features were read, of all ranks; those without images take part, too."""
        if self.feature_filler is None:
            return
        counts = sum(of_all_ranks(self._features.pop(stage, Counter())), Counter[bool]())
        if counts:
            self.log(f"{stage}/features_read", counts[False] / counts.total())

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """The batch's loss: the mean over its answer tokens, those of all ranks together; and each token's own."""
        self._rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        out = self.model(**self._inputs(batch))
        return {"loss": out.loss * self._weight(batch["labels"]), "answer_losses": out.answer_losses.detach()}

    def _weight(self, labels: Tensor) -> Tensor | float:
        """What this rank's mean counts in the strategy's mean over all ranks: its share of the answer tokens."""
        if self.trainer.world_size == 1:
            return 1.0
        tokens = (labels[:, 1:] != IGNORE_INDEX).sum().float()
        total = self.trainer.strategy.reduce(tokens.clone(), reduce_op="sum")
        return tokens * self.trainer.world_size / torch.clamp(torch.as_tensor(total), min=1.0)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Loss and exact match over the answers of all ranks; and each token's loss, each answer's exactness."""
        out = self.model(**self._inputs(batch))
        self.validation_loss.update(out.loss, weight=len(out.answer_losses))
        self.log("validation/loss", self.validation_loss, prog_bar=True)
        exact = correct_answers(out.logits, batch["labels"])
        if self._wrong is None and not math.isfinite(loss := float(out.loss)):
            self._wrong = batch_idx, loss
        self.exact_match.update(torch.tensor(exact, dtype=torch.float))
        self.log("validation/exact_match", self.exact_match, prog_bar=True)
        return {"answer_losses": out.answer_losses, "exact": exact}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End the run at the first loss that is not finite, on whichever rank.

        An overflow of scaled gradients, which fp16 training skips, does not count: the loss itself is finite then.
        """
        loss = float(outputs["loss"])
        if largest_of_ranks(self.trainer, not math.isfinite(loss)):
            rates = ", ".join(f"{rate:.3g}" for rate in dict.fromkeys(self._rates))
            when = f"in step {self.trainer.global_step}, learning rate {rates}"
            raise self._not_finite("training", None if math.isfinite(loss) else (batch_idx, loss), when)

    def on_train_epoch_end(self) -> None:
        """Log what the epoch's batches brought."""
        self._log_features_read("train")

    def on_validation_start(self) -> None:
        """No loss has been seen yet."""
        self._wrong = None

    def on_validation_epoch_end(self) -> None:
        """End the run if a loss was not finite: nothing that was made of such weights is worth to be kept."""
        if largest_of_ranks(self.trainer, self._wrong is not None):
            raise self._not_finite("validation", self._wrong, f"after step {self.trainer.global_step}")
        self._log_features_read("validation")

    def _not_finite(self, which: str, here: tuple[int, float] | None, when: str) -> RunStopped:
        """What to raise on all ranks; `here` is this rank's batch and its loss, if it is one of those."""
        loss_and_rows = None
        if here is not None:
            loss_and_rows = here[1], self.data.names(self.trainer.current_epoch, here[0], training=which == "training")
        value, names = next(pair for pair in of_all_ranks(loss_and_rows) if pair is not None)
        return RunStopped(
            f"the {which} loss is {value} {when}, on the rows {', '.join(names)}\n"
            "look at these rows; if they are sound, the rate was too high: the line below halves it",
            instead=self._lower_rates(),
        )

    def _lower_rates(self) -> dict[str, object]:
        rates = self.optimizer_settings.halved(trained_groups(self.model))
        return {f"optimizer.{name}": f"{rate:g}" for name, rate in rates.items()}

    def configure_optimizers(self) -> Any:
        """AdamW, its rate set again at every step."""
        steps = training_steps(self.trainer, self.data.train_batches())
        mixed = "mixed" in str(self.trainer.precision)
        masters = not isinstance(self.trainer.strategy, DeepSpeedStrategy)  # it keeps them itself
        optimizer = build_optimizer(self.optimizer_settings, self.model, mixed, masters)
        schedule = warmup_cosine(optimizer, steps, self.optimizer_settings.warmup_fraction)
        self._group_settings = group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what trains, bound to the base that it was trained with.

        Raises:
            RunStopped: Some of it is not finite.
        """
        state = trainable_state(self.model)
        if wrong := not_finite(state):
            raise RunStopped(
                f"after step {self.trainer.global_step} trained parameters are not finite, and are not saved: "
                f"{', '.join(wrong)}",
                instead=self._lower_rates(),
            )
        checkpoint["state_dict"] = {f"model.{name}": value for name, value in state.items()}
        checkpoint["trained"] = [*checkpoint["state_dict"]]  # ZeRO keeps the values elsewhere in the checkpoint
        checkpoint["settings"] = self.run_settings
        checkpoint["base"] = {"name": self.base, "fingerprint": self.fingerprint()}

    def fingerprint(self) -> str:
        """The base's, computed once, before it is used.

        Under ZeRO-3 all of it travels to be read.
        """
        if self._base_fingerprint is None:
            self._base_fingerprint = base_fingerprint(self.model)
        return self._base_fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another base, or one that lacks a trained part.

        Raises:
            ValueError: It does not fit.
        """
        base = checkpoint.get("base", {"name": "an unknown base", "fingerprint": None})
        if base["fingerprint"] != self.fingerprint():
            raise ValueError(
                f"the checkpoint belongs to another base: it was trained on {base['name']}, "
                f"this model stands on {self.base}"
            )
        expected = {f"model.{name}" for name, p in self.model.named_parameters() if p.requires_grad}
        trained = set(checkpoint["trained"])
        if trained != expected:
            odd = sorted(expected ^ trained)
            raise ValueError(f"the checkpoint does not hold exactly what trains; missing or surplus: {', '.join(odd)}")

"""The LightningDataModule: owns the dialogues that train and those that validate, and makes batches of them."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from visualchat.data.batching.collate import Batch, BatchingProcessor, BatchMaker, Collator
from visualchat.data.batching.held_out import spread
from visualchat.data.batching.images import with_decoded_images
from visualchat.data.batching.lengths import token_lengths
from visualchat.data.batching.packing import Packing
from visualchat.data.batching.sampler import (
    ResumableBatchSampler,
    RowsOfEpoch,
    batches_of_rank,
    by_length,
    in_order,
    rows_of,
)
from visualchat.data.batching.truncation import Trimmed, TrimReport, bad_rows_policy
from visualchat.data.blend.mixture import Blend, Mixture
from visualchat.data.blend.origin import digest_of, joint_digest, place_of
from visualchat.data.blend.own import OwnData
from visualchat.data.blend.split import SplitBy
from visualchat.data.sources import Source
from visualchat.dialogue import Dialogue
from visualchat.images.feature_store import FeatureStore

log = logging.getLogger(__name__)


class ResumableLoader(DataLoader[Batch]):
    """A loader whose position in the epoch is kept by the data module; its own state is empty.

    Raises:
        ValueError: A trainer has put another sampler in the place of ours, which would leave rows out on every rank.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        if not isinstance(settings.get("sampler"), ResumableBatchSampler):
            raise ValueError(
                "the data module gives each rank its own batches, the trainer must not share them out once more: "
                "say Trainer(use_distributed_sampler=False), or trainer.use_distributed_sampler=false"
            )
        super().__init__(*args, **settings)

    def state_dict(self) -> dict[str, Any]:
        """Nothing; Lightning takes a loader with this method for one that can resume in mid-epoch, as this one can."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing; see `VisualChatDataModule.load_state_dict`."""


class VisualChatDataModule(lightning.LightningDataModule):
    """Batches of dialogues, in an order that depends on seed and epoch alone; ranks take disjoint shares.

    Its state is the place in the epoch by batches consumed, so a checkpoint of any batch resumes with the next one,
    whatever workers had fetched in advance and however many there are. A trainer of several ranks needs
    `use_distributed_sampler=False`, as `conf/trainer` says: the loaders give each rank its own share.

    Args:
        processor: Encodes and pads.
        train: The dialogues to train on; of a `Mixture` an epoch takes what its weights say, else all.
        validation: The dialogues to watch while training.
        batch_size: Rows a step, on each rank; a row is a dialogue, or several with `packing`.
        max_length: The most tokens a row may have. A longer dialogue is cut at a turn's border, which is counted; one
            whose first turn alone is too long is a bad row. None for no limit.
        num_workers: Processes that make batches; 0 makes them in the training process.
        seed: Of the order.
        packing: Whether training dialogues share rows of `max_length` tokens. Planning reads every dialogue once,
            without decoding its images.
        group_by_length: Whether the training dialogues of a step are about as long, so that less is padding; every
            dialogue is read once before, as packing does.
        bad_rows: `error` ends the run at a row that cannot be trained on; `skip` leaves it out: a batch is then smaller
            by it. Both what is cut and what is skipped stand in `reports` and are logged at the end.
        feature_cache: A folder in which what the frozen vision encoder makes of each image is kept; None for none.

    Raises:
        ValueError: There is no dialogue, the policy is unknown, packing has no `max_length`, or a number is too small.
    """

    def __init__(
        self,
        processor: BatchingProcessor,
        train: Sequence[Dialogue],
        validation: Sequence[Dialogue],
        batch_size: int,
        max_length: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        packing: bool = False,
        group_by_length: bool = False,
        bad_rows: str = "error",
        feature_cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        for name, dialogues in (("train", train), ("validation", validation)):
            if not len(dialogues):
                raise ValueError(f"{name} holds no dialogue, at least one is needed")
        for setting, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("max_length", max_length, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"data.{setting}={value}: expected {least} or more")
        if packing and max_length is None:
            raise ValueError("packing=true fills rows of max_length tokens, found max_length=None")
        if packing and group_by_length:
            raise ValueError(
                "data.packing and data.group_by_length are two ways to save padding: "
                "choose data.group_by_length=false, which saves most, or data.packing=false"
            )
        self.processor = processor
        self.train, self.validation = Mixture.of(train), Mixture.of(validation)
        self.batch_size, self.num_workers, self.seed, self.packing = batch_size, num_workers, seed, packing
        self.group_by_length = group_by_length
        self.bad_rows = bad_rows_policy(bad_rows)
        self.feature_cache = feature_cache
        self.feature_counts = {"read": 0, "encoded": 0, "damaged": 0}
        self.collate = Collator(processor, max_length)
        self.reports = {"train": TrimReport(), "validation": TrimReport()}
        self.own: OwnData | None = None
        self._packing: Packing | None = None
        self._start = (0, 0)  # epoch and batch at which the next training loader begins

    @classmethod
    def from_blend(cls, processor: BatchingProcessor, blend: Blend, **settings: Any) -> VisualChatDataModule:
        """Both splits of a blend of corpora; `settings` are the other arguments."""
        return cls(processor, blend.train, blend.validation, **settings)

    @classmethod
    def from_source(
        cls,
        processor: BatchingProcessor,
        source: Source | None,
        validation: float | str | Sequence[str] = 0.1,
        split_by: SplitBy = "row",
        **settings: Any,
    ) -> VisualChatDataModule:
        """Both splits of one corpus, as `OwnData` splits it; `settings` are the other arguments."""
        own = OwnData(source, validation, split_by, settings.get("seed", 0))
        module = cls(processor, own.train, own.validation, **settings)
        module.own = own
        return module

    def prepare_data(self) -> None:
        """Lightning's hook on one process of each machine: log what is odd about data of one's own."""
        if self.own is not None:
            for oddity in (*self.own.notes(), self.own.leak()):
                if oddity:
                    log.warning(oddity)

    def open_features(self, open_store: Callable[[str | Path, Any], FeatureStore]) -> FeatureStore | None:
        """From here on look the images of all batches up in the store of `feature_cache`; before loaders are made.

        Args:
            open_store: Opens a folder's store for images that this processor prepares.

        Returns:
            The store, to which what is missing must be written; None if there is no cache.
        """
        if self.feature_cache is None:
            return None
        store = open_store(self.feature_cache, self.processor)
        self.collate = replace(self.collate, store=store)
        return store

    def digest(self) -> str:
        """A hash (hex) of the content of all dialogues, those that train and those that validate.

        Rows of files count by their bytes, with the readers' settings; images in files of their own are not read.
        """
        return joint_digest(digest_of(self.train), digest_of(self.validation))

    def train_batches(self) -> int:
        """Batches of an epoch on each rank."""
        return len(self._sampler(*self._train_rows()))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Reshuffled every epoch; after `load_state_dict` it begins where the checkpoint ended."""
        start, self._start = self._start, (0, 0)
        return self._loader(self.train, self._sampler(*self._train_rows(), start=start), packed=self.packing)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In the order of the data, a dialogue a row."""
        size = len(self.validation)
        return self._loader(self.validation, self._sampler(rows_of(in_order(size)), size), packed=False)

    def names(self, epoch: int, batch: int, *, training: bool = True) -> list[str]:
        """The dialogues in a batch of this rank, and where they lie; in validation the epoch counts for nothing."""
        size = len(self.validation)
        rows = self._train_rows()[0] if training else rows_of(in_order(size))
        dialogues = self.train if training else self.validation
        spec = batches_of_rank(rows(self.seed, epoch), self.batch_size, *self._ranks())[batch]
        return [f"{dialogues[index].id} ({place_of(dialogues, index)})" for row in spec.rows for index in row]

    def samples(self, count: int) -> list[Dialogue]:
        """At most `count` validation dialogues with their images, always the same ones, cut to the limit.

        Raises:
            ValueError: One of them is bad and the policy is `error`; with `skip` the next good one takes its place.
        """
        skip = self.bad_rows == "skip"
        chosen = spread(self.validation, count, self.processor, self.collate.max_length, skip=skip)
        return [with_decoded_images(dialogue) for dialogue in chosen]

    def pack(self) -> Packing:
        """Which training dialogues share a row; made once.

        Raises:
            ValueError: A row is bad and the policy is `error`, or no row is good.
        """
        if self._packing is None:
            limit = self.collate.max_length
            assert limit is not None
            lengths, trimmed = self._lengths
            self.reports["train"].add(trimmed)
            order = None if self.train.plain else self.train.order
            epochs = self.trainer.max_epochs if self.trainer else 1
            endless = epochs is None or epochs < 1
            self._packing = Packing(lengths, limit, order, self.seed, None if endless else epochs)
            log.info(
                "packed %d dialogues into %d rows of %d tokens, %.1f%% of them real",
                *(len(lengths), len(self._packing), self._packing.capacity, 100 * self._packing.efficiency),
            )
        return self._packing

    @cached_property
    def _lengths(self) -> tuple[dict[int, int], dict[int, Trimmed]]:
        """The tokens of every good training dialogue, and what was trimmed."""
        limit, skip = self.collate.max_length, self.bad_rows == "skip"
        return token_lengths(self.train, self.processor, limit, skip=skip, num_workers=self.num_workers)

    def _train_rows(self) -> tuple[RowsOfEpoch, int]:
        """The rows of each epoch and how many they are; a mixture says itself which dialogues an epoch takes."""
        if self.packing:
            packing = self.pack()
            return (lambda seed, epoch: packing.rows(epoch)), len(packing)
        rows = rows_of(self.train.order)
        if self.group_by_length:
            rows = by_length(rows, self._lengths[0], self.batch_size * self._ranks()[1])
        return rows, self.train.epoch_size

    def _ranks(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _sampler(self, rows: RowsOfEpoch, count: int, start: tuple[int, int] = (0, 0)) -> ResumableBatchSampler:
        return ResumableBatchSampler(rows, count, self.batch_size, self.seed, *self._ranks(), start)

    def _loader(self, dialogues: Mixture, sampler: ResumableBatchSampler, *, packed: bool) -> DataLoader[Batch]:
        return ResumableLoader(
            BatchMaker(dialogues, self.collate, self.bad_rows, packed),
            batch_size=None,  # items are whole batches
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # workers' seeds come from here, not from the run's own random numbers
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook at each batch that is used: count what was trimmed, hand its statistics on as `stats`."""
        if not isinstance(batch, Batch):
            return batch
        assert self.trainer is not None
        self.reports["train" if self.trainer.training else "validation"].add(batch.trimmed)
        inputs = {**batch.inputs, "stats": batch.stats}
        if "feature_keys" in inputs:
            encoded = sum(map(bool, inputs["feature_keys"]))
            self.feature_counts["encoded"] += encoded
            self.feature_counts["read"] += len(inputs["feature_keys"]) - encoded
            self.feature_counts["damaged"] += inputs.pop("features_damaged")
        return inputs

    def teardown(self, stage: str) -> None:
        """Log what was cut and skipped."""
        rank, world_size = self._ranks()
        where = f" (rank {rank})" if world_size > 1 else ""
        for name, report in self.reports.items():
            if summary := report.summary():
                log.warning("%s%s: %s", name, where, summary)
        if any(self.feature_counts.values()):
            counts = "%(read)d images read from the feature cache, %(encoded)d encoded, %(damaged)d damaged files"
            log.info("%s%s", counts % self.feature_counts, where)

    def _settings(self) -> dict[str, Any]:
        """All that the order of the batches depends on."""
        names = ("batch_size", "seed", "packing", "group_by_length", "bad_rows")
        settings = {"dialogues": len(self.train), "ranks": self._ranks()[1], "max_length": self.collate.max_length}
        settings["rows"] = self._train_rows()[1]
        return {**settings, **{name: getattr(self, name) for name in names}}

    @cached_property
    def _content(self) -> str:
        return digest_of(self.train)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch that come next, the settings they depend on, and what was trimmed so far."""
        reports = {name: report.state_dict() for name, report in self.reports.items()}
        return {"next": self._next(), "settings": self._settings(), "content": self._content, "reports": reports}

    def _next(self) -> tuple[int, int]:
        """Epoch and batch after those whose step is done, from Lightning's own count."""
        assert self.trainer is not None
        fit = self.trainer.fit_loop
        epochs: Any = fit.epoch_progress.current
        batches: Any = fit.epoch_loop.batch_progress.current
        epoch, batch = epochs.processed, batches.processed
        if epoch_is_cut(self.trainer):
            return epoch - 1, batch
        if epochs.ready == epoch:  # between two epochs
            return epoch, 0
        return (epoch + 1, 0) if batch >= self.trainer.num_training_batches else (epoch, batch)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume where the checkpoint ended.

        Raises:
            ValueError: It ended in mid-epoch, and the training rows or the order of the batches have changed since.
        """
        now, then = self._settings(), {"group_by_length": False, **state_dict["settings"]}
        changed = [f"{name} was {then.get(name)!r}, now {now[name]!r}" for name in now if now[name] != then.get(name)]
        if state_dict["content"] != self._content:
            changed.append("the content of the training rows")
        epoch, batch = state_dict["next"]
        if batch and changed:
            raise ValueError(
                f"the checkpoint ended at batch {batch} of epoch {epoch}, which other settings cannot resume: "
                f"{', '.join(changed)}; resume with the old settings or from the end of an epoch"
            )
        if changed and self._ranks()[0] == 0:
            log.warning("other data than before, from epoch %d on: %s", epoch, ", ".join(changed))
        self._start = (epoch, batch)
        if now["dialogues"] == then.get("dialogues"):
            for name, report in self.reports.items():
                report.load_state_dict(state_dict["reports"][name])


def epoch_is_cut(trainer: lightning.Trainer) -> bool:
    """Whether training has ended in mid-epoch, by `max_steps`; Lightning then counts that epoch as processed."""
    epochs: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    return epochs.ready == epochs.processed > 0 and 0 < batches.processed < trainer.num_training_batches


def outlive_signals(worker: int) -> None:
    """For a process that makes batches: a signal to the whole group is for the training process to act on.

    The second SIGTERM ends it, which is how torch and Python end a worker that hangs.
    """
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))

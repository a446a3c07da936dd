"""The LightningDataModule: owns the dialogues that train and those that validate, and makes batches of them."""

from __future__ import annotations

import logging
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import distributed
from torch.utils.data import DataLoader, Dataset

from visualchat.data.batching.collate import (
    Batch,
    BatchingProcessor,
    BatchMaker,
    Collator,
    measure,
    placed,
    with_pictures,
)
from visualchat.data.batching.held_out import spread
from visualchat.data.batching.packing import Packing
from visualchat.data.batching.sampler import Rows, Schedule, batches_of_rank, in_order, rows_of, shuffled
from visualchat.data.batching.truncation import LoadReport, Losses, bad_rows_policy
from visualchat.data.blend.mixture import Blend
from visualchat.data.blend.origin import digest_of, joint_digest, place_of, rows_in
from visualchat.data.blend.own import OwnData
from visualchat.data.blend.split import SplitBy
from visualchat.data.progress import watched
from visualchat.data.sources import Source
from visualchat.dialogue import Dialogue
from visualchat.images.feature_store import FeatureStore

log = logging.getLogger(__name__)


class ResumableLoader(DataLoader[Batch]):
    """A loader whose place in the epoch is kept by the datamodule; its own state is empty."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing; Lightning takes a loader with this method for one that can go on in mid-epoch, as this one can."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing; see `VisualChatDataModule.load_state_dict`."""


class VisualChatDataModule(lightning.LightningDataModule):
    """Batches of dialogues, in an order that depends on seed and epoch alone; ranks take disjoint shares.

    Its state is the place in the epoch by batches consumed, so a checkpoint of any batch goes on with the next one,
    whatever workers had fetched in advance and however many there are.

    Args:
        processor: Encodes and pads.
        train: The dialogues to train on. One that has `order(seed, epoch)` and `epoch_size` (a mixture with weights)
            says itself which of its dialogues an epoch takes; else every epoch takes all.
        validation: The dialogues to watch while training.
        batch_size: Rows a step, on each rank; a row is a dialogue, or several with `packing`.
        max_length: The most tokens a row may have. A longer dialogue is cut at a turn's border, which is counted; one
            whose first turn alone is too long is a bad row. None for no limit.
        num_workers: Processes that make batches; 0 makes them in the training process.
        seed: Of the order.
        packing: Whether training dialogues share rows of `max_length` tokens. Planning reads every dialogue once,
            without decoding its images.
        bad_rows: `error` ends the run at a row that cannot be trained on; `skip` leaves it out: a batch is then smaller
            by it. Both what is cut and what is skipped stand in `reports` and are logged at the end.
        feature_cache: A folder in which what the frozen vision encoder makes of each picture is kept; None for none.

    Raises:
        ValueError: There is no dialogue, the policy is unknown, or packing has no `max_length`.
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
        bad_rows: str = "error",
        feature_cache: str | Path | None = None,
    ) -> None:
        super().__init__()
        for name, dialogues in (("train", train), ("validation", validation)):
            if not len(dialogues):
                raise ValueError(f"{name} holds no dialogue, at least one is needed")
        if packing and max_length is None:
            raise ValueError("packing=true fills rows of max_length tokens, found max_length=None")
        self.processor, self.train, self.validation = processor, train, validation
        self.batch_size, self.num_workers, self.seed, self.packing = batch_size, num_workers, seed, packing
        self.bad_rows = bad_rows_policy(bad_rows)
        self.feature_cache = feature_cache
        self.feature_counts = {"read": 0, "encoded": 0, "damaged": 0}
        self.collate = Collator(processor, max_length)
        self.reports = {"train": LoadReport(), "validation": LoadReport()}
        self._packing: Packing | None = None
        self._start = (0, 0)  # epoch and batch at which the next training loader begins

    @classmethod
    def from_blend(cls, processor: BatchingProcessor, blend: Blend, **settings: Any) -> VisualChatDataModule:
        """Both sides of a blend of corpora; `settings` are the other arguments."""
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
        """Both sides of one corpus, as `OwnData` splits it; `settings` are the other arguments."""
        own = OwnData(source, validation, split_by, settings.get("seed", 0))
        return cls(processor, own.train, own.validation, **settings)

    def use_features(self, store: FeatureStore) -> None:
        """Look the pictures of all batches up in a store; to be called before the loaders are made."""
        self.collate = replace(self.collate, features=store)

    def digest(self) -> str:
        """A hash (hex) of the content of all dialogues, those that train and those that validate.

        Rows of files count by their bytes, with the readers' settings; pictures in files of their own are not read.
        """
        return joint_digest(digest_of(self.train), digest_of(self.validation))

    def train_batches(self) -> int:
        """Batches of an epoch on each rank."""
        return len(self._schedule(*self._train_rows()))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Reshuffled every epoch; after `load_state_dict` it begins where the checkpoint ended."""
        start, self._start = self._start, (0, 0)
        return self._loader(self.train, self._schedule(*self._train_rows(), start=start), packed=self.packing)

    def val_dataloader(self) -> DataLoader[Batch]:
        """In the order of the data, a dialogue a row."""
        size = len(self.validation)
        return self._loader(self.validation, self._schedule(rows_of(in_order(size)), size), packed=False)

    def names(self, epoch: int, batch: int, *, training: bool = True) -> list[str]:
        """The dialogues in a batch of this rank, and where they lie; in validation the epoch counts for nothing."""
        size = len(self.validation)
        rows = self._train_rows()[0] if training else rows_of(in_order(size))
        dialogues = self.train if training else self.validation
        spec = batches_of_rank(rows(self.seed, epoch), self.batch_size, *self._ranks())[batch]
        return [f"{dialogues[number].id} ({place_of(dialogues, number)})" for row in spec.rows for number in row]

    def samples(self, count: int) -> list[Dialogue]:
        """At most `count` validation dialogues with their pictures, always the same ones, cut to the limit.

        Raises:
            ValueError: One of them is bad and the policy is `error`; with `skip` the next good one takes its place.
        """
        limit, skip = self.collate.max_length, self.bad_rows == "skip"
        return [with_pictures(found, {}) for found in spread(self.validation, count, self.processor, limit, skip=skip)]

    def plan(self) -> Packing:
        """Which training dialogues share a row; made once.

        Raises:
            ValueError: A row is bad and the policy is `error`, or no row is good.
        """
        if self._packing is None:
            lengths, losses = token_lengths(self.train, self.collate, self.bad_rows == "skip", self.num_workers)
            self.reports["train"].add(losses)
            assert self.collate.max_length is not None
            order = getattr(self.train, "order", None)
            epochs = self.trainer.max_epochs if self.trainer else 1
            endless = epochs is None or epochs < 1
            self._packing = Packing(lengths, self.collate.max_length, order, self.seed, None if endless else epochs)
            log.info(
                "packed %d dialogues into %d rows of %d tokens, %.1f%% of them real",
                *(len(lengths), len(self._packing), self._packing.capacity, 100 * self._packing.efficiency),
            )
        return self._packing

    def _train_rows(self) -> tuple[Rows, int]:
        """The rows of each epoch and how many they are; a mixture says itself which dialogues an epoch takes."""
        if self.packing:
            packing = self.plan()
            return (lambda seed, epoch: packing.rows(epoch)), len(packing)
        size = len(self.train)
        order = getattr(self.train, "order", shuffled(size))
        return rows_of(order), getattr(self.train, "epoch_size", size)

    def _ranks(self) -> tuple[int, int]:
        """This rank and the number of ranks."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _schedule(self, rows: Rows, count: int, start: tuple[int, int] = (0, 0)) -> Schedule:
        return Schedule(rows, count, self.batch_size, self.seed, *self._ranks(), start)

    def _loader(self, dialogues: Sequence[Dialogue], schedule: Schedule, *, packed: bool) -> DataLoader[Batch]:
        return ResumableLoader(
            BatchMaker(dialogues, self.collate, self.bad_rows, packed),
            batch_size=None,  # items are whole batches
            sampler=schedule,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=outlive_signals,
            generator=torch.Generator(),  # workers' seeds come from here, not from the run's own random numbers
        )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook at each batch that is used: count what its rows lost, hand its facts on as `facts`."""
        if not isinstance(batch, Batch):
            return batch
        assert self.trainer is not None
        self.reports["train" if self.trainer.training else "validation"].add(batch.losses)
        features = {**batch.features, "facts": batch.facts}
        if "feature_keys" in features:
            encoded = sum(map(bool, features["feature_keys"]))
            self.feature_counts["encoded"] += encoded
            self.feature_counts["read"] += len(features["feature_keys"]) - encoded
            self.feature_counts["damaged"] += features.pop("features_damaged")
        return features

    def teardown(self, stage: str) -> None:
        """Log what was cut and skipped."""
        rank, world_size = self._ranks()
        where = f" (rank {rank})" if world_size > 1 else ""
        for name, report in self.reports.items():
            if summary := report.summary():
                log.warning("%s%s: %s", name, where, summary)
        if any(self.feature_counts.values()):
            counts = "%(read)d pictures read from the feature cache, %(encoded)d encoded, %(damaged)d damaged files"
            log.info("%s%s", counts % self.feature_counts, where)

    def _settings(self) -> dict[str, Any]:
        """All that the order of the batches depends on."""
        names = ("batch_size", "seed", "packing", "bad_rows")
        settings = {"dialogues": len(self.train), "ranks": self._ranks()[1], "max_length": self.collate.max_length}
        settings["rows"] = self._train_rows()[1]
        return {**settings, **{name: getattr(self, name) for name in names}}

    @cached_property
    def _content(self) -> str:
        return digest_of(self.train)

    def state_dict(self) -> dict[str, Any]:
        """Epoch and batch that come next, the settings they depend on, and what was lost so far."""
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
        """Go on where the checkpoint ended.

        Raises:
            ValueError: It ended in mid-epoch, and the training rows or the order of the batches have changed since.
        """
        now, then = self._settings(), state_dict["settings"]
        changed = [f"{name} was {then.get(name)!r}, now {now[name]!r}" for name in now if now[name] != then.get(name)]
        if state_dict["content"] != self._content:
            changed.append("the content of the training rows")
        epoch, batch = state_dict["next"]
        if batch and changed:
            raise ValueError(
                f"the checkpoint ended at batch {batch} of epoch {epoch}, which other settings cannot go on with: "
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


class _Lengths(Dataset[tuple[int, Losses | None]]):
    """Item i: the tokens of dialogue i and what it lost; no image is decoded."""

    def __init__(self, dialogues: Sequence[Dialogue], collate: Collator, skip: bool) -> None:
        self.dialogues, self.collate, self.skip = dialogues, collate, skip

    def __len__(self) -> int:
        return len(self.dialogues)

    def __getitem__(self, index: int) -> tuple[int, Losses | None]:
        try:
            found = measure(self.dialogues[index], self.collate.processor, self.collate.max_length)
        except ValueError as error:
            if not self.skip:
                raise ValueError(placed(error, self.dialogues, index)) from error
            rows = max(1, len(rows_in(self.dialogues, index)))
            return 0, Losses(reason=placed(error, self.dialogues, index), rows=rows)
        return found.length, found.losses


def token_lengths(
    dialogues: Sequence[Dialogue], collate: Collator, skip: bool = False, num_workers: int = 0
) -> tuple[dict[int, int], dict[int, Losses]]:
    """The tokens of every good dialogue, cut to the limit, and what dialogues lost, both by their numbers.

    Where several ranks run, each reads its share and all learn of all.

    Args:
        dialogues: All.
        collate: Knows processor and limit.
        skip: Whether a bad row is left out; else it is an error.
        num_workers: Processes that share the work of a rank.

    Raises:
        ValueError: A row is bad and `skip` is False.
    """
    rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    own = range(rank, len(dialogues), ranks)
    loader = DataLoader(
        _Lengths(dialogues, collate, skip),
        sampler=own,
        batch_size=256,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    read: list[tuple[int, Losses | None]] = []
    failure: ValueError | None = None
    try:
        chunks = loader if rank else watched(loader, "measuring dialogues to pack them", len(loader))
        read = [item for chunk in chunks for item in chunk]
    except ValueError as error:  # told to all ranks first, or they would wait for this one for ever
        failure = error
    shares = [(read, failure)]
    if ranks > 1:
        shares = [(read, failure)] * ranks
        distributed.all_gather_object(shares, (read, failure))
    for _, told in shares:
        if told is not None:
            raise told
    ordered = [(number, *shares[number % ranks][0][number // ranks]) for number in range(len(dialogues))]
    lengths = {number: length for number, length, losses in ordered if losses is None or not losses.reason}
    return lengths, {number: losses for number, _, losses in ordered if losses is not None}

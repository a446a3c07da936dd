"""The LightningDataModule: owns the dialogues that train and those that validate, and makes batches of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from visualchat.data.collate import BatchingProcessor, Collator
from visualchat.dialogue import Dialogue


class VisualChatDataModule(lightning.LightningDataModule):
    """Batches of dialogues, in an order that depends on seed and epoch alone; ranks take disjoint shares.

    Args:
        processor: Encodes and pads.
        train: The dialogues to train on.
        validation: The dialogues to watch while training.
        batch_size: Dialogues a step, on each rank.
        max_length: The most tokens a dialogue may have; a longer one is an error.
        num_workers: Processes that make batches; 0 makes them in the training process.
        seed: Of the order.
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
    ) -> None:
        super().__init__()
        for name, dialogues in (("train", train), ("validation", validation)):
            if not len(dialogues):
                raise ValueError(f"{name} holds no dialogue, at least one is needed")
        self.processor, self.train, self.validation = processor, train, validation
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.collate = Collator(processor, max_length)

    def train_batches(self) -> int:
        """Batches of an epoch on each rank."""
        ranks = self.trainer.world_size if self.trainer else 1
        return math.ceil(math.ceil(len(self.train) / ranks) / self.batch_size)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Shuffled anew every epoch."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """In the order of the data."""
        return self._loader(self.validation, shuffle=False)

    def _loader(self, dialogues: Sequence[Dialogue], *, shuffle: bool) -> DataLoader[dict[str, Any]]:
        sampler: DistributedSampler[Dialogue] = DistributedSampler(
            dialogues,  # type: ignore[arg-type]  # any Sequence has what a map-style Dataset needs
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            shuffle=shuffle,
            seed=self.seed,
        )
        return DataLoader(
            dialogues,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

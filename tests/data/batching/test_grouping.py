"""Rows grouped by length: every one once an epoch, a step's about as long, ranks alike, less padding."""

import random

import pytest

from visualchat.data.batching.sampler import POOL, batches_of_rank, by_length, rows_of
from visualchat.data.blend.mixture import permutation
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn

ROWS = 1003
LENGTHS = {n: random.Random(n).randint(1, 400) for n in range(ROWS)}


def shuffled(seed, epoch):
    return permutation(ROWS, seed, epoch)


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_row_once_and_those_of_a_step_as_long_as_each_other(ranks):
    rows = by_length(rows_of(shuffled), LENGTHS, 2 * ranks)(5, 1)
    assert sorted(rows) == [(n,) for n in range(ROWS)]
    shares = [batches_of_rank(rows, 2, rank, ranks) for rank in range(ranks)]
    steps = [[LENGTHS[n] for batch in step for (n,) in batch.rows] for step in zip(*shares, strict=True)]
    spread = [max(step) - min(step) for step in steps[:-1]]
    assert sum(spread) / len(spread) < 2 * 400 / POOL
    assert max(map(max, steps[: len(steps) // 4])) > 350 > 50 > min(map(min, steps[: len(steps) // 4]))  # shuffled


def test_what_stands_in_a_step_changes_from_epoch_to_epoch():
    grouped = by_length(rows_of(shuffled), LENGTHS, 4)
    steps = [{frozenset(batch.rows) for batch in batches_of_rank(grouped(0, epoch), 4, 0, 1)} for epoch in (0, 1)]
    assert len(steps[0] & steps[1]) < len(steps[0]) / 10
    assert grouped(0, 1) == grouped(0, 1)


def test_a_module_pads_less_and_takes_the_same_dialogues(processor):
    sizes = [random.Random(n).randint(1, 60) for n in range(80)]
    dialogues = [Dialogue((Turn.ask("What? " * size, [], str(n)),), id=str(n)) for n, size in enumerate(sizes)]
    padded, answers = [], []
    for grouped in (False, True):
        module = VisualChatDataModule(processor, dialogues, dialogues[:1], batch_size=4, group_by_length=grouped)
        batches = [batch.inputs for batch in module.train_dataloader()]
        assert len(batches) == module.train_batches() == 20
        padded.append(sum(int((batch["attention_mask"] == 0).sum()) for batch in batches))
        rows = [row[row >= 0] for batch in batches for row in batch["labels"]]
        answers.append(sorted(processor.tokenizer.decode(row, skip_special_tokens=True) for row in rows))
    assert answers[0] == answers[1]
    assert padded[1] < padded[0] / 5


def test_packing_and_grouping_are_one_or_the_other(processor):
    rows = [Dialogue((Turn.ask("?", [], "!"),))]
    with pytest.raises(ValueError, match=r"data\.packing and data\.group_by_length are two ways"):
        VisualChatDataModule(processor, rows, rows, batch_size=1, max_length=9, packing=True, group_by_length=True)

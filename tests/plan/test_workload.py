"""The planner's steps against the sampler's, its table against the paper's."""

import pytest

from visualchat.data.batching.sampler import ResumableBatchSampler, in_order, rows_of
from visualchat.plan.workload import SETS, TABLE_1, of_table, packed_rows, planned_steps


@pytest.mark.parametrize(("rows", "batch", "ranks", "accumulate"), [(100, 4, 3, 2), (1, 4, 8, 4), (128, 4, 8, 4)])
def test_steps_are_those_of_the_sampler(rows, batch, ranks, accumulate):
    batches = len(ResumableBatchSampler(rows_of(in_order(rows)), rows, batch, world_size=ranks))
    assert planned_steps(rows, batch, ranks, accumulate, 3) == 3 * -(-batches // accumulate)


def test_the_table_is_the_papers():
    assert sum(corpus.dialogues for corpus in TABLE_1.values()) == 222_681
    assert set(SETS["set2"]) - set(SETS["set1"]) == {"sparkles_dialogue"}
    load = of_table(SETS["set2"])
    assert load.dialogues == round(0.9 * 222_681)
    assert packed_rows(load, 256, 4096) < load.dialogues / 3  # about four dialogues share a row

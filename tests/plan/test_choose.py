"""Which strategy and batch are chosen, on sizes where the answer is known."""

from small import build

from visualchat.plan.choose import assess, batch_sizes, best, largest, usable
from visualchat.plan.machine import FULL, Machine
from visualchat.plan.memory import Step
from visualchat.plan.shapes import sizes_of

STEP = Step(rows=1, tokens=64, images=1, answers=8, checkpointing=False)


def test_batches_divide_each_gpus_share():
    assert batch_sizes(128, 8) == [1, 2, 4, 8, 16]
    assert batch_sizes(128, 3) == []


def test_the_largest_batch_that_fits():
    sizes = sizes_of(build())
    four = assess(sizes, Machine(1, 1e12, 0.0), "auto", Step(4, 64, 1, 8, False)).memory.total
    machine = Machine(1, four / FULL + 1, 0.0)
    chosen = largest(sizes, machine, "auto", STEP, [1, 2, 4, 8])
    assert (chosen.step.rows, chosen.fits) == (4, True)
    nothing = largest(sizes, Machine(1, 1.0, 0.0), "auto", STEP, [1, 2])
    assert (nothing.step.rows, nothing.fits) == (1, False)


def test_the_first_that_fits_is_taken_and_of_an_offloaded_one_the_largest_batch():
    sizes, machine = sizes_of(build()), Machine(2, 1e12, 0.0)
    small, large = (
        [assess(sizes, machine, name, Step(rows, 64, 1, 8, False)) for rows in (1, 4)]
        for name in ("ddp", "zero3_offload")
    )
    assert best([*small, *large]) is small[0]
    assert best(large) is large[1]
    assert best([assess(sizes, Machine(2, 1.0, 0.0), "ddp", STEP)]) is None


def test_what_is_compared():
    assert usable(None, 1) == ["auto", "zero3_offload", "zero3_nvme"]
    assert usable(8, 8) == ["ddp", "zero1", "zero2"]
    assert usable(4, 8) == ["ddp", "zero1", "zero2", "fsdp2"]
    assert usable(None, 8)[-2:] == ["zero3_offload", "zero3_nvme"]

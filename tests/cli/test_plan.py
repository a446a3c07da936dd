"""`visualchat-plan` from the configuration to what is printed."""

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from visualchat.cli.config import CONF
from visualchat.cli.plan import GIB, make_plan, show


def plan(*overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("plan", list(overrides), return_hydra_config=True)
    return make_plan(config, dict(config.hydra.runtime.choices))


def printed(found):
    console = Console(width=160, no_color=True, record=True)
    with console.capture() as capture:
        show(found, console)
    return capture.get()


def test_the_tiny_world_is_measured_and_fits():
    found = plan("experiment=tiny_4_2_1", "gpus=1")
    assert found.workload.dialogues == 96
    assert found.workload.most_images == 4
    assert found.steps == 5 * 6  # 96 rows in steps of 16
    assert found.configured[0].fits
    text = printed(found)
    assert "As configured it fits: auto, data.batch_size=8." in text
    assert "the configured data: 96 dialogues" in text


def test_70b_on_one_and_on_eight_gpus():
    """LLaMA-2 70B takes 128.5 GiB in bf16 beside the encoder: one GPU of 80 GiB holds it in 4 bits only."""
    eight = plan("experiment=paper_5_2_3", "gpus=8")
    language = sum(part.bytes for part in eight.sizes.parts if part.name not in ("vision encoder", "projector"))
    assert round(language / GIB, 1) == 128.5
    assert [choice.fits for choice in eight.configured] == [False, True]
    assert eight.checkpointing
    text = printed(eight)
    assert "295,706,624" in text
    assert "As configured it fits: zero3, data.batch_size=1, gradient checkpointing." in text
    assert "200,413" in text  # 90% of table 1
    one = plan("experiment=paper_5_2_3", "gpus=1")
    assert not any(choice.fits for choice in one.configured)
    assert "trainer/strategy=zero3_offload with data.batch_size=" in printed(one)
    four_bits = plan("experiment=paper_5_2_3", "gpus=1", "model/quantization=nf4", "trainer/strategy=auto")
    assert four_bits.configured[True].fits


def test_numbers_may_be_given():
    found = plan(
        "experiment=paper_4_2_1",
        "gpus=2",
        "gpu=mine",
        "gpu_memory=48",
        "peak_tflops=100",
        "utilisation=0.5",
        "workload={dialogues: 1280, images: 1, text: 100, answers: 50}",
    )
    assert found.machine.memory == 48 * GIB
    assert found.steps == 5 * 10
    assert found.gpu == ("mine", 100.0, 0.5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gpu=h1000"], r"unknown gpu 'h1000': known are a100, .*; else give gpu_memory and peak_tflops"),
        (["gpus=0", "trainer.devices=1"], r"gpus is at least 1 .* found 0"),
        (["utilisation=40"], r"utilisation between 0 and 1, found 8 and 40"),
        (["trainer.max_epochs=-1"], r"needs the number of epochs, found trainer.max_epochs=-1"),
        (["model/quantization=nf4", "trainer/strategy=zero3"], r"kept whole on each GPU: .* found zero3"),
        (["gpus=3"], r"data.batch_size=4 rows on each of 3 devices: 4 x 3 must divide 128"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(Exception, match=message):  # Hydra wraps the error of an interpolation
        plan("experiment=paper_4_2_1", *overrides)

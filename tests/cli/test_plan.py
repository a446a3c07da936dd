"""`visualchat-plan` from the configuration to what is printed."""

import json
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from rich.console import Console

from visualchat.cli.config import CONF
from visualchat.cli.plan import make_plan
from visualchat.model.parameters import Part
from visualchat.plan.machine import GIB
from visualchat.plan.memory import LIVE_ELEMENTS, STRATEGIES
from visualchat.plan.report import show
from visualchat.plan.workload import SETS


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
    found = plan("experiment=paper_4_2_1", "scale=tiny", "gpus=1")
    assert found.workload.dialogues == 512
    assert found.workload.most_images == 4
    assert found.steps == 5 * 32  # 512 rows in steps of 16
    assert found.configured[0].fits
    text = printed(found)
    assert "As configured it fits: auto, data.batch_size=8." in text
    assert "the configured data: 512 dialogues" in text


def test_70b_on_one_and_on_eight_gpus():
    """LLaMA-2 70B takes 128.5 GiB in bf16 beside the encoder: one GPU of 80 GiB holds it in 4 bits only."""
    eight = plan("experiment=paper_5_2_3", "gpus=8")
    language = sum(part.bytes for part in eight.sizes.parts if part.part not in (Part.VISION, Part.PROJECTOR))
    assert round(language / GIB, 1) == 128.5
    assert [choice.fits for choice in eight.configured] == [False, True]
    assert eight.settings.checkpointing
    text = printed(eight)
    assert "295,706,624" in text
    assert "As configured it fits: zero3, data.batch_size=1, gradient checkpointing." in text
    assert "200,413" in text  # 90% of table 1
    one = plan("experiment=paper_5_2_3", "gpus=1")
    assert not any(choice.fits for choice in one.configured)
    assert "this does: trainer/strategy=zero3_offload data.batch_size=" in printed(one)
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
    assert (found.machine.name, found.machine.peak_tflops, found.machine.utilisation) == ("mine", 100.0, 0.5)


@pytest.fixture
def own(tmp_path):
    """The overrides for forty dialogues about one picture each, with an answer of 317 characters."""
    rows = [
        {
            "id": str(number),
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "path": f"{number}.png"}, {"type": "text", "text": "?"}],
                },
                {"role": "assistant", "content": "x" * 317},
            ],
        }
        for number in range(40)
    ]
    for row in rows:
        (tmp_path / f"{row['id']}.png").touch()  # that it is there is enough: a plan reads no picture
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = [f"source.root={tmp_path}", "source.files=[rows.jsonl]"]
    return ["data=own", "data/source=messages", *source, "data.validation=0.5", "evaluation=none"]


def test_own_data_are_planned_without_a_network(own, monkeypatch):
    """The tokenizer and the pictures' preparation of real backbones lie on the Hub: nothing of them is needed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []
    monkeypatch.setattr("socket.getaddrinfo", lambda *address, **_: asked.append(address) or [])
    found = plan(*own, "model/language=llama3_8b", "model/vision=siglip_so400m", "model/quantization=nf4", "gpus=1")
    assert asked == []
    assert found.workload.images == 1
    assert found.workload.answers == 101  # 317 characters, 3.17 a token, and the end
    assert found.configured[0].step.tokens == 4096  # an estimate of the longest would be no limit
    text = printed(found)
    assert "data=own, data/source=messages, attention mmca" in text
    assert re.search(r"3.17 characters a token \(the tokenizer is not on this machine\)", text)


def test_the_parameter_table_counts_the_bits_that_the_memory_table_counts():
    sixteen, four = (
        printed(plan("experiment=paper_4_2_1", "gpus=1", f"model/quantization={bits}")) for bits in ("none", "nf4")
    )

    def held(text):
        (language,) = re.findall(r"language model +│[^│]*│[^│]*│ *([^│]*?) *│ *([\d.]+)", text)
        (all_of_it,) = re.findall(r"│ all +│[^│]*│[^│]*│[^│]*│ *([\d.]+)", text)
        (weights,) = re.findall(r"│ weights +│ *([\d.]+)", text)
        return language, all_of_it, weights

    assert held(sixteen)[0] == ("bfloat16", "12.1")
    assert held(four)[0] == ("nf4", "3.39")  # 4.5 of 16 bits
    assert held(four)[1] == held(four)[2] != held(sixteen)[1] == held(sixteen)[2]


def test_what_a_plan_advises_can_be_typed_and_fits():
    tight = ["experiment=paper_5_2_3", "gpus=1"]
    (advice,) = re.findall(r"this does: (.*)", printed(plan(*tight)))
    again = plan(*tight, *advice.split())
    assert again.configured[again.settings.checkpointing].fits
    assert again.rows_per_step == plan(*tight).rows_per_step


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["gpu=h1000"], r"unknown gpu 'h1000': known are a100, .*; else give gpu_memory and peak_tflops"),
        (["gpus=0", "trainer.devices=1"], r"gpus is at least 1 .* found 0"),
        (["utilisation=40"], r"utilisation between 0 and 1, found 8 and 40"),
        (["trainer.max_epochs=-1"], r"needs the number of epochs, found trainer.max_epochs=-1"),
        (["model/quantization=nf4", "trainer/strategy=zero3"], r"ZeRO-3 cannot split a language model of 4 bits"),
        (["gpus=3"], r"data.batch_size=4 rows on each of 3 devices: 4 x 3 must divide 128"),
    ],
)
def test_mistakes_are_named(overrides, message):
    with pytest.raises(Exception, match=message):  # Hydra wraps the error of an interpolation
        plan("experiment=paper_4_2_1", *overrides)


def test_blends_and_strategies_of_the_planner_are_those_of_conf():
    """Corpora of each blend, names of the strategies, and what ZeRO-3 gathers at most."""
    blends = {path.stem for path in Path(CONF, "data", "blend").glob("[!_]*.yaml")}
    assert blends == set(SETS)
    with initialize_config_dir(CONF, version_base="1.3"):
        for name in blends:
            blend = compose("train", ["data=corpora", f"data/blend={name}"]).blend
            taken = [part for part in blend.parts if blend.weights.get(part, 1)]
            assert sorted(part.removesuffix("_shuffled") for part in taken) == sorted(SETS[name]), name
        zero = compose("train", ["trainer/strategy=zero3"]).trainer.strategy.zero_optimization
    assert zero.stage3_max_live_parameters == LIVE_ELEMENTS
    assert {path.stem for path in Path(CONF, "trainer", "strategy").glob("[!_]*.yaml")} == set(STRATEGIES)

"""Combinations that cannot be trained are refused at once, by name and with what to choose; all others pass."""

import itertools
import re
from contextlib import nullcontext

import pytest
from hydra import compose, initialize_config_dir

from visualchat.cli.combinations import LEAST, check_combination
from visualchat.cli.config import CONF

STRATEGIES = ("auto", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "zero3_nvme", "fsdp2")
SPLIT = {"none": set(), "nf4": {"zero3", "zero3_offload", "zero3_nvme"}}
SPLIT["int8"] = SPLIT["nf4"] | {"fsdp2"}


@pytest.mark.parametrize("bits", ["none", "nf4", "int8"])
def test_quantized_bases_and_strategies(bits):
    for strategy, trainable in itertools.product(STRATEGIES, ("projector_embedding", "lora_language", "all")):
        choice = [f"trainer/strategy={strategy}", f"model/quantization={bits}", f"model/trainable={trainable}"]
        with initialize_config_dir(CONF, version_base="1.3"):
            config = compose("train", choice)
        if strategy in SPLIT[bits]:
            number = {"nf4": 4, "int8": 8}[bits]
            name = "FSDP2" if strategy == "fsdp2" else "ZeRO-3"
            with pytest.raises(ValueError, match=f"{name} cannot split a language model of {number} bits") as error:
                check_combination(config)
            offered = re.search("trainer/strategy=(.*), or model", str(error.value)).group(1)
            assert set(re.split(", | or ", offered)) == set(STRATEGIES) - SPLIT[bits]
        elif bits != "none" and trainable == "all":
            with pytest.raises(ValueError, match="is frozen: with model/quantization choose model/trainable="):
                check_combination(config)
        else:
            check_combination(config)


@pytest.mark.parametrize(
    ("choice", "held"),
    [
        (["trainer.precision=bf16-true"], "bfloat16"),
        (["trainer.precision=16-true", "dtype=bfloat16"], "float16"),
        (["trainer.precision=bf16-true", "dtype=bfloat16"], None),
        (["trainer.precision=bf16-mixed"], None),
        (["trainer.precision=bf16-mixed", "dtype=bfloat16"], None),
    ],
)
def test_the_trainers_precision_and_the_dtype_of_the_weights(choice, held):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", choice)
    if held is None:
        check_combination(config)
    else:
        with pytest.raises(ValueError, match=f"trains weights of {held}, found dtype=.*: choose dtype={held}"):
            check_combination(config)


def test_batches_are_not_repeated_by_lightning():
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", ["trainer.overfit_batches=2"])
    with pytest.raises(ValueError, match=r"trainer.overfit_batches=2 is not supported.* by data.train.size=8"):
        check_combination(config)


@pytest.mark.parametrize("name", LEAST)
def test_a_number_that_is_too_small_is_refused_before_training(name):
    """A negative limit of the gradient would train away from the data; an evaluation fails when training is over."""
    for value, fits in ((LEAST[name] - 1, False), (LEAST[name], True)):
        with initialize_config_dir(CONF, version_base="1.3"):
            config = compose("train", ["model/trainable=lora_language", f"{name}={value}"])
        with nullcontext() if fits else pytest.raises(ValueError, match=f"^{name}={value}: expected {value + 1} or mo"):
            check_combination(config)


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ("callbacks.checkpoint=null", "callbacks.checkpoint=null"),
        ("data.validation=null", "data.validation=null"),
        ("trainer.fast_dev_run=true", "trainer.fast_dev_run keeps no checkpoint"),
        ("seed=1", None),
    ],
)
def test_the_best_model_of_a_run_that_keeps_none_is_refused(choice, found):
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", ["load_best_model_at_end=true", choice])
    with nullcontext() if found is None else pytest.raises(ValueError, match=f"load_best_model_at_end=true .*{found}"):
        check_combination(config)


def test_adapters_of_image_tokens_are_saved_light():
    with initialize_config_dir(CONF, version_base="1.3"):
        config = compose("train", ["model/trainable=lora_images"])
        light = compose("train", ["model/trainable=lora_images", "save=light"])
    with pytest.raises(ValueError, match="cannot be merged: choose save=light, found save=full"):
        check_combination(config)
    check_combination(light)

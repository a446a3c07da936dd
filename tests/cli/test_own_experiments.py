"""The recipes for data of one's own fit the machines that they name, and no command trains a real model on shapes."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from visualchat.cli.config import CONF
from visualchat.cli.plan import make_plan
from visualchat.cli.train import refuse_drawn_shapes
from visualchat.plan.report import verdict


def composed(command, *overrides):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("experiment", "memory", "gpus"), [("own", 24, 1), ("own_24gb", 24, 1), ("own_80gb", 80, 1), ("own_8gpu", 80, 8)]
)
def test_a_recipe_fits_the_machine_that_it_names(experiment, memory, gpus):
    config = composed("plan", f"experiment={experiment}", "data/source=table")
    found = make_plan(config, dict(config.hydra.runtime.choices))
    assert (found.machine.memory, found.machine.gpus) == (memory * 2**30, gpus)
    assert verdict(found).startswith("As configured it fits")
    assert found.configured[1].memory.total < 0.9 * memory * 2**30

    train = composed("train", f"experiment={experiment}", "data/source=table")
    choices = train.hydra.runtime.choices
    assert (choices["data"], choices["evaluation"], choices["model/quantization"]) == ("own", "default", "nf4")
    assert train.evaluation.dialogues == "validation"
    assert train.gradient_checkpointing
    assert train.data.packing
    assert train.save == "light"
    assert (choices["trainer/strategy"], train.trainer.devices) == (("ddp", 8) if gpus > 1 else ("auto", 1))


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["model/language=llama2_7b"], True),
        (["model.language.path=some/model", "trainer/strategy=zero3"], True),
        (["model/language=llama2_7b", "data=tiny"], False),
        (["model/language=llama2_7b", "data=own", "data/source=messages"], False),
        (["experiment=paper_5_2_1"], False),
        (["model/language=tiny_causal"], False),
        ([], False),
    ],
)
def test_a_real_model_does_not_train_on_drawn_shapes_unasked(monkeypatch, overrides, refused):
    config = composed("train", *overrides)
    monkeypatch.setattr(HydraConfig, "get", lambda: config.hydra)
    if refused:
        with pytest.raises(ValueError, match=r"would train on the drawn shapes of data=tiny, .* say data=own "):
            refuse_drawn_shapes(config)
    else:
        refuse_drawn_shapes(config)

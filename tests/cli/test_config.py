"""How settings are named."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from transformers.utils import logging

from visualchat.cli.config import CONF, attention_setting, check_attention, silence_libraries
from visualchat.model.configuration_visualchat import ATTENTION


def test_the_configuration_tree_is_there():
    assert (Path(CONF) / "chat.yaml").is_file()


def test_no_bar_flickers_up_for_what_takes_less_than_two_seconds(monkeypatch, capsys):
    monkeypatch.setattr("transformers.utils.logging._tqdm_hook", None)  # set back at the end
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)  # whatever a command has left
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    silence_libraries()
    assert list(logging.tqdm(range(3), desc="Loading weights")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    list(logging.tqdm(range(3), desc="Loading weights", delay=0))
    assert "Loading weights" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.stem for path in Path(CONF).glob("attention/[!_]*.yaml")))
def test_a_kind_of_attention_is_named_as_it_is_typed(name):
    with initialize_config_dir(CONF, version_base="1.3"):
        choice = compose("train", [f"attention={name}"]).attention
        wanted = {field: choice[field] for field in ATTENTION.values()}
        assert attention_setting(wanted) == attention_setting(choice) == f"attention={name}"
        wanted |= {"image_numbers": "label", "early_kind": None, "image_positions": "shared"}
        found = compose("train", attention_setting(wanted).split()).attention
    assert {field: found[field] for field in wanted} == wanted


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("attention.early_kind=units", "unknown attention kind 'units', .*did you mean unit"),
        ("attention.early_kind=cross", "unknown attention kind 'cross'"),
        ("attention.image_positions=same", "unknown image_positions 'same', expected one of running, shared"),
        (
            "attention.image_numbers=yes_please",
            "unknown image_numbers 'yes_please', expected one of none, learned, label",
        ),
        ("attention.mixed_with=units", "unknown attention kind 'units', .*did you mean unit"),
        ("attention.mixed_with=mmca", r"attention\.mixed_with=mmca with attention\.kind=mmca .*expected another kind"),
        ("attention=cross attention.mixed_with=mmca", "attention.kind=cross .*images in the sequence"),
        ("attention=image_then_self attention.mixed_with=causal", "by which all layers attend"),
        ("attention.mixed_with=causal attention.mixed_share=0", r"mixed_share=0: expected a share above 0, at most 1"),
    ],
)
def test_a_choice_of_attention_that_does_not_exist_is_refused(typed, message):
    with initialize_config_dir(CONF, version_base="1.3"):
        attention = compose("train", typed.split()).attention
    with pytest.raises(ValueError, match=message):
        check_attention(attention)

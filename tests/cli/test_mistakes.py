"""Mistakes in what was typed: one to three lines, what to type instead, exit code 2, and nothing left behind."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from visualchat.cli import main
from visualchat.cli.config import CONF, setting
from visualchat.cli.mistakes import COMMON, PACKAGE, _settings_of, as_settings, describe, shortened
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.tiny import backbone

LORA = ["model/trainable=lora_language"]
"""With adapters there are settings of adapters."""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in this process: its exit code and what it wrote to the error stream."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"bin/visualchat-{name}", *arguments])
        with pytest.raises(SystemExit) as exit:
            getattr(main, name)()
        return exit.value.code, capsys.readouterr().err

    yield run
    GlobalHydra.instance().clear()


SETTINGS = [
    ("train", ["attention=mcma"], "unknown choice attention=mcma; did you mean mmca?\nattention is one of all_then"),
    ("train", ["model/vision=clip_lrge"], "unknown choice model/vision=clip_lrge; did you mean clip_large?\n"),
    ("train", ["attenton=mmca"], "unknown setting attenton; did you mean attention?"),
    ("train", ["model/visoin=tiny"], "unknown setting model/visoin; did you mean model/vision?"),
    ("train", ["trainer.max_epoch=1"], "unknown setting trainer.max_epoch; did you mean trainer.max_epochs?"),
    ("train", ["max_epochs=1"], "unknown setting max_epochs; did you mean trainer.max_epochs?"),
    ("train", ["data.train.sze=3"], "unknown setting data.train.sze; did you mean data.train.size?"),
    ("train", ["experiment=paper_4_2", "data=tiny"], "unknown choice experiment=paper_4_2; did you mean paper_4_2_2?"),
    ("train", ["optimizer.lr=1e-3"], "unknown setting optimizer.lr; did you mean optimizer.learning_rate?"),
    ("train", ["lr=1e-3"], "unknown setting lr; did you mean optimizer.learning_rate?"),
    ("train", ["trainer.learning_rate=1"], "unknown setting trainer.learning_rate; did you mean optimizer.learning_r"),
    ("train", ["bs=8"], "unknown setting bs; did you mean data.batch_size?"),
    ("train", ["evaluation.bs=8"], "unknown setting evaluation.bs; did you mean evaluation.batch_size?"),
    ("train", ["epochs=3"], "unknown setting epochs; did you mean trainer.max_epochs?"),
    ("train", ["wd=0.1"], "unknown setting wd; did you mean optimizer.weight_decay?"),
    ("train", ["output_dir=x"], "unknown setting output_dir; did you mean hydra.run.dir?"),
    ("chat", ["max_tokens=9"], "unknown setting max_tokens; did you mean max_new_tokens?"),
    ("train", ["xyzzy=1"], "unknown setting xyzzy; --cfg job lists all settings, +NAME=VALUE adds a new one"),
    ("train", ["~xyzzy"], "unknown setting xyzzy; --cfg job"),
    ("train", ["+attention=causal"], "attention has a value already: type attention=... without the +"),
    ("train", ["attention=causal,mmca"], "attention=causal,mmca: for a sweep over these values add -m, for a list"),
    ("train", ["now"], "cannot read 'now': settings are typed as NAME=VALUE"),
    ("train", ["resume=a=b"], "cannot read resume=a=b: a value with = , : { } [ ] ( ) needs quotes, so type "),
    ("train", ["data.x=[1"], "cannot read data.x=[1: a value with"),
    ("evaluate", ["foldr=x"], "unknown setting foldr; did you mean folder?"),
    ("plan", ["gpuss=8"], "unknown setting gpuss; did you mean gpus?"),
    ("study", ["study=image_numbers", "jobbs=3"], "unknown setting jobbs; did you mean jobs?"),
    ("study", ["--config-dir", ".", "study=image_numbers", "jobbs=3"], "unknown setting jobbs; did you mean jobs?"),
    ("study", ["study=image_number"], "unknown choice study=image_number; did you mean image_numbers?"),
    (
        "study",
        [],
        "study is not chosen: type study=...\n"
        "study is one of adaptation, blends, data_efficiency, epochs, exact_reuse, hops, image_numbers, recipe, "
        "what_trains",
    ),
    ("study", ["--config-dir"], "argument --config-dir/-cd: expected one argument"),
    ("train", ["--lr", "1e-3"], "unknown flag --lr: settings are typed without dashes, as optimizer.learning_rate=..."),
    (
        "train",
        ["-m", "seed=1,2", "--save=light"],
        "unknown flag --save=light: settings are typed without dashes, as s",
    ),
    ("train", ["--cfg", "jub"], "argument --cfg/-c: invalid choice: 'jub' (choose from "),
    *(
        (name, ["--foo"], "unknown flag --foo: settings are typed")
        for name in ("evaluate", "chat", "plan", "convert", "generate", "study")
    ),
    ("data", ["check", "--foo"], "unknown flag --foo: settings are typed without dashes, as NAME=VALUE; --help has"),
    ("data", ["chekc"], "unknown action chekc; did you mean check?\nexpected one of check, stats, references, show"),
    ("data", [], "missing action: expected one of check, stats, references, show"),
    ("convert", ["file=x", "folder=y"], "missing action: expected one of from_published, to_published"),
]


@pytest.mark.parametrize(("name", "arguments", "words"), SETTINGS)
def test_a_setting_that_does_not_exist(command, name, arguments, words, tmp_path):
    code, said = command(name, *arguments)
    assert said.startswith(f"visualchat-{name}: {words}")
    assert said.count("\n") <= 3
    assert code == 2
    assert not [*tmp_path.iterdir()]


WORK = [
    ("train", ["save=everything"], "unknown save=everything, expected full, light or both"),
    ("train", ["data=corpora"], "data/blend is not chosen: type data/blend=...\ndata/blend is one of set1, "),
    ("train", ["seed=${nowhere}"], "a setting refers to nowhere, which does not exist"),
    ("train", ["+trainer.colour=1"], "Trainer.__init__() got an unexpected keyword argument 'colour'"),
    ("train", ["trainer.max_epochs=many"], "trainer.max_epochs=many: expected a number such as 2"),
    ("train", ["attention.kind=mcma"], "unknown attention kind 'mcma'"),
    ("train", ["experiment=smoke", "evaluation=none"], "evaluation.dialogues.seen is set, but the chosen evaluation"),
    ("chat", ["folder=nowhere"], "folder=nowhere: no saved model there"),
    ("train", ["data.max_length=20", "data.num_workers=1"], "tiny-train-"),
    ("evaluate", ["folder=nowhere"], "folder=nowhere: no saved model there"),
    ("convert", ["to_published", "folder=nowhere", "file=x"], ""),
    ("convert", ["from_published", "folder=nowhere"], "file is needed: type file=..."),
]


@pytest.mark.parametrize(("name", "arguments", "words"), WORK)
def test_a_value_that_the_work_refuses(command, name, arguments, words, tmp_path):
    """The work begins, so a run has a folder: it is gone again if nothing was left in it."""
    code, said = command(name, *arguments)
    assert said.startswith(f"visualchat-{name}: {words}")
    assert said.count("\n") <= 3
    assert code == 2


def test_every_usual_name_stands_for_a_setting():
    """Of training, but for those that only talking to a model has; and none is a setting's own name."""
    settings = {config: dict(_settings_of(config, LORA if config == "train" else [])) for config in ("train", "chat")}
    for usual, ours in COMMON.items():
        assert ours in settings["train"] or ours in settings["chat"] or ours == "hydra.run.dir", usual
        assert usual not in settings["train"]


def test_another_attention_than_that_to_start_from_is_named_as_it_is_typed(command, tmp_path, capsys):
    model = VisualChatForConditionalGeneration.from_backbones(
        backbone("vision"),
        backbone("language_mixed"),
        image_seq_length=16,
        attention_kind="mmca_joint",
        image_numbers="learned",
    )
    model.save_pretrained(tmp_path / "numbered")
    capsys.readouterr()
    code, said = command("train", "init=numbered", "model/projector=linear")
    assert said == (
        "visualchat-train: init=numbered does not fit this configuration: it has attention=numbered, configured is "
        "attention=mmca\n"
    )
    assert code == 2


@pytest.mark.parametrize("name", ["chat", "evaluate"])
@pytest.mark.parametrize(
    ("file", "size"), [("model.safetensors", 1_000_000), ("model.safetensors", 9), ("tokenizer.json", 5000)]
)
def test_a_file_of_a_saved_model_that_was_cut_short_is_named(command, tmp_path, capsys, name, file, size):
    """As a full disk or a copy that was stopped leaves it."""
    parts = backbone("vision"), backbone("language_mixed")
    VisualChatForConditionalGeneration.from_backbones(*parts, image_seq_length=16).save_pretrained(tmp_path / "whole")
    VisualChatProcessor.from_backbones(*parts, image_seq_length=16).save_pretrained(tmp_path / "whole")
    os.truncate(tmp_path / "whole" / file, size)
    capsys.readouterr()
    code, said = command(name, "folder=whole")
    assert re.fullmatch(rf"visualchat-{name}: whole/{file} is damaged: .*; put a sound copy in its place\n", said)
    assert code == 2


def test_a_refused_run_leaves_no_folder(command, tmp_path):
    command("train", "save=everything")
    assert not [*tmp_path.iterdir()]
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    command("train", "save=everything", "hydra.run.dir=kept")
    assert (tmp_path / "kept" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_whole_trace_is_shown_when_asked_for(command, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    code, said = command("train", "save=everything", *(["debug=true"] if how == "argument" else []))
    assert "Traceback" in said
    assert said.endswith("visualchat-train: unknown save=everything, expected full, light or both\n")
    assert code == 2


def test_a_fault_of_the_program_keeps_its_trace(command, monkeypatch):
    """Also a ValueError, where other people's code raised it."""

    def fault(*_, **__):
        torch.zeros(2).view(-1, -1, 3)

    monkeypatch.setattr("visualchat.model.saved.saved_model", fault)
    monkeypatch.setattr("visualchat.cli.evaluate.saved_model", fault)
    code, said = command("evaluate")
    assert said.startswith("Traceback")
    assert code == 1


@pytest.mark.slow
def test_a_sweep_with_a_failed_run_ends_with_its_words(tmp_path):
    code = "import sys; sys.argv[0] = 'visualchat-train'; from visualchat.cli.main import train; train()"
    done = subprocess.run(
        [sys.executable, "-c", code, "-m", "experiment=smoke", "save=everything,nothing"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "visualchat-train: unknown save=everything, expected full, light or both"
    assert "Traceback" not in done.stderr
    assert done.stdout.count("this run failed: unknown save=") == 2
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("3 rows are damaged; on_error=skip leaves them out", "3 rows are damaged; data.bad_rows=skip leaves them out"),
        ("packing=true fills rows of max_length tokens", "data.packing=true fills rows of max_length tokens"),
        ("needs split_by=row", "needs data.split_by=row"),
        ("choose save=light or data/source=own", "choose save=light or data/source=own"),
        ("x_y_z=1 is nobody's", "x_y_z=1 is nobody's"),
    ],
)
def test_remedies_name_settings_that_exist(words, meant):
    """The library names its own arguments; what a person reads can be typed."""
    own = ["data=own", "data/source=messages", "evaluation=default"]
    assert as_settings(words, "train", own) == meant


def remedies() -> set[str]:
    """What the errors of the package tell people to set, as `name=value`."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                texts = [part.value for part in ast.walk(node.exc) if isinstance(part, ast.Constant)]
                for text in texts:
                    found.update(
                        re.findall(r"(?<![\w./])[a-z_]+(?:[./][a-z_]+)*=\w+", text if isinstance(text, str) else "")
                    )
    return found


PYTHON_ONLY = {"add_generation_prompt", "tokenize", "max_length"}
"""Arguments of the processor, which only people who write Python meet."""

OF_THE_TINY_WORLD = ("data.train.",)
"""Settings that other data do not have; their remedies say so."""


OF_OTHER_COMMANDS = {
    "rounds": ("generate", ["input=questions.jsonl"]),
    **dict.fromkeys(("port", "cluster"), ("serve", [])),
    **dict.fromkeys(("images", "protocol"), ("judge", ["predictions=outputs/one", "judge=NAME"])),
    **dict.fromkeys(("again", "results"), ("studies", ["study=image_numbers"])),
}
"""Settings that training has not: by name, whose they are, and what else that command must be given."""


def test_every_remedy_of_the_package_is_a_setting():
    own = ["data=own", "data/source=messages", "evaluation=default"]
    named = [item for item in remedies() if item.partition("=")[0] not in PYTHON_ONLY and not item.endswith("=FILE")]
    assert len(named) >= 8
    for remedy in sorted(named):
        command, given = OF_OTHER_COMMANDS.get(remedy.partition("=")[0], ("train", own))
        typed = as_settings(remedy, command, given)
        with initialize_config_dir(CONF, version_base="1.3"):
            compose(command, [*([] if typed.startswith(OF_THE_TINY_WORLD) else given), typed])


@pytest.mark.parametrize(
    "value", ["outputs/a-1+b.c-x/model", "my run/a=1,b=[2]", "it's", 'say "x"', "back\\slash\\", "$HOME {x} (y)", "é"]
)
def test_what_is_printed_to_type_is_read_as_meant(value):
    typed = subprocess.run(
        ["bash", "-c", f"printf '%s' {setting('folder', value)}"], capture_output=True, text=True, check=True
    )
    with initialize_config_dir(CONF, version_base="1.3"):
        assert compose("chat", [typed.stdout]).folder == value


def test_long_words_are_cut_to_three_lines():
    assert shortened("a\nb\n\nc\n") == "a\nb\nc"
    assert shortened("a\nb\nc\nd\ne") == "a\nb\n(3 more lines: debug=true shows them)"


def test_an_error_without_words_is_a_fault():
    assert describe(KeyError("x"), "train", []) == (1, None)
    assert describe(AssertionError(), "train", []) == (1, None)
    assert describe(FileNotFoundError(2, "No such file or directory", "x.json"), "train", []) == (
        2,
        "[Errno 2] No such file or directory: 'x.json'",
    )
    assert Path(__file__).is_file()


def test_every_heading_of_the_page_on_errors_is_provoked_here():
    page = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^## `(.*)`$", page, re.MULTILINE)
    assert len(headings) >= 9
    provoked = [words.partition("\n")[0].strip() for _, _, words in SETTINGS + WORK]
    for heading in headings:
        assert any(words and heading.startswith(words) for words in provoked), heading


def test_an_interrupted_start_leaves_no_folder(command, tmp_path, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("visualchat.cli.command.imported", lambda module: SimpleNamespace(run=interrupted))
    assert command("train") == (130, "")
    assert not (tmp_path / "outputs").exists()

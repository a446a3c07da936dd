"""Every file under conf/ composes, every `_target_` exists and takes what it is given, experiments say how to run."""

import datetime
import functools
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import lightning
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from omegaconf import DictConfig, OmegaConf

from targets import check_targets
from visualchat.cli.config import CONF
from visualchat.cli.mistakes import groups
from visualchat.dialogue.template import PAPER_SYSTEM

ROOT = Path(CONF)
COMMANDS = ("train", "evaluate", "chat", "generate", "serve", "data_tool", "convert", "plan", "studies")
EVERY = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.yaml"))
SHARED = [path for path in EVERY if any(part.startswith("_") for part in path.parts)]
FILES = [path for path in EVERY if path.parent != Path() and path not in SHARED]
NEEDED = {
    "data_tool": ["action=check"],
    "convert": ["action=to_published", "file=file", "folder=folder"],
    "generate": ["input=file"],
    "studies": ["study=image_numbers"],
}
UNBUILT = ("chat", "generate", "serve", "studies")  # whose configurations build nothing
RUN_OF = {
    "evaluate": "evaluate",
    "generate": "generate",
    "none": "chat",
}  # the folder rules of other commands than training
OF_ONE = {"cluster": "serve", "study": "studies"}  # groups of one other command


def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_composes(command):
    config = composed(command, *(NEEDED.get(command, [])))
    assert check_targets(config) or command in UNBUILT


def command_of(path: Path) -> str:
    group = path.parent.as_posix()
    return RUN_OF.get(path.stem, "train") if group == "run" else OF_ONE.get(group, "train")


def rows() -> Iterator[tuple[Path, ...]]:
    """Files that one line can name together: a command's first of each group, its second of each, and so on."""
    groups: dict[str, dict[Path, list[Path]]] = {}
    for path in FILES:
        groups.setdefault(command_of(path), {}).setdefault(path.parent, []).append(path)
    for of_command in groups.values():
        yield from (tuple(filter(None, row)) for row in itertools.zip_longest(*of_command.values()))


@pytest.mark.parametrize("row", [*rows()], ids=lambda row: ",".join(map(str, row)))
def test_each_file_composes_into_a_command(row):
    command = command_of(row[0])
    chosen = {path.parent.as_posix(): path.stem for path in row}
    needed = [one for one in NEEDED.get(command, []) if one.partition("=")[0] not in chosen]
    config = composed(command, *needed, *(f"{group}={name}" for group, name in chosen.items()))
    assert {group: config.hydra.runtime.choices[group] for group in chosen} == chosen
    assert check_targets(config) or command in UNBUILT


@pytest.mark.parametrize("path", SHARED, ids=str)
def test_what_files_share_is_included_and_never_offered(path):
    if path.parent.name == "_twin":
        scale, _, experiment = path.stem.partition("_")
        assert (ROOT / "scale" / f"{scale}.yaml").is_file()
        assert (ROOT / "experiment" / f"{experiment}.yaml").is_file()
    else:
        others = [(ROOT / other).read_text() for other in EVERY if other != path]
        assert any(re.search(rf"^  - {path.stem}\b|/{path.parent.name}: {path.stem}$", text, re.M) for text in others)
    assert path.stem not in groups().get(path.parent.as_posix(), [])
    assert path.parent.as_posix() not in groups() or path.stem.startswith("_")


def test_the_system_text_of_real_models_is_the_papers():
    for path in (ROOT / "model" / "language").glob("[!_]*.yaml"):
        system = composed("train", f"model/language={path.stem}").model.language.system
        assert (system == PAPER_SYSTEM) != path.stem.startswith("tiny"), path.stem


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "data").glob("[!_]*.yaml")))
def test_all_data_take_the_same_settings(name):
    settings = {"batch_size": 2, "max_length": 64, "packing": True, "bad_rows": "skip", "num_workers": 1, "seed": 5}
    settings["feature_cache"] = "features"
    data = composed("train", f"data={name}", *(f"data.{key}={value}" for key, value in settings.items())).data
    assert {key: data[key] for key in settings} == settings


def test_an_evaluation_is_of_the_data_that_trains():
    for overrides, expected in (
        ([], "tiny"),
        (["data=tiny_mixed"], "tiny"),
        (["data=tiny_hops"], "tiny_hops"),
        (["data=own"], "default"),
        (["data=corpora", "data/blend=set1"], "default"),
        (["data=own", "evaluation=none"], "none"),
        (["experiment=paper_5_2_1"], "none"),
        (["experiment=paper_5_2_1", "scale=tiny"], "tiny"),
    ):
        assert composed("train", *overrides).hydra.runtime.choices.evaluation == expected, overrides
    assert composed("evaluate", "data=own").evaluation.dialogues == "validation"


@pytest.mark.parametrize("path", EVERY, ids=str)
def test_each_file_says_what_it_is(path):
    first = next(line for line in (ROOT / path).read_text().splitlines() if not line.startswith("# @package"))
    assert first.startswith("# "), f"{path} does not open with a comment"


def test_experiments_open_with_their_command():
    for path in (ROOT / "experiment").glob("*.yaml"):
        several = "-m " if points(f"experiment={path.stem}") != [[]] else ""
        first = path.read_text().splitlines()[1].partition(":")[0]
        data = " data/source=table source.root=my_folder source.files=[mine.csv]" if path.stem.startswith("own") else ""
        assert first == f"# visualchat-train {several}experiment={path.stem}{data}"


def test_a_scale_opens_with_its_command():
    for path in (ROOT / "scale").glob("*.yaml"):
        assert path.read_text().splitlines()[1] == f"# visualchat-train experiment=paper scale={path.stem}"


@functools.cache
def points(*overrides: str) -> list[list[str]]:
    """The overrides of each run of an experiment's own sweep; one run without any if it has none."""
    sweeper = composed("train", *overrides).hydra.sweeper
    axes = [[f"{name}={value}" for value in str(values).split(",")] for name, values in (sweeper.params or {}).items()]
    return [[*point] for point in itertools.product(*axes)]


EXPERIMENTS = sorted(path.stem for path in (ROOT / "experiment").glob("*.yaml"))
OF_THE_PAPER = [name for name in EXPERIMENTS if name.startswith("paper")]


@pytest.mark.parametrize("experiment", [*EXPERIMENTS, *(f"{name} scale=tiny" for name in OF_THE_PAPER)])
def test_each_run_of_an_experiments_sweep_composes(experiment):
    overrides = f"experiment={experiment}".split()
    for point in points(*overrides):
        config = composed("train", *overrides, *point)
        assert check_targets(config)
        for override in point:
            name, value = override.split("=")
            if name not in config.hydra.runtime.choices:
                assert OmegaConf.select(config, name) == OmegaConf.from_dotlist([f"v={value}"]).v


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_every_experiment_of_the_paper_has_a_twin_that_varies_the_same(name):
    twin = points(f"experiment={name}", "scale=tiny")
    assert len(twin) == len(points(f"experiment={name}"))
    assert len({tuple(point) for point in twin}) == len(twin)
    config = composed("train", f"experiment={name}", "scale=tiny", *twin[-1])
    choices = config.hydra.runtime.choices
    captions = "_captions" if name == "paper_4_2_1" else ""
    assert (choices["model/vision"], choices.data) == ("tiny", f"tiny{captions}")
    assert choices.evaluation == f"tiny{captions}"
    assert choices["model/language"].startswith("tiny")
    assert config.trainer.accelerator == "cpu"
    assert not config.get("blend")


def test_an_experiments_own_values_win():
    config = composed("train", "experiment=paper")
    assert (config.dtype, config.trainer.precision, config.seed) == ("bfloat16", "bf16-true", 1234)
    assert composed("train", "experiment=paper", "dtype=float16").dtype == "float16"


def test_an_unknown_name_is_named_with_the_known_ones():
    with pytest.raises(MissingConfigException, match=r"Could not find 'attention/mcma'[\s\S]*cross\n[\s\S]*mmca"):
        composed("train", "attention=mcma")


def test_a_target_that_does_not_take_its_argument_is_found():
    config = composed("train", "+optimizer.momentum=0.9")
    with pytest.raises(AssertionError, match=r"OptimizerSettings takes no \{'momentum'\}"):
        check_targets(config)


@pytest.mark.parametrize(("projector", "tokens"), [("linear", 257), ("perceiver", 256)])
def test_the_projector_decides_how_many_tokens_an_image_takes(projector, tokens):
    config = composed("train", "model/vision=clip_large", f"model/projector={projector}")
    assert config.model.projector == {"type": projector}
    assert config.processor.image_seq_length == config.build_model.image_seq_length == tokens


def test_every_argument_of_the_trainer_can_be_set():
    """Without a plus; loggers and callbacks have groups of their own, plugins are ours."""
    parameters = inspect.signature(lightning.Trainer.__init__).parameters
    config = composed("train").trainer
    assert set(config) - {"_target_"} == set(parameters) - {"self", "logger", "callbacks", "plugins"}
    ours = {"accelerator", "devices", "precision", "max_epochs", "gradient_clip_val", "log_every_n_steps"}
    ours |= {"num_sanity_val_steps", "enable_model_summary", "default_root_dir", "use_distributed_sampler"}
    for name in set(config) - {"_target_", "strategy"} - ours:  # Lightning's own defaults
        assert config[name] == parameters[name].default, name


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload", "zero3_nvme"])
def test_every_plain_setting_of_a_strategy_can_be_set(name):
    """What YAML can say and the strategy reads; DeepSpeed's own settings are in its `zero_optimization`."""
    config = composed("train", f"trainer/strategy={name}", "trainer.strategy.timeout.seconds=7").trainer.strategy
    shared = {"process_group_backend", "timeout"}
    scaling = {"loss_scale", "initial_scale_power", "loss_scale_window", "hysteresis", "min_loss_scale"}
    of_ddp = {"start_method", "find_unused_parameters", "static_graph", "gradient_as_bucket_view", "bucket_cap_mb"}
    own = of_ddp if name == "ddp" else scaling if name.startswith("zero") else set()
    assert shared | own <= set(config)
    known = set(inspect.signature(DeepSpeedStrategy.__init__ if name.startswith("zero") else DDPStrategy).parameters)
    assert shared | own - of_ddp <= known
    assert instantiate(config)._timeout == datetime.timedelta(seconds=7)

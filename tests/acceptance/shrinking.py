"""How a documented line becomes one that a laptop runs in seconds: by what it chooses, overrides are put behind it.

Of the line itself only what stands for a reader's own folder is filled in, and of a sweep over numbers the first two
are typed (all of them compose, test_documents.py). The rules go by the configuration that the line composes to, so a
new line needs a new rule only where it chooses something new.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands import only_run
from omegaconf import DictConfig, OmegaConf

from visualchat.tiny import backbone

TALK = "/draw 3\nWhat is it?\n/quit\n"
"""What is typed while a command runs; only a chat reads it."""

CANNOT = {
    r"^make( (install|test[a-z-]*|check|format|help|same)\b.*)?$": "sets up, or runs tests: CI does so",
    r"trainer/strategy=zero3_nvme": "offload to local disks needs libaio and a GPU",
    r"model\.vision\.path=qwen_clip\.bin": "bare weights are read with Qwen-VL's own sizes, 1.9 billion parameters",
    r"evaluation=coco_karpathy": "COCO's validation images are 6 GB; test_twins.py scores a twin of them",
}
"""Lines that no CPU can run, by what they contain, and why. They compose all the same."""

ELSEWHERE = {
    "outputs/rehearsal": "test_own_data.py types these, as they stand",
    "visualchat-judge": "test_judge.py types these, with a judge of its own",
    "outputs/(one|two)": "test_evaluation_page.py types these, one after the other",
    r"answers=\[": "test_answers_compared.py types such a line",
    "experiment=paper_4_2_1 scale=tiny": "test_experiments.py types it, with epochs beside its own sweep",
    r"cluster\.address=auto": "test_cluster.py types it, on a Ray cluster of two nodes",
}
"""Lines that another test types, by what they contain, and where."""

PLACEHOLDERS: dict[str, Callable[[Path], str]] = {
    r"(?<!dir=)outputs/[\w.]+": lambda folder: str(only_run(folder).relative_to(folder)),
    r"(?<=file=)\.\.\.(?=/)": lambda folder: "published",
    r"(?<=^language=)/.*": lambda folder: str(backbone("language_mixed")),
    r"(?<=^vision=)/.*": lambda folder: str(backbone("vision")),
}
"""What stands for something of the reader's, and what it is in a folder in which a run has ended."""


def filled(words: Sequence[str], folder: Path) -> list[str]:
    """The words with the reader's own folders in their places, without a lone `...` and a sweep's third number on."""
    found = [re.sub(r"=(\d+,\d+)(,\d+)+$", r"=\1", word) for word in words if word != "..."]
    for pattern, value in PLACEHOLDERS.items():
        found = [re.sub(pattern, lambda _, value=value: value(folder), word) for word in found]
    assert not any("..." in word for word in found), f"no rule says what stands for ... in {' '.join(words)}"
    return found


@dataclass(frozen=True)
class Rule:
    """What is put behind a line that composes to a certain configuration.

    Attributes:
        when: Whether the rule holds for a configuration.
        overrides: What it puts behind the line.
    """

    when: Callable[[DictConfig], bool]
    overrides: Sequence[str]


def chosen(group: str, *names: str) -> Callable[[DictConfig], bool]:
    """Holds where a group's choice is one of these."""
    return lambda config: config.hydra.runtime.choices.get(group) in names


def has(key: str) -> Callable[[DictConfig], bool]:
    """Holds where a configuration has a value at this place."""
    return lambda config: OmegaConf.select(config, key) is not None


def real(part: str) -> Callable[[DictConfig], bool]:
    """Holds where the vision encoder or the language model is not one of the tiny world."""
    return lambda config: not str(config.hydra.runtime.choices.get(f"model/{part}", "tiny")).startswith("tiny")


def several(key: str) -> Callable[[DictConfig], bool]:
    """Holds where there are more than one of something."""
    return lambda config: isinstance(count := OmegaConf.select(config, key), int) and count > 1


DATA = (
    Rule(
        chosen("data", "tiny", "tiny_captions", "tiny_hops"),
        ["data.train.size=64", "data.validation.size=4", "data.batch_size=8"],
    ),
    Rule(
        chosen("data", "tiny_mixed"),
        [
            *(f"data.train.parts.{part}.size=32" for part in ("pictures", "captions")),
            *(f"data.validation.parts.{part}.size=2" for part in ("pictures", "captions")),
            "data.batch_size=8",
        ],
    ),
)
TRAINING = (
    Rule(has("trainer.accelerator"), ["trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]),
    Rule(several("trainer.devices"), ["trainer.devices=2", "data.batch_size=4"]),
    Rule(has("rows_per_step"), ["rows_per_step=8"]),
    # short rows: some CPUs have no instructions for 16 bits, and take half a minute for a step of long ones
    Rule(
        chosen("data", "own", "corpora"),
        ["data.num_workers=1", "data.batch_size=2", "data.max_length=512", "trainer.max_steps=8"],
    ),
    # a few steps at the rates for many would rise before they fall
    Rule(chosen("optimizer", "tiny"), ["optimizer.learning_rate=3e-3", "optimizer.embedding_learning_rate=1e-3"]),
    Rule(has("callbacks.samples"), ["callbacks.samples.count=1", "callbacks.samples.max_new_tokens=4"]),
    Rule(has("logger.wandb"), ["logger.wandb.offline=true"]),
)
BACKBONES = (
    Rule(
        real("vision"),
        [
            f"model.vision.path={backbone('vision')}",
            "model.vision.image_seq_length=16",
            "model.vision.feature_layer=null",
            "model.vision.select_strategy=full",
        ],
    ),
    Rule(real("language"), [f"model.language.path={backbone('language_mixed')}"]),
    Rule(chosen("model/template", "chat"), [f"model.language.path={backbone('language_causal')}"]),  # it has a format
)
EVALUATION = (
    Rule(
        chosen("evaluation", "tiny", "tiny_captions"),
        [
            *("evaluation.dialogues.seen.size=4", "evaluation.dialogues.unseen.size=2", "evaluation.samples=1"),
            "evaluation.captioned=null",
        ],
    ),
    Rule(
        chosen("evaluation", "tiny_hops"),
        [
            *(f"evaluation.dialogues.{part}.size=2" for part in ("seen", "more", "unseen")),
            *("evaluation.captioned=null", "evaluation.samples=1"),
        ],
    ),
)
CHAT = (Rule(has("max_new_tokens"), ["max_new_tokens=4"]),)
SERVE = (
    *CHAT,
    Rule(has("port"), ["port=0"]),
    Rule(has("cluster.replicas"), ["cluster.replicas=1", "cluster.cpus=0.5", "cluster.object_store_bytes=100000000"]),
)
SHORT = '"data.train.size=8","data.batch_size=4","trainer.max_epochs=1"'
FEW = '"evaluation.dialogues.seen.size=4","evaluation.dialogues.unseen.size=2","evaluation.modes=[teacher_forced]"'
"""Settings of a study's runs and of their evaluation."""
LEFT_OUT = ("mmca", "mmca_joint", "numbered", "numbers from words", "unit", "cross")
STUDY = (
    Rule(has("plan"), ["plan.seeds=[0]"]),
    Rule(
        chosen("study", "image_numbers"),
        [
            *(f"plan.train=[{SHORT}]", f"plan.evaluate=[{FEW}]"),
            "plan.without=[{kind: causal},{kind: mmca_joint},{kind: unit}]",
            "plan.claims=[{factor: numbers,level: learned,against: none,expect: better}]",
        ],
    ),
    Rule(
        chosen("study", "hops"),
        [
            f'plan.train=["data=tiny_hops","model/language=tiny_hops",{SHORT}]',
            f'plan.evaluate=["evaluation=tiny_hops","evaluation.dialogues.more.size=2",{FEW}]',
            f"+plan.without=[{','.join(f'{{kind: {kind}}}' for kind in LEFT_OUT)}]",
            "plan.claims=[{factor: kind,level: label,against: causal,expect: better,kinds: [one image]}]",
        ],
    ),
)

RULES = {
    "visualchat-train": (*DATA, *TRAINING, *BACKBONES, *EVALUATION),
    "visualchat-evaluate": (
        *DATA,
        *EVALUATION,
        Rule(has("evaluation.max_new_tokens"), ["evaluation.max_new_tokens=8"]),
    ),
    "visualchat-data": (
        *DATA,
        *BACKBONES,
        Rule(has("max_unsound"), ["max_unsound=1.0"]),  # the rows made here speak of images that they lack
    ),
    "visualchat-convert": (
        Rule(has("model.vision"), ["model.vision.path=clip", "model.vision.image_seq_length=5"]),
        Rule(has("model.language"), ["model.language.path=llama"]),
    ),
    "visualchat-chat": CHAT,
    "visualchat-generate": CHAT,
    "visualchat-judge": (),
    "visualchat-serve": SERVE,
    "visualchat-web": (*SERVE, Rule(has("page"), ["page.open=false"])),
    "visualchat-plan": (),
    "visualchat-study": STUDY,
}
"""For each command what makes its lines small."""


def small(command: str, config: DictConfig) -> list[str]:
    """The overrides that make a line of this command small.

    Raises:
        KeyError: There are no rules for the command.
    """
    return [override for rule in RULES[command] if rule.when(config) for override in rule.overrides]

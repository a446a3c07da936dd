"""What went wrong, in words for the person who typed the command: one to three lines, with what to type instead.

A mistake ends a command with exit code 2, a run that cannot continue with 1; both without a trace. Everything else is a
fault of the program and keeps its trace.
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from visualchat.cli.config import CONF

MISTAKE, FAILURE = 2, 1
"""Exit codes."""

COMMON = {
    "batch": "data.batch_size",
    "bs": "data.batch_size",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "grad_accum": "trainer.accumulate_grad_batches",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "lora_r": "model.trainable.lora_rank",
    "lr": "optimizer.learning_rate",
    "max_grad_norm": "trainer.gradient_clip_val",
    "max_len": "data.max_length",
    "max_seq_len": "data.max_length",
    "max_seq_length": "data.max_length",
    "max_tokens": "max_new_tokens",
    "model_max_length": "data.max_length",
    "num_epochs": "trainer.max_epochs",
    "num_gpus": "trainer.devices",
    "num_train_epochs": "trainer.max_epochs",
    "output_dir": "hydra.run.dir",
    "per_device_train_batch_size": "data.batch_size",
    "resume_from_checkpoint": "resume",
    "steps": "trainer.max_steps",
    "warmup": "optimizer.warmup_fraction",
    "warmup_ratio": "optimizer.warmup_fraction",
    "wd": "optimizer.weight_decay",
    "workers": "data.num_workers",
}
"""What other tools of the field call a setting, and ours."""

PACKAGE = Path(__file__).resolve().parents[1]


def describe(error: BaseException, config: str, arguments: Sequence[str]) -> tuple[int, str | None]:
    """The exit code of an error, and its words; None for a fault of the program.

    Args:
        error: What ended the command.
        config: The file of `conf/` that holds the command's settings.
        arguments: Hydra's overrides, as typed.
    """
    words = _settings(error, config, arguments)
    cause = error
    if words is None:
        if isinstance(error, InstantiationException) and error.__cause__ is not None:
            cause = error.__cause__
        if (from_worker := _from_worker(cause)) is not None:
            words = from_worker
        elif isinstance(cause, RuntimeError) and _is_ours(cause):
            return FAILURE, shortened(str(cause))
        elif _is_mistake(cause, instantiated=cause is not error):
            words = str(cause)
        elif isinstance(cause, TypeError | ValueError | AttributeError):
            words = _wrong_type(config, arguments)
        words = words and as_settings(words, config, arguments)
    return (FAILURE, None) if words is None else (MISTAKE, shortened(words))


def as_settings(words: str, config: str, arguments: Sequence[str]) -> str:
    """Arguments of our functions that a message names, as `limit=3`, by the settings that give them: `data.limit=3`."""
    pattern = r"(?<![\w./])([a-z_]+)(?==\w)"
    if not (arguments_named := set(re.findall(pattern, words))):
        return words
    names = _settings_of(config, arguments)
    full: dict[str, str] = {}
    for name in arguments_named - {*names, *groups()}:
        if same := sorted((other for other in names if other.endswith(f".{name}")), key=lambda other: other.count(".")):
            full[name] = names[same[0]] or same[0]  # a setting that follows another one is set by that
    return re.sub(pattern, lambda match: full.get(match[1], match[1]), words)


def shortened(words: str, lines: int = 3) -> str:
    """At most three lines; the place of the rest is named."""
    spoken = [line for line in words.strip().splitlines() if line.strip()]
    if len(spoken) <= lines:
        return "\n".join(spoken)
    return "\n".join([*spoken[: lines - 1], f"({len(spoken) - lines + 1} more lines: debug=true shows them)"])


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for a name that is nearly a known one, else nothing."""
    known_name = near(name, [*known])
    return f"; did you mean {known_name}?" if known_name else ""


def near(name: str, known: Sequence[str]) -> str | None:
    """The known name that was probably meant: by its last part, or what `COMMON` has for that, else by the whole.

    Of several with the same last part the one whose other parts are most like those typed.
    """
    above, _, last = name.rpartition(".")
    usual = COMMON.get(last, "")
    for word in (last, usual.rpartition(".")[2]):
        same = [other for other in known if word and re.split(r"[./]", other)[-1] == word]
        if not above and usual in same:
            return usual
        if same:
            return max(same, key=lambda other: difflib.SequenceMatcher(None, above, other.rpartition(".")[0]).ratio())
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)


def setting_like(name: str, config: str) -> str | None:
    """The setting of a command that a person who typed this name probably meant; None if none is near."""
    return near(name, _names(config, []))


def groups() -> dict[str, list[str]]:
    """The choices of every group of `conf/`; what others include has a name with `_` and is none."""
    choices: dict[str, list[str]] = {}
    for path in sorted(Path(CONF).rglob("*.yaml")):
        place = path.relative_to(CONF)
        group = place.parent.as_posix()
        if group not in (".", "run") and not any(part.startswith("_") for part in place.parts):
            choices.setdefault(group, []).append(path.stem)
    return choices


def _is_ours(error: BaseException) -> bool:
    """Whether our own code raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(PACKAGE)


def _is_mistake(error: BaseException, *, instantiated: bool) -> bool:
    """Whether the error says what a person did wrong: a setting, a file, or a value that our code refuses."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError):
        return True
    if isinstance(error, OSError):
        return error.errno is None  # transformers', about a model that is not there
    if type(error).__name__ == "MisconfigurationException":  # Lightning's
        return True
    if isinstance(error, TypeError):
        return instantiated and "unexpected keyword argument" in str(error)
    return isinstance(error, ValueError) and (instantiated or _is_ours(error))


def _from_worker(error: BaseException) -> str | None:
    """The words of our own `ValueError` in a worker of torch's DataLoader, which reaches us as a trace in a text."""
    text = str(error)
    if not isinstance(error, ValueError) or not text.startswith("Caught ") or "DataLoader worker process" not in text:
        return None
    place = re.findall(r'^  File "([^"]+)"', text, re.MULTILINE)[-1:]
    if not place or not Path(place[0]).resolve().is_relative_to(PACKAGE):
        return None
    return re.split(r"^[\w.]*Error: ", text, flags=re.MULTILINE)[-1]


def _settings(error: BaseException, config: str, arguments: Sequence[str]) -> str | None:
    """Words for an error of Hydra's about what was typed; None for any other."""
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error, arguments)
    if isinstance(error, MissingConfigException) and (match := re.search(r"Could not find '([^']+)'", text)):
        group, _, choice = match[1].rpartition("/")
        if not (known := groups().get(group, [])):
            return f"unknown setting {group or choice}{nearest(group or choice, groups())}"
        return f"unknown choice {group}={choice}{nearest(choice, known)}\n{group} is one of {', '.join(known)}"
    if match := re.search(r"Could not override '([^']+)'|Could not delete from config\. '([^']+)'", text):
        return _unknown(match[1] or match[2], config, arguments)
    if match := re.search(r"Multiple values for (\S+)\.", text):
        return f"{match[1]} has a value already: type {match[1]}=... without the +"
    if match := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, value = match[1].partition("=")
        return f"{match[1]}: for a sweep over these values add -m, for a list type '{key}=[{value}]'"
    if match := re.match(r"You must specify '([^']+)', e\.g", text):
        return f"{match[1]} is not chosen: type {match[1]}=...\n{match[1]} is one of {', '.join(groups()[match[1]])}"
    if isinstance(error, InterpolationKeyError) and (match := re.search(r"Interpolation key '([^']+)'", text)):
        wanting = {group: choices for group, choices in groups().items() if group.rpartition("/")[2] == match[1]}
        for group, choices in wanting.items():
            return f"{group} is not chosen: type {group}=...\n{group} is one of {', '.join(choices)}"
        return f"a setting refers to {match[1]}, which does not exist{nearest(match[1], _settings_of(config, []))}"
    if isinstance(error, MissingMandatoryValue) and (match := re.search(r"Missing mandatory value: (\S+)", text)):
        return f"{match[1]} is needed: type {match[1]}=..."
    if isinstance(error, HydraException | OmegaConfBaseException) and not isinstance(error, InstantiationException):
        return None if _is_ours(error) else text
    return None


def _unreadable(error: OverrideParseException, arguments: Sequence[str]) -> str:
    typed = error.override or next((item for item in arguments if not _is_readable(item)), "")
    name, equals, value = typed.partition("=")
    if not equals:
        return f"cannot read {typed!r}: settings are typed as NAME=VALUE"
    if "'" in value or '"' in value:
        return f"cannot read {typed}: its quotes or brackets do not match"
    return f"cannot read {typed}: a value with = , : {{ }} [ ] ( ) needs quotes, so type '{name}=\"{value}\"'"


def _is_readable(argument: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([argument])
    except OverrideParseException:
        return False
    return True


def _unknown(name: str, config: str, arguments: Sequence[str]) -> str:
    """Words for a setting that does not exist."""
    others = [item for item in arguments if not re.match(rf"[~+]*{re.escape(name)}(@|=|$)", item)]
    guess = nearest(name, _names(config, others))
    return f"unknown setting {name}{guess or '; --cfg job lists all settings, +NAME=VALUE adds a new one'}"


def _names(config: str, arguments: Sequence[str]) -> list[str]:
    """All that can be set: settings, groups, and where a run leaves its files."""
    return [*_settings_of(config, arguments), *groups(), "hydra.run.dir"]


def _settings_of(config: str, arguments: Sequence[str]) -> dict[str, str | None]:
    """The settings of a command with these overrides, or without any where they do not compose.

    Each with the name of the setting that it follows, None where it has a value of its own.
    """
    typed = [item for item in arguments if not item.startswith("-")]
    for overrides in (typed, []):
        try:
            return dict(_nodes(_composed(config, overrides)))
        except (HydraException, OmegaConfBaseException):
            continue
    return {}


def _composed(config: str, overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(config, overrides=[*overrides])


def _nodes(config: DictConfig) -> Iterable[tuple[str, str | None]]:
    """The name of every node, dotted, and which other node it refers to."""

    def below(node: Any, prefix: str) -> Iterable[tuple[str, str | None]]:
        for key, value in node.items():
            refers = re.match(r"\$\{(?:oc\.select:)?([\w.]+)[,}]", value) if isinstance(value, str) else None
            yield f"{prefix}{key}", refers[1] if refers else None
            if isinstance(value, dict):
                yield from below(value, f"{prefix}{key}.")

    return below(OmegaConf.to_container(config, resolve=False), "")


def _wrong_type(config: str, arguments: Sequence[str]) -> str | None:
    """Words for a typed word where the configuration has a number or a switch; None if there is none."""
    typed = [item for item in arguments if not item.startswith("-")]
    for override in OverridesParser.create().parse_overrides(typed):
        if override.is_delete() or override.is_add() or override.is_sweep_override() or "/" in override.key_or_group:
            continue
        others = [item for item in typed if item != override.input_line]
        try:
            expected = OmegaConf.select(_composed(config, others), override.key_or_group)
        except (HydraException, OmegaConfBaseException):
            continue
        if isinstance(expected, bool | int | float) and isinstance(override.value(), str):
            kind = "true or false" if isinstance(expected, bool) else f"a number such as {expected}"
            return f"{override.input_line}: expected {kind}"
    return None

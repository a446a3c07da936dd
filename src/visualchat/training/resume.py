"""Which checkpoint a run resumes from: the newest sound one, whatever a kill or a full disk left of the others.

And whether it can: the model must be the same one, and what else was changed since is named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from visualchat.training.checkpoint_io import damage

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Where a run's folder keeps them."""

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
"""The newest, the one before it, and the one with the best validation; a run resumes from the latter only if it is
named, because a validation may fall between two optimizer steps, where some gradients are already accumulated."""


MODEL_SETTINGS = ("attention", "model", "dtype", "trainer.precision")
"""The settings that say what the model is, and compute what it computes: with others it is no longer the same run."""

TRAINING_SETTINGS = (
    "attention.implementation",
    "optimizer",
    "seed",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    "trainer.gradient_clip_algorithm",
)
"""The settings that change what training makes of the model; people change them on purpose, and are told."""


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a run that a checkpoint keeps, by their dotted names, out of its whole configuration.

    The data speaks for itself (`VisualChatDataModule.load_state_dict`); where files lie does not matter.
    """
    return {
        name: value
        for name, value in _flat(config)
        if name.startswith((*MODEL_SETTINGS, *TRAINING_SETTINGS)) and ".path" not in name
    }


def require_same_model(then: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """What has changed of the settings in `TRAINING_SETTINGS`, in words.

    Args:
        then: What `settings_of` gave when the checkpoint was made; None if it was not kept.
        now: What it gives now.

    Raises:
        ValueError: A setting in `MODEL_SETTINGS` has changed.
    """
    if not then:
        return []
    changed = {
        name: f"{name} was {then.get(name)}, now {now.get(name)}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    }
    if other := [
        text
        for name, text in changed.items()
        if name.startswith(MODEL_SETTINGS) and not name.startswith(TRAINING_SETTINGS)
    ]:
        raise ValueError(
            f"the checkpoint is of another model: {'; '.join(other)}; give the old settings again, or train the other "
            "model in a folder of its own (hydra.run.dir=) without resume="
        )
    return [*changed.values()]


def _flat(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, node


def find_checkpoint(resume: str | Path | None, run: Path) -> Path | None:
    """The checkpoint that `resume` means, for a run whose folder is `run`.

    Args:
        resume: None to start from scratch; `auto` for the newest of its own folder, from scratch if it has none; a
            checkpoint; or another run's folder, for its newest. Where the newest is damaged, the one before it is
            taken, with a warning that names both.
        run: The run's folder.

    Raises:
        ValueError: What was asked for does not exist, or nothing of it is sound.
    """
    if resume is None:
        return None
    automatic = str(resume) == "auto"
    path = run if automatic else Path(resume)
    if path.is_file() or (path.suffix == ".ckpt" and path.is_dir()):
        if reason := damage(path):
            raise ValueError(f"resume={resume}: {reason}; name the run's folder to resume from its newest sound one")
        return path
    if not path.is_dir() and not automatic:
        raise ValueError(f"resume={resume}: there is no such checkpoint or folder")
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    candidates = [folder / name for name in (LAST, PREVIOUS) if (folder / name).exists()]
    if not candidates:
        if automatic:
            log.info("no checkpoint in %s yet: starting from scratch", folder)
            return None
        raise ValueError(f"resume={resume}: no checkpoint there, expected {LAST} in it or in its {FOLDER}/")
    return _newest_sound(candidates)


def _newest_sound(candidates: list[Path]) -> Path:
    """The first sound one.

    Raises:
        ValueError: None is.
    """
    unusable: list[str] = []
    for path in candidates:
        if (reason := damage(path)) is None:
            if unusable:
                log.warning("%s: resuming from %s instead", "; ".join(unusable), path)
            return path
        unusable.append(f"{path} is not usable: {reason}")
    raise ValueError("; ".join(unusable))

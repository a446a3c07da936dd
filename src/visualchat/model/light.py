"""A light folder: what trains, and which base it belongs to; the frozen backbones are not copied.

`trained.safetensors` holds the parameters that require gradients, `light.json` the names of the backbones, their
fingerprint, and all else that it takes to assemble the model again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.fingerprint import base_fingerprint
from visualchat.model.modeling_visualchat import VisualChatForConditionalGeneration
from visualchat.model.trainable import Trainable, not_finite, set_trainable, trainable_state

CARD, WEIGHTS = "light.json", "trained.safetensors"


def save_light(
    model: VisualChatForConditionalGeneration,
    folder: str | Path,
    vision: str | Path,
    language: str | Path,
    trainable: Trainable | None = None,
    fingerprint: str | None = None,
    whole: str | Path | None = None,
) -> None:
    """Write what trains of a model, bound to its base.

    Args:
        model: Its parameters that require gradients are written, in their own dtype.
        folder: Made if it is not there.
        vision: The vision encoder that `from_backbones` was given. A local folder is noted relative to this one.
        language: The language model, likewise.
        trainable: What trains of the model, as `set_trainable` was told; projector and token embedding if None.
        fingerprint: Of the base, where it is known; None to compute it.
        whole: The folder of a whole saved model, where that is the base in place of the two backbones.

    Raises:
        ValueError: Nothing of the model trains, or what does is not finite.
    """
    state = {name: value.contiguous().cpu() for name, value in trainable_state(model).items()}
    if not state:
        raise ValueError("no parameter requires a gradient: a light folder would be empty")
    if wrong := not_finite(state):
        raise ValueError(f"a model whose trained parameters are not finite is not saved: {', '.join(wrong)}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    card = {
        "base": {
            **({"whole": _noted(whole, folder)} if whole is not None else {}),
            "vision": _noted(vision, folder),
            "language": _noted(language, folder),
            "fingerprint": fingerprint or base_fingerprint(model),
            "dtype": str(_head_dtype(model)).removeprefix("torch."),
            "language_bits": language_bits(model),
            "vocab_size": model.language_model.config.vocab_size,
        },
        "config": _joint_fields(model.config),
        "trainable": asdict(trainable or Trainable()),
        "trained": {name: list(value.shape) for name, value in state.items()},
        "sha256": _sha256(folder / WEIGHTS),
    }
    (folder / CARD).write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


def load_light(
    folder: str | Path,
    vision: str | Path | None = None,
    language: str | Path | None = None,
) -> VisualChatForConditionalGeneration:
    """The model of a light folder, in evaluation mode; what was saved requires gradients, all else does not.

    Args:
        folder: What `save_light` wrote.
        vision: Where the vision encoder is now; None for where it was.
        language: Where the language model is now; None for where it was.

    Raises:
        ValueError: The folder is not a light one or is damaged, its parts do not fit together, or the backbones are not
            found or others than it was trained with.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file():
        raise ValueError(f"{folder}: not a light folder ({CARD} is missing)")
    card = json.loads((folder / CARD).read_text())
    if "sha256" in card and _sha256(folder / WEIGHTS) != card["sha256"]:
        raise ValueError(f"{folder}: {WEIGHTS} is damaged, it is not what was saved with {CARD}; copy the folder again")
    state = load_file(folder / WEIGHTS)
    if wrong := not_finite(state):
        raise ValueError(f"{folder}: trained parameters are not finite: {', '.join(wrong)}")
    base = card["base"]
    if "whole" not in base:
        vision = vision or resolve_base(base["vision"], folder, "vision")
        language = language or resolve_base(base["language"], folder, "language")
    model = _base_model(base, folder, vision, language, card["config"])
    set_trainable(model, Trainable(**card["trainable"]))
    _check_names(model, state, card, folder)
    if base_fingerprint(model) != base["fingerprint"]:
        raise ValueError(
            f"{folder} belongs to another base: it was trained on vision {base['vision']} and language "
            f"{base['language']}, found vision {vision} and language {language} with other weights"
        )
    model.load_state_dict(state, strict=False, assign=True)
    return model.eval()


def _base_model(
    base: dict[str, Any], folder: Path, vision: Any, language: Any, config: dict[str, Any]
) -> VisualChatForConditionalGeneration:
    """What a light folder stands on: a whole saved model, or two backbones."""
    dtype = getattr(torch, base["dtype"])
    if "whole" in base:
        return VisualChatForConditionalGeneration.from_pretrained(resolve_base(base["whole"], folder), dtype=dtype)
    return VisualChatForConditionalGeneration.from_backbones(
        vision,
        language,
        dtype=dtype,
        vocab_size=base["vocab_size"],
        language_bits=base["language_bits"],
        **config,
    )


def _check_names(
    model: VisualChatForConditionalGeneration, state: dict[str, torch.Tensor], card: dict[str, Any], folder: Path
) -> None:
    """Raise a ValueError unless the file holds what its card says, and the model has it."""
    saved = {name: tuple(value.shape) for name, value in state.items()}
    noted = {name: tuple(shape) for name, shape in card["trained"].items()}
    trains = {name: tuple(value.shape) for name, value in model.named_parameters() if value.requires_grad}
    problems = [f"{name} is missing in {WEIGHTS}" for name in sorted(noted.keys() - saved.keys())]
    problems += [f"{name} is surplus in {WEIGHTS}" for name in sorted(saved.keys() - noted.keys())]
    problems += [f"{name} does not train in the model" for name in sorted(saved.keys() - trains.keys())]
    problems += [f"{name}, which trains in the model, was not saved" for name in sorted(trains.keys() - noted.keys())]
    problems += [
        f"{name} is {saved[name]}, in the model {trains[name]}"
        for name in sorted(saved.keys() & trains.keys())
        if saved[name] != trains[name]
    ]
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}")


def _head_dtype(model: VisualChatForConditionalGeneration) -> torch.dtype:
    """That of the language model's head, which is never quantized."""
    return model.get_output_embeddings().weight.dtype


def language_bits(model: VisualChatForConditionalGeneration) -> int | None:
    """In how many bits the language model is held; None where it is not quantized."""
    settings = getattr(model.language_model.config, "quantization_config", None)
    if settings is None:
        return None
    return 4 if settings.load_in_4bit else 8


def _joint_fields(config: VisualChatConfig) -> dict[str, Any]:
    """The configuration without the backbones', which come with them."""
    left_out = (
        "vision_config",
        "text_config",
        "model_type",
        "architectures",
        "dtype",
        "transformers_version",
        "auto_map",
    )
    return {name: value for name, value in config.to_diff_dict().items() if name not in left_out}


def _noted(base: str | Path, folder: Path) -> str:
    """A Hub name as it is; a local folder relative to the light one, so that both can move together."""
    return os.path.relpath(base, folder) if Path(base).is_dir() else str(base)


def resolve_base(noted: str, folder: Path, part: str = "whole") -> str | Path:
    """Where the base is that a light folder has noted: a local folder, seen from there, or a name on the Hub.

    Args:
        noted: What its card says.
        folder: The light folder.
        part: `vision` or `language`, or `whole` for a whole model.

    Raises:
        ValueError: It is neither.
    """
    local = folder / noted
    if not Path(noted).is_absolute() and local.is_dir():
        return local.resolve()
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", noted):
        remedy = "move both together" if part == "whole" else f"say where it is now with {part}=FOLDER"
        raise ValueError(f"{folder} names its {part} base as {noted}, seen from there, and there is none: {remedy}")
    return noted


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

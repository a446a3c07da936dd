"""Training that starts from a saved VisualChat folder instead of fresh parts: a second stage, other data.

The configuration still says what the model is; the folder says with which weights it starts, and must fit it. A whole
folder brings every weight. A light one brings what trained of it, over the configured base: that may be held in other
bits or another precision than then, such as in 4 bits under new adapters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer

from visualchat.model.configuration_visualchat import ATTENTION, VisualChatConfig
from visualchat.model.fingerprint import base_fingerprint
from visualchat.model.light import CARD, WEIGHTS, language_bits, resolve_base
from visualchat.model.modeling_visualchat import VisualChatForConditionalGeneration
from visualchat.model.remote_code import load_without_code
from visualchat.model.sharding import writable
from visualchat.model.trainable import Trainable
from visualchat.model.vision import vision_config

BuildModel = partial[VisualChatForConditionalGeneration]
Fill = Callable[[VisualChatForConditionalGeneration], None]

Words = Callable[[Mapping[str, Any]], str]

CHOICES = {
    "projector_type": "model/projector",
    "image_seq_length": "model/vision",
    "vision_feature_layer": "model/vision",
    "vision_feature_select_strategy": "model/vision",
    "cross_attention_every": "attention.every",
    "image_number_limit": "attention.image_number_limit",
}
"""Fields of the configuration that weights depend on, beside attention, and what chooses them."""


def _fields(attention: Mapping[str, Any]) -> str:
    """Attention as the configuration of a model has it."""
    return " ".join(f"{field}={attention[name]!r}" for field, name in ATTENTION.items())


def start_from(
    folder: str | Path, build_model: BuildModel, trainable: Trainable, attention: Words = _fields
) -> tuple[BuildModel, Fill | None]:
    """How a model is built that starts from a saved folder, and what fills it once it is settled what trains.

    Args:
        folder: Of a saved model, whole or light.
        build_model: `from_backbones` with the configured backbones and settings.
        trainable: What is to train.
        attention: Says, of `VisualChatConfig.attention`, what is typed for it.

    Raises:
        ValueError: The folder holds no saved model, or one that does not fit the configuration; each difference is
            named with what was found, what is configured and what chooses it.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return _whole(folder, build_model, attention), None
    if not (folder / CARD).is_file():
        raise ValueError(f"init={folder}: no saved model there (config.json or {CARD} is missing)")
    card = json.loads((folder / CARD).read_text())
    differences = _differences(VisualChatConfig(**card["config"]), build_model, attention)
    _check(folder, differences + _other_parts(card, trainable))
    vocabulary = card["base"]["vocab_size"]
    if build_model.keywords.get("vocab_size", 0) > vocabulary:
        _check(folder, [f"a vocabulary of {vocabulary} tokens, too few for the tokenizer (model/template)"])
    fill = partial(_fill, folder=folder, card=card, backbones=build_model.keywords)
    if "whole" in card["base"]:
        build_model = _whole(Path(resolve_base(card["base"]["whole"], folder)), build_model, attention)
    return build_model, fill


def _check(folder: Path, differences: list[str]) -> None:
    if differences:
        raise ValueError(f"init={folder} does not fit this configuration: it has {'; '.join(differences)}")


def _differences(saved: VisualChatConfig, build_model: BuildModel, attention: Words) -> list[str]:
    """What the weights depend on and differs from the configuration."""
    configured = VisualChatConfig(
        **{name: value for name, value in build_model.keywords.items() if name in VisualChatConfig.__annotations__}
    )
    idle = {
        "cross_attention_every": not saved.images_outside,
        "image_number_limit": "none" in (saved.image_numbers, configured.image_numbers),
    }
    then, now = saved.attention, configured.attention
    kinds = [f"{attention(then)}, configured is {attention(now)}"] if then != now else []
    return kinds + [
        f"{name}={getattr(saved, name)!r}, configured is {getattr(configured, name)!r} ({CHOICES[name]}=...)"
        for name in CHOICES
        if not idle.get(name) and getattr(saved, name) != getattr(configured, name)
    ]


def _whole(folder: Path, build_model: BuildModel, attention: Words) -> BuildModel:
    """Every weight of the folder, under the configured implementation of attention and precision."""
    keywords = build_model.keywords
    if keywords.get("language_bits"):
        raise ValueError(
            f"init={folder} is a whole model, which is not quantized while it loads: leave model/quantization=none, or "
            "start from the light folder that a run with save=light or save=both leaves"
        )
    saved = VisualChatConfig.from_pretrained(folder)
    differences = _differences(saved, build_model, attention)
    for part, config, configured in (
        ("vision", saved.vision_config, vision_config(keywords["vision"])),
        ("language", saved.text_config, load_without_code(AutoConfig.from_pretrained, keywords["language"])),
    ):
        if _sizes(config) != _sizes(configured):
            differences.append(f"{_sizes(config)}; configured is {_sizes(configured)} (model/{part}=...)")
    if not differences and not _same_tokens(folder, keywords["language"], keywords["vocab_size"]):
        differences.append("another tokenizer (model/language=..., model/template=...)")
    _check(folder, differences)
    return partial(
        VisualChatForConditionalGeneration.from_pretrained,
        pretrained_model_name_or_path=folder,
        dtype=keywords["dtype"],
        attention_implementation=keywords["attention_implementation"],
    )


def _sizes(config: Any) -> str:
    """A backbone in a few words, by which one that does not fit is told."""
    words = [str(config.model_type)]
    for name, unit in (("num_hidden_layers", "layers"), ("hidden_size", "wide"), ("num_attention_heads", "heads")):
        if (size := getattr(config, name, None)) is not None:
            words.append(f"{size} {unit}")
    return ", ".join(words)


def whole_base(build_model: Callable[[], VisualChatForConditionalGeneration]) -> str | Path | None:
    """The whole folder that a model is built from; None for one that is built from two backbones."""
    folder: str | Path | None = getattr(build_model, "keywords", {}).get("pretrained_model_name_or_path")
    return folder


def _same_tokens(folder: Path, language: str | Path, size: int) -> bool:
    """Whether the saved tokenizer is the configured one, with as many tokens as the template asks for."""
    saved, configured = (load_without_code(AutoTokenizer.from_pretrained, path) for path in (folder, language))
    return len(saved) == size and configured.get_vocab().items() <= saved.get_vocab().items()


def _other_parts(card: Mapping[str, Any], trainable: Trainable) -> list[str]:
    """What trained of a light folder and would be frozen or changed, so that no new light folder could hold it."""
    saved = Trainable(**card["trainable"])
    parts = ("projector", "embedding", "vision", "language")
    differences = [
        f"trained {part}={getattr(saved, part)}, configured is {getattr(trainable, part)} (model/trainable=...)"
        for part in parts
        if getattr(saved, part) not in (False, "frozen") and not _trains(part, saved, trainable)
    ]
    if any(choice.startswith("lora") for choice in (saved.vision, saved.language)):
        differences += [
            f"{name}={getattr(saved, name):g}, configured is {getattr(trainable, name):g} (model.trainable.{name}=...)"
            for name in ("lora_rank", "lora_alpha")
            if getattr(saved, name) != getattr(trainable, name)
        ]
    return differences


def _trains(part: str, saved: Trainable, trainable: Trainable) -> bool:
    """Whether a part that trained trains again, in the same way."""
    if part == "embedding":
        return trainable.embedding or trainable.language == "full"
    return bool(getattr(saved, part) == getattr(trainable, part))


def _fill(
    model: VisualChatForConditionalGeneration, folder: Path, card: Mapping[str, Any], backbones: Mapping[str, Any]
) -> None:
    """Put what trained into a model of which it is settled what trains; all ranks must come here together.

    Raises:
        ValueError: The file does not hold what its card says, the model lacks it, or the base is another one.
    """
    state = load_file(folder / WEIGHTS)
    parameters = dict(model.named_parameters())
    odd = sorted((set(state) ^ set(card["trained"])) | (set(state) - set(parameters)))
    if odd:
        raise ValueError(f"init={folder}: {WEIGHTS}, {CARD} and the model differ in {', '.join(odd[:4])}")
    base, dtype = card["base"], model.get_output_embeddings().weight.dtype
    if (base["language_bits"], base["dtype"]) == (language_bits(model), str(dtype).removeprefix("torch.")):
        same = base_fingerprint(model, trained=state) == base["fingerprint"]
    else:  # the same numbers, rounded to another precision: names are all there is to compare
        same = all(_same_folder(base[part], backbones[part], folder) for part in ("vision", "language"))
    if not same:
        raise ValueError(
            f"init={folder} belongs to another base: it was trained on vision {base['vision']} and language "
            f"{base['language']}, configured are {backbones['vision']} and {backbones['language']}"
        )
    for name, value in state.items():
        with torch.no_grad(), writable(parameters[name]) as weight:
            if weight.shape != value.shape:
                raise ValueError(f"init={folder}: {name} is {(*value.shape,)}, in the model {(*weight.shape,)}")
            weight.copy_(value)


def _same_folder(noted: str, configured: str | Path, folder: Path) -> bool:
    """Whether a light folder's note of a backbone names the configured one."""
    base = resolve_base(noted, folder)
    return str(base) == str(configured) or (Path(configured).is_dir() and Path(base) == Path(configured).resolve())

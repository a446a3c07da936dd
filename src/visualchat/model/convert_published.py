"""The published code's `pytorch_model.bin` <-> our saved folder, tensor by tensor; files are memory-mapped.

The layout is that of DeepSpeedExamples' applications/DeepSpeed-VisualChat: `vis_encoder.*` (CLIP, or the encoder of
Qwen-VL), `projection.*`, `lang_decoder.*` (LLaMA), and `lang_embed.weight`, the trained copy of the token embedding.
That code embeds a prompt by the trained copy and what it generates by the frozen one in `lang_decoder`; ours has one
embedding, the trained one. When that code saves, LoRA is fused into the base, so what is left of it is dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig

from visualchat.model.configuration_visualchat import VisualChatConfig
from visualchat.model.modeling_visualchat import VisualChatForConditionalGeneration
from visualchat.model.projector import ViTProjector
from visualchat.model.remote_code import load_without_code
from visualchat.model.vision import vision_config

FILE = "pytorch_model.bin"

EMBEDDING = "language_model.model.embed_tokens.weight"
TRAINED, FROZEN = "lang_embed.weight", "lang_decoder.model.embed_tokens.weight"

LEFT_OUT = (".inv_freq", ".position_ids", ".lora_right_weight", ".lora_left_weight")
"""Endings of names that hold nothing: recomputed buffers, and adapters already fused."""

VISION_PREFIXES = {"clip_vision_model": "vis_encoder.vision_model.", "qwen_vl_vision": "vis_encoder."}
"""The encoders that the published code knows, and how their names begin there."""

PROJECTOR_PREFIXES = {
    "linear_norm": {"projection.": "multi_modal_projector."},
    "vit": {
        "projection.vis_layer.": "multi_modal_projector.layer.",
        "projection.projection.": "multi_modal_projector.baseline.",
    },
}


def from_published(
    file: str | Path, folder: str | Path, vision: str | Path, language: str | Path, **config: Any
) -> VisualChatConfig:
    """Write the model of a published file as a folder that `from_pretrained` loads, in the file's own precision.

    Args:
        file: A `pytorch_model.bin`, or the folder that holds one.
        folder: Where to write; not the processor.
        vision: Names the encoder that is in the file; only its configuration is read.
        language: Names the LLaMA that is in the file; only its configuration is read. Its vocabulary becomes the
            file's, which has tokens of the published code at its end.
        **config: Further fields of `VisualChatConfig`; the projector is recognised.

    Raises:
        ValueError: The file is not such a file, or its weights are not exactly those of the model; they are named.
    """
    file = Path(file) / FILE if Path(file).is_dir() else Path(file)
    weights = _read(file)
    text_config = load_without_code(AutoConfig.from_pretrained, language)
    text_config.vocab_size = len(weights[TRAINED if TRAINED in weights else FROZEN])
    text_config.tie_word_embeddings = False
    encoder = vision_config(vision)
    encoder.name_or_path = text_config.name_or_path = ""
    joint = VisualChatConfig(
        vision_config=encoder,
        text_config=text_config,
        projector_type=_projector_type(weights, file),
        architectures=[VisualChatForConditionalGeneration.__name__],
        dtype=Counter(weight.dtype for weight in weights.values()).most_common(1)[0][0],
        **config,
    )
    state = _ours(weights, joint)
    with torch.device("meta"):
        model = VisualChatForConditionalGeneration(joint)
    _check(state, model.state_dict(), file)
    Path(folder).mkdir(parents=True, exist_ok=True)
    joint.save_pretrained(folder)
    try:
        generation = GenerationConfig.from_pretrained(language)
    except OSError:  # a base without one
        generation = GenerationConfig.from_model_config(text_config)
    generation.save_pretrained(folder)
    save_torch_state_dict(state, folder, metadata={"format": "pt"})
    return joint


def to_published(folder: str | Path, file: str | Path) -> None:
    """Write the weights of a saved folder as a published file.

    The trained embedding is written in both places, so that the published code generates with it too.

    Args:
        folder: What `save_pretrained` wrote.
        file: A `pytorch_model.bin` to write.

    Raises:
        ValueError: The published code has no such encoder, projector or language model, or the folder holds no weights.
    """
    config = VisualChatConfig.from_pretrained(folder)
    renamed = {ours: theirs for theirs, ours in _prefixes(config).items()}
    state = {}
    for name, weight in _weights_of(Path(folder)).items():
        prefix = next(prefix for prefix in renamed if name.startswith(prefix))
        state[renamed[prefix] + name.removeprefix(prefix)] = weight
    state[TRAINED] = state[FROZEN]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, file)


def _read(file: Path) -> dict[str, Tensor]:
    """The weights of a published file, memory-mapped."""
    if not file.is_file():
        raise ValueError(f"{file}: there is no such file")
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as weights: {error}") from error
    if not isinstance(weights, dict) or not {TRAINED, FROZEN} & weights.keys():
        raise ValueError(f"{file} is not of the published code: it holds neither {TRAINED} nor {FROZEN}")
    weights = {name: weight for name, weight in weights.items() if not name.endswith(LEFT_OUT)}
    if TRAINED in weights:
        weights.pop(FROZEN, None)
    return weights


def _projector_type(weights: Mapping[str, Tensor], file: Path) -> str:
    names = [name for name in weights if name.startswith("projection.")]
    if any(name.startswith("projection.vis_layer.") for name in names):
        return "vit"
    if "projection.0.weight" in names:
        return "linear_norm"
    raise ValueError(
        f"{file}: unknown projector; expected the published code's `baseline` or `vit` (its `perceiver` differs "
        f"from ours), found {', '.join(sorted(names)[:8]) or 'none'}"
    )


def _prefixes(config: VisualChatConfig) -> dict[str, str]:
    """How names begin in the published layout -> how in ours.

    Raises:
        ValueError: The published code knows no such model.
    """
    assert isinstance(config.vision_config, PreTrainedConfig)
    assert isinstance(config.text_config, PreTrainedConfig)
    if config.image_positions != "running" or config.early is not None:
        raise ValueError(
            "the published code counts the positions of all tokens and attends alike in all layers, found "
            f"image_positions {config.image_positions!r}, early_attention_kind {config.early_attention_kind!r}"
        )
    if config.image_numbers != "none":
        raise ValueError(f"the published code has no image numbers, found image_numbers {config.image_numbers!r}")
    encoder, language = config.vision_config.model_type, config.text_config.model_type
    if encoder not in VISION_PREFIXES or config.projector_type not in PROJECTOR_PREFIXES or language != "llama":
        raise ValueError(
            f"the published code has encoders {', '.join(VISION_PREFIXES)}, projectors {', '.join(PROJECTOR_PREFIXES)} "
            f"and llama; found {encoder}, {config.projector_type} and {language}"
        )
    if config.projector_type == "vit":
        _check_vit(config.vision_config)
    return {
        VISION_PREFIXES[encoder]: "vision_tower.",
        **PROJECTOR_PREFIXES[config.projector_type],
        "lang_decoder.": "language_model.",
    }


def _check_vit(encoder: PreTrainedConfig) -> None:
    """Refuse a `vit` projector whose layer is another there: that code gives it the encoder's heads and activation.

    Neither is in the file, so nothing else would tell.

    Raises:
        ValueError: Ours differ from the encoder's.
    """
    ours = ViTProjector.layer_config(encoder.hidden_size)
    for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        theirs, expected = getattr(encoder, name, None), getattr(ours, name)
        if encoder.model_type != "clip_vision_model" or theirs != expected:
            raise ValueError(
                f"the published code's vit projector has its encoder's {name}, {theirs!r} in {encoder.model_type}, "
                f"ours has {expected!r} at width {encoder.hidden_size}: it would compute something else"
            )


def _ours(weights: Mapping[str, Tensor], config: VisualChatConfig) -> dict[str, Tensor]:
    """The weights under our names; one that nothing is known of keeps its own."""
    prefixes = _prefixes(config)
    state = {}
    for name, weight in weights.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        state[prefixes.get(prefix, "") + name.removeprefix(prefix)] = weight
    if TRAINED in state:
        state[EMBEDDING] = state.pop(TRAINED)
    return state


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    """Raise a ValueError unless names and shapes are those of the model."""
    problems = []
    if missing := sorted(expected.keys() - state.keys()):
        problems.append(f"missing are {', '.join(missing)}")
    if unexpected := sorted(state.keys() - expected.keys()):
        problems.append(f"unexpected are {', '.join(unexpected)}")
    for name in sorted(state.keys() & expected.keys()):
        found, wanted = tuple(state[name].shape), tuple(expected[name].shape)
        if found != wanted:
            problems.append(f"{name} is {found}, expected {wanted}")
    if problems:
        raise ValueError(f"{file} does not fit the encoder and language model named: {'; '.join(problems)}")


def _weights_of(folder: Path) -> dict[str, Tensor]:
    """All weights of a saved folder, memory-mapped from its files."""
    state = {}
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            state.update({name: weights.get_tensor(name) for name in weights.keys()})  # noqa: SIM118
    if not state:
        raise ValueError(f"{folder}: no model*.safetensors there, expected a whole model saved by save_pretrained")
    return state

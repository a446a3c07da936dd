"""Qwen-VL's checkpoints -> the weights of their vision encoder; only the files that hold them are opened.

A checkpoint is a folder or a Hub name with `transformer.visual.*` among a whole model's weights (one file or shards
with an index, pickled or safetensors), or one file with the encoder's weights alone, with or without that prefix.
Nothing in it is executed: pickles are read with `weights_only`. Files are memory-mapped, so weights that
are not needed are never read.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

PREFIX = "transformer.visual."
"""What Qwen-VL's weights of the encoder begin with."""

LEFT_OUT = frozenset({"proj"})
"""Weights of the checkpoint's encoder that ours does not have."""


def read_encoder(path: str | Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The encoder's weights by name, without prefix, memory-mapped from their files.

    Args:
        path: A folder, a Hub name, or a file of the encoder's weights alone.
        expected: Names and shapes that the encoder has.

    Raises:
        ValueError: A file is missing or damaged, or its weights are not exactly those expected; file and weight are
            named.
    """
    state: dict[str, Tensor] = {}
    for file, promised in weight_files(path).items():
        weights = _encoder_weights(file, promised)
        for name, weight in weights.items():
            if name in expected and tuple(weight.shape) != expected[name]:
                raise ValueError(f"{file}: {name} has shape {tuple(weight.shape)}, expected {expected[name]}")
        state |= weights
    for odd, names in (("lacks", expected.keys() - state), ("holds unknown", state.keys() - expected)):
        if names:
            raise ValueError(f"{path}: the Qwen-VL encoder {odd} {_some(names)}")
    return state


def weight_files(path: str | Path) -> dict[Path, list[str]]:
    """The files that hold the encoder's weights, each with the names that the index promises of it, if there is one.

    Raises:
        ValueError: There is no file of weights, a shard is missing, or the index is damaged or knows no encoder.
    """
    if Path(path).is_file():
        return {Path(path): []}
    for name in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME):
        if (index := _resolve(path, name)) is not None:
            return _shards(path, index)
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (file := _resolve(path, name)) is not None:
            return {file: []}
    known = ", ".join((SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME))
    raise ValueError(f"{path} holds no weights, expected one of {known}")


def _shards(path: str | Path, index: Path) -> dict[Path, list[str]]:
    """The shards with weights of the encoder."""
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = [(str(name), str(shard)) for name, shard in places.items() if name.startswith(PREFIX)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is not an index of weights: {error!r}") from error
    shards: dict[Path, list[str]] = {}
    for name, shard in named:
        if name.removeprefix(PREFIX) in LEFT_OUT:
            continue
        if Path(shard).name != shard:
            raise ValueError(f"{index}: {name} lies in {shard!r}, expected the name of a file beside the index")
        file = _resolve(path, shard)
        if file is None:
            raise ValueError(f"{path} lacks {shard}, which {index.name} says holds {name}")
        shards.setdefault(file, []).append(name.removeprefix(PREFIX))
    if not shards:
        raise ValueError(f"{index} names no {PREFIX}* weight: this is not a Qwen-VL checkpoint")
    return shards


def _encoder_weights(file: Path, promised: list[str]) -> dict[str, Tensor]:
    """The encoder's weights in one file, memory-mapped."""
    try:
        weights = (_read_safetensors if file.suffix == ".safetensors" else _read_pickle)(file)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as weights, is it cut short or no file of them? {error}") from error
    if absent := set(promised) - weights.keys():
        raise ValueError(f"{file} lacks {_some(absent)}, which the index says it holds")
    return weights


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as weights:
        return {name: weights.get_tensor(key) for key, name in _names(weights.keys()).items()}


def _read_pickle(file: Path) -> dict[str, Tensor]:
    weights: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise ValueError(f"{file} holds no dict of tensors: found {type(weights).__name__}")
    return {name: weights[key] for key, name in _names(weights).items()}


def _names(keys: Iterable[str]) -> dict[str, str]:
    """The encoder's names by key: of the keys with the prefix, or of all where none has it."""
    keys = list(keys)
    chosen = [key for key in keys if key.startswith(PREFIX)] or keys
    return {key: key.removeprefix(PREFIX) for key in chosen if key.removeprefix(PREFIX) not in LEFT_OUT}


def _resolve(path: str | Path, name: str) -> Path | None:
    """A file of a folder, or of a Hub repository, downloaded; None if there is none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    cached = cached_file(str(path), name, _raise_exceptions_for_missing_entries=False)
    return None if cached is None else Path(cached)


def _some(names: set[str]) -> str:
    """At most four of the names, and how many more there are."""
    first = sorted(names)[:4]
    return ", ".join(first) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

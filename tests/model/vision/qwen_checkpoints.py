"""Tiny checkpoints in Qwen-VL's original layout: `transformer.visual.*` among a language model's weights, in shards."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

PREFIX = "transformer.visual."

VISUAL = {
    "heads": 4,
    "image_size": 56,
    "image_start_id": 151857,
    "layers": 2,
    "mlp_ratio": 4.9231,
    "n_queries": 9,
    "output_dim": 256,
    "patch_size": 14,
    "width": 32,
}
"""As in config.json; `n_queries` is 256 where it is not told."""


def random_weights(visual: Mapping[str, float] = VISUAL) -> dict[str, Tensor]:
    """The encoder's weights by their names without prefix, `proj` among them, spelled out from the published layout."""
    width, out, queries = int(visual["width"]), int(visual["output_dim"]), int(visual.get("n_queries", 256))
    mlp, patch = int(width * visual["mlp_ratio"]), int(visual["patch_size"])
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (256, width),
        "proj": (out, out),
        "conv1.weight": (width, 3, patch, patch),
        "ln_pre.weight": (width,),
        "ln_pre.bias": (width,),
        "attn_pool.query": (queries, out),
        "attn_pool.pos_embed": (queries, out),
        "attn_pool.kv_proj.weight": (out, width),
        "attn_pool.attn.in_proj_weight": (3 * out, out),
        "attn_pool.attn.in_proj_bias": (3 * out,),
        "attn_pool.attn.out_proj.weight": (out, out),
        "attn_pool.attn.out_proj.bias": (out,),
    }
    for name in ("attn_pool.ln_q", "attn_pool.ln_kv", "ln_post"):
        shapes |= {f"{name}.weight": (out,), f"{name}.bias": (out,)}
    for number in range(int(visual["layers"])):
        block = f"transformer.resblocks.{number}"
        for name, inputs, outputs in (
            ("attn.in_proj", width, 3 * width),
            ("attn.out_proj", width, width),
            ("mlp.c_fc", width, mlp),
            ("mlp.c_proj", mlp, width),
        ):
            shapes |= {f"{block}.{name}.weight": (outputs, inputs), f"{block}.{name}.bias": (outputs,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(1)
    # Random positions, biases and gains too: a test must notice if any of them is left out or put elsewhere.
    return {name: torch.randn(shape, generator=generator) * 0.5 for name, shape in shapes.items()}


def write_checkpoint(
    folder: Path, weights: Mapping[str, Tensor], *, form: str = "bin", visual: Mapping[str, float] | None = VISUAL
) -> Path:
    """A folder of five shards; the encoder is spread over the third and the fourth, the others are not even files of
    weights, and the checkpoint's own code fails when it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    code = {"AutoConfig": "configuration_qwen.QWenConfig", "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"}
    config = {"model_type": "qwen", "architectures": ["QWenLMHeadModel"], "auto_map": code, "hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config | ({} if visual is None else {"visual": dict(visual)})))
    for name in ("configuration_qwen", "modeling_qwen"):
        (folder / f"{name}.py").write_text("raise AssertionError('the code of a checkpoint was run')\n")
    stem, end = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    shard = f"{stem}-{{:05d}}-of-00005.{end}"
    places = {"transformer.wte.weight": 1, "transformer.h.0.attn.c_attn.weight": 2, "lm_head.weight": 5}
    names = sorted(weights)
    halves = {3: names[: len(names) // 2], 4: names[len(names) // 2 :]}
    for number in (1, 2, 5):
        (folder / shard.format(number)).write_bytes(b"no weights at all")
    for number, half in halves.items():
        language = f"transformer.h.{number}.ln_1.weight"
        content = {f"{PREFIX}{name}": weights[name] for name in half} | {language: torch.ones(4)}
        places |= dict.fromkeys(content, number)
        file = folder / shard.format(number)
        save_file(content, file) if form == "safetensors" else torch.save(content, file)
    index = {"metadata": {"total_size": 1}, "weight_map": {key: shard.format(n) for key, n in places.items()}}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))
    return folder

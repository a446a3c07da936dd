"""CA + CrA: images outside the sequence, read by gated cross-attention layers between a decoder's own layers.

The baseline of arXiv 2309.14327 (section 4.1, figure 3), in the manner of Flamingo (arXiv 2204.14198, section 2.2 and
figure 4) and Otter (arXiv 2305.03726). The layers are submodules of the decoder's layers and run as forward pre-hooks;
what they read travels as keywords of the model's forward. No file of the decoder is forked and nothing is global.

    add_cross_attention(model, every=4, image_size=1024)
    model(input_ids, image_states=..., image_positions=...)     # and model.generate(...)

Shapes: B batch, S tokens of this call, N images, M states an image, F their size, E hidden size, H heads, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from visualchat.attention._patch import Patch, Prepare, add_patch, has_patch, remove_patch

NAME = "gated_cross_attention"
"""The submodule's name in the decoder layer that it stands before."""


class GatedCrossAttention(nn.Module):
    """Text reads the images before it: `x + tanh(a)·attention(x, images)`, then `x + tanh(b)·feed_forward(x)`.

    Both gates start at zero, so an untrained layer hands `x` on. A token that sees no image passes unchanged through
    both halves (Flamingo applies the second to every token), so text without images always equals the base model.
    Flamingo lets a token see the last image only; here it sees all that stand before it.

    Args:
        hidden_size: E.
        image_size: F.
        heads: H.
        head_size: D.
        expansion: Width of the feed-forward part over E.
    """

    def __init__(self, hidden_size: int, image_size: int, heads: int, head_size: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden_size)
        self.image_norm = nn.LayerNorm(image_size)
        self.query = nn.Linear(hidden_size, heads * head_size, bias=False)
        self.key = nn.Linear(image_size, heads * head_size, bias=False)
        self.value = nn.Linear(image_size, heads * head_size, bias=False)
        self.output = nn.Linear(heads * head_size, hidden_size, bias=False)
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, expansion * hidden_size, bias=False),
            nn.GELU(),
            nn.Linear(expansion * hidden_size, hidden_size, bias=False),
        )
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, image_states: Tensor, seen: Tensor) -> Tensor:
        """Add what each token reads in its images.

        Args:
            hidden: (B, S, E).
            image_states: (B, N, M, F), finite also where an image is padding.
            seen: (B, S, N) bool, the images each token sees.

        Returns:
            (B, S, E); the rows of tokens that see no image are the given ones, bit for bit.
        """
        any_image = seen.any(-1, keepdim=True)  # (B, S, 1)
        attended = self.output(self._attend(self.attention_norm(hidden), image_states, seen | ~any_image))
        hidden = hidden + (self.attention_gate.tanh() * attended).masked_fill(~any_image, 0.0)
        update = self.feed_forward_gate.tanh() * self.feed_forward(hidden)
        return hidden + update.masked_fill(~any_image, 0.0)

    def _attend(self, hidden: Tensor, image_states: Tensor, seen: Tensor) -> Tensor:
        """(B, S, H·D): one softmax over all states of all images seen."""

        def in_heads(tensor: Tensor) -> Tensor:
            return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, ·, D)

        states = self.image_norm(image_states.flatten(1, 2).to(hidden.dtype))  # (B, N·M, F)
        mask = seen.repeat_interleave(image_states.shape[2], dim=-1)[:, None]  # (B, 1, S, N·M)
        query, key, value = in_heads(self.query(hidden)), in_heads(self.key(states)), in_heads(self.value(states))
        return scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)


def add_cross_attention(
    model: nn.Module,
    *,
    every: int,
    image_size: int,
    heads: int | None = None,
    head_size: int | None = None,
    expansion: int = 4,
) -> list[GatedCrossAttention]:
    """Put a gated cross-attention layer before every n-th decoder layer of a model of transformers, in place.

    After it, `forward` and `generate` take `image_states` (B, N, M, F) and `image_positions` (B, N): how many positions
    of the row (padding on the left counts) stand before an image, negative for an image that is padding. A token sees
    the images whose position is at most its own. Both are given again with every call on a filled cache; without them
    the model is its base. The new layers are in `model.state_dict()` and in what `save_pretrained` writes; to load,
    build the base, add, and load the state.

    Args:
        model: A causal language model of transformers, or a model that contains one (`get_decoder()` finds it).
        every: n; the new layers stand before layers n-1, 2n-1 and so on, counted from 0.
        image_size: F.
        heads: H; the model's own number if None.
        head_size: D; E / H if None.
        expansion: Width of the feed-forward part over E.

    Returns:
        The new layers, first to last: what to train.

    Raises:
        ValueError: The model has such layers already, or has no n-th layer.
    """
    decoder = model.get_decoder()  # type: ignore[operator]
    config, layers = decoder.config, decoder.layers
    if has_patch(model, NAME):
        raise ValueError("the model has gated cross-attention layers; remove_cross_attention takes them out")
    if not 1 <= every <= len(layers):
        raise ValueError(f"every must be between 1 and the model's {len(layers)} layers, found {every}")
    heads = config.num_attention_heads if heads is None else heads
    head_size = config.hidden_size // heads if head_size is None else head_size
    handles = [decoder.register_forward_pre_hook(_add_visibility, with_kwargs=True)]
    added = []
    for number, layer in enumerate(layers, 1):
        if number % every == 0:
            like = next(layer.parameters())
            gated = GatedCrossAttention(config.hidden_size, image_size, heads, head_size, expansion)
            layer.add_module(NAME, gated.to(device=like.device, dtype=like.dtype))
            added.append(gated)
        # Every layer, so that none hands the keywords on to an attention function that knows nothing of them.
        handles.append(layer.register_forward_pre_hook(_read_images, with_kwargs=True))
    add_patch(model, NAME, Patch(tuple(handles), _preparing))
    return added


def remove_cross_attention(model: nn.Module) -> None:
    """Take the layers out again; nothing happens to a model that has none."""
    if not has_patch(model, NAME):
        return
    remove_patch(model, NAME)
    for layer in model.get_decoder().layers:  # type: ignore[operator]
        if hasattr(layer, NAME):
            delattr(layer, NAME)


def _add_visibility(decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before the decoder runs: which images each token sees, from where the images stand."""
    states, places = kwargs.get("image_states"), kwargs.pop("image_positions", None)
    if (states is None) != (places is None):
        raise ValueError("image_states (B, N, M, F) and image_positions (B, N) must be given together")
    if states is None:
        return args, kwargs
    tokens = kwargs.get("input_ids")
    tokens = args[0] if args and tokens is None else tokens
    tokens = kwargs["inputs_embeds"] if tokens is None else tokens
    if states.ndim != 4 or places.shape != states.shape[:2] or len(places) != len(tokens):
        raise ValueError(
            "image_states must be (B, N, M, F) and image_positions (B, N) for the B rows of the text: found "
            f"{tuple(states.shape)} and {tuple(places.shape)} for {len(tokens)} rows"
        )
    cache = kwargs.get("past_key_values")
    cached = 0 if cache is None else cache.get_seq_length()
    position = torch.arange(tokens.shape[1], device=places.device) + cached
    kwargs["images_seen"] = (places[:, None, :] <= position[None, :, None]) & (places >= 0)[:, None, :]
    return args, kwargs


def _read_images(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Before a decoder layer runs: its gated layer, if it has one and there are images."""
    states, seen = kwargs.pop("image_states", None), kwargs.pop("images_seen", None)
    gated = getattr(layer, NAME, None)
    if gated is None or states is None:
        return args, kwargs
    if args:
        return (gated(args[0], states, seen), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": gated(kwargs["hidden_states"], states, seen)}


def _preparing(prepare: Prepare) -> Prepare:
    """A model's `prepare_inputs_for_generation` that also hands on what the new layers read."""

    def prepared(
        *args: Any, image_states: Tensor | None = None, image_positions: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return {**prepare(*args, **kwargs), "image_states": image_states, "image_positions": image_positions}

    return prepared

"""Where an answer looked: the weights by which its tokens were chosen, on each image's tokens and on the text.

The conversation is computed once more, with its answer, and the weights of each layer are those of its own attention:
of one softmax, or of two whose weights sum to 1 each, over text and over images.

Shapes: T tokens of the answer, I images, P tokens an image, W tokens of the text before the answer's last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from visualchat.attention import Modality
from visualchat.attention.watch import Watch
from visualchat.dialogue import Dialogue
from visualchat.images.decode import decode_image
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.vision.patches import PatchGrid, patch_grid, why_no_patches


@dataclass(frozen=True)
class Looked:
    """Weights of the queries that chose an answer's tokens.

    Attributes:
        tokens: What each of the T tokens says.
        words: What each of the W tokens of the text says.
        images: (T, I, P).
        text: (T, W); 0 for what stands behind.
        grids: Where each image's P tokens lie in it.
        softmaxes: 1 where the weights of a token on text and images sum to 1 together; 2 where each of the two does,
            the images' from the first image on.
    """

    tokens: list[str]
    words: list[str]
    images: Tensor
    text: Tensor
    grids: list[PatchGrid]
    softmaxes: int


def why_not_shown(model: VisualChatForConditionalGeneration) -> str | None:
    """Why it cannot be told where a model's answers looked; None where it can."""
    if model.config.images_outside:
        return "attention kind 'cross' reads images in layers of their own"
    return why_no_patches(model.config)


@torch.no_grad()
def look(
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    dialogue: Dialogue,
    *,
    layer: int | None = None,
    head: int | None = None,
) -> Looked:
    """Where the answer of a dialogue's last turn looked.

    Args:
        model: Answers; other threads may use it.
        processor: Of the same model.
        dialogue: Its last turn is answered.
        layer: Which one, from 0; None for the mean of all.
        head: Likewise.

    Raises:
        ValueError: There is no answer, layer or head, the model's kind of attention or encoder does not tell, or the
            dialogue is longer than the model can hold.
    """
    _check(model, layer, head)
    if not dialogue.turns[-1].answer:
        raise ValueError(f"{dialogue.id}: the last turn has no answer that could have looked anywhere")
    images = [decode_image(image, f"{dialogue.id}, image {k}") for k, image in enumerate(dialogue.images, start=1)]
    encoding = processor.encode(dialogue)
    begin, stop = encoding.answer_spans[-1]
    stop -= len(processor.end_token_ids)
    ids, modality = (torch.tensor(found[: stop - 1]) for found in (encoding.input_ids, encoding.mm_token_type_ids))
    text_config: Any = model.config.text_config
    if len(ids) > (limit := text_config.max_position_embeddings):
        raise ValueError(f"the conversation has {len(ids)} tokens: more than the {limit} that the model can hold")
    means = _Means(stop - begin, layer, head)
    model.eval()(
        input_ids=ids[None].to(model.device),
        pixel_values=_pixels(model, processor, images),
        mm_token_type_ids=modality[None].to(model.device),
        unit_ids=torch.tensor([encoding.unit_ids[: stop - 1]], device=model.device),
        use_cache=False,
        logits_to_keep=1,
        watch=Watch(stop - begin, means.take),
    )
    weights = means.weights()
    is_image = modality == Modality.IMAGE
    said = [processor.tokenizer.decode([token]) for token in encoding.input_ids[:stop]]
    return Looked(
        said[begin:],
        [said[place] for place in (~is_image).nonzero().flatten().tolist()],
        weights[:, is_image].view(stop - begin, len(images), model.config.image_seq_length),
        weights[:, ~is_image],
        [patch_grid(model.config, processor.image_processor, image) for image in images],
        means.softmaxes,
    )


def _check(model: VisualChatForConditionalGeneration, layer: int | None, head: int | None) -> None:
    if why := why_not_shown(model):
        raise ValueError(f"where an answer looked cannot be shown: {why}")
    layers, heads = layers_and_heads(model)
    for name, found, count in (("layer", layer, layers), ("head", head, heads)):
        if found is not None and not 0 <= found < count:
            raise ValueError(f"{name} {found}: this model has {count}, numbered from 0")
    if layer is None and len({kind.softmax for kind in model.config.layer_kinds}) > 1:
        raise ValueError("the first layers have other softmaxes than the rest, so a mean says nothing: name one layer")


def layers_and_heads(model: VisualChatForConditionalGeneration) -> tuple[int, int]:
    """How many layers a language model has, and heads each."""
    config: Any = model.language_model.config
    return config.num_hidden_layers, config.num_attention_heads


def _pixels(model: Any, processor: Any, images: list[Any]) -> Tensor | None:
    if not images:
        return None
    return processor.normalise([processor.scale(image) for image in images]).to(model.device)


class _Means:
    """The mean weights (T, K) over the layers and heads that are asked for, kept one layer at a time."""

    def __init__(self, tokens: int, layer: int | None, head: int | None) -> None:
        self.tokens, self.layer, self.head = tokens, layer, head
        self.softmaxes = self.layers = 0
        self._sum: Tensor | None = None

    def take(self, layer: int, weights: tuple[Tensor, ...]) -> None:
        """As a `Watch` calls it: each key has a weight of one softmax only, so they can be added."""
        if self.layer not in (None, layer):
            return
        both = sum(weights[1:], weights[0])[0]
        found = (both.mean(0) if self.head is None else both[self.head]).double().cpu()
        self._sum = found if self._sum is None else self._sum + found
        self.softmaxes, self.layers = len(weights), self.layers + 1

    def weights(self) -> Tensor:
        """(T, K)."""
        if self._sum is None:
            raise ValueError(
                "where an answer looked cannot be shown: the model attends by a function of transformers, which does "
                "not tell; load it with attention_implementation 'auto' or 'sdpa'"
            )
        return self._sum / self.layers

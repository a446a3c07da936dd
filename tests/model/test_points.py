"""Attention by depth and shared positions: a plain computation by hand, layer by layer; leaks; what is refused."""

import re

import pytest
import torch
from PIL import Image
from transformers.models.llama import modeling_llama

from visualchat.attention import Modality
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatConfig
from visualchat.model.convert_published import to_published
from visualchat.model.image_states import why_not_own

RED, BLUE, GREEN = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green"))
CONTEXTS = {"causal": "all", "mmca_joint": "self", "image": "image"}
POINTS = {
    "image, then self": {"attention_kind": "mmca_joint", "early_attention_kind": "image"},
    "all, then image": {"attention_kind": "image", "early_attention_kind": "causal", "early_attention_share": 0.5},
    "shared": {"attention_kind": "mmca_joint", "image_positions": "shared"},
    "causal, shared": {"attention_kind": "causal", "image_positions": "shared"},
    "by depth, shared": {
        "attention_kind": "mmca_joint",
        "early_attention_kind": "causal",
        "early_attention_share": 0.75,
        "image_positions": "shared",
    },
}
EARLY = {"image, then self": ("image", 1), "all, then image": ("causal", 2), "by depth, shared": ("causal", 3)}


def dialogues(first=RED):
    return [
        Dialogue((Turn.ask("Which?", [first, BLUE], "Yes."), Turn(("Is", GREEN, "it?"), "No."))),
        Dialogue((Turn.ask("Text?", [], "Hi."),)),
        Dialogue((Turn((BLUE, "What?"), "A cat."),)),
    ]


def by_hand(model, batch, point):
    """Logits (S, V) of one row, by plain softmaxes over masks and positions that are written out token by token."""
    image = (batch["mm_token_type_ids"][0] == Modality.IMAGE).tolist()
    units = batch["unit_ids"][0].tolist()
    shared = POINTS[point].get("image_positions") == "shared"
    positions = [
        0 if shared and image[q] else q - sum(image[:q]) if shared else q  # text is counted alone, or with all tokens
        for q in range(len(image))
    ]

    def sees(context, q, k):
        if not image[q] or context == "all":
            return k <= q
        return k == q if context == "self" else image[k] and units[k] == units[q]

    def mask(kind):
        rows = [[sees(CONTEXTS[kind], q, k) for k in range(len(image))] for q in range(len(image))]
        return torch.where(torch.tensor(rows)[None, None], 0.0, float("-inf")).to(model.dtype)

    embeds = model.get_input_embeddings()(batch["input_ids"])
    if "pixel_values" in batch:
        features = model.get_image_features(batch["pixel_values"]).pooler_output
        embeds = model.splice(embeds, batch["mm_token_type_ids"], features)
    decoder = model.language_model.model
    turns = decoder.rotary_emb(embeds, position_ids=torch.tensor([positions]))
    early, count = EARLY.get(point, (None, 0))
    kept, decoder.config._attn_implementation = decoder.config._attn_implementation, "eager"
    for number, layer in enumerate(decoder.layers):
        kind = early if number < count else POINTS[point]["attention_kind"]
        embeds = layer(embeds, attention_mask=mask(kind), position_embeddings=turns)
    decoder.config._attn_implementation = kept
    return model.language_model.lm_head(decoder.norm(embeds))[0]


@pytest.fixture
def exact(monkeypatch):
    """transformers' norm and eager softmax in float64, where they would round to float32."""

    def norm(self, states):
        return self.weight * states * (states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()

    def attend(module, query, key, value, attention_mask, scaling, **unused):
        key, value = (states.repeat_interleave(module.num_key_value_groups, 1) for states in (key, value))
        weights = (query @ key.transpose(-1, -2) * scaling + attention_mask).softmax(-1)
        return (weights @ value).transpose(1, 2), None

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", attend)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("point", POINTS)
def test_padded_packed_and_alone_it_is_the_plain_computation(make_deep_model, processor, point, implementation):
    """Logits and the projector's gradient, in float64: only the order of sums differs."""
    model = make_deep_model(**POINTS[point], attention_implementation=implementation, dtype=torch.float64)
    given = dialogues()
    weight = next(model.multi_modal_projector.parameters())
    alone = [processor.batch([dialogue]) for dialogue in given]
    expected = torch.cat([by_hand(model, batch, point) for batch in alone])
    mix = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    (slope,) = torch.autograd.grad((expected * mix).sum(), weight)
    batch = {name: given for name, given in alone[0].items() if name not in ("labels", "attention_mask")}
    torch.testing.assert_close(
        model(**batch).logits[0], expected[: batch["input_ids"].shape[1]], atol=1e-10, rtol=1e-10
    )
    packing = (None, [2, 1]) if (point, implementation) != ("causal, shared", "eager") else (None,)
    for rows in packing:
        batch = processor.batch(given, rows=rows)
        del batch["labels"]
        found = model(**batch).logits[batch["attention_mask"].bool()]
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(torch.autograd.grad((found * mix).sum(), weight)[0], slope, atol=1e-8, rtol=1e-8)


@torch.no_grad()
def test_packed_causal_attention_makes_no_dense_mask(make_deep_model, processor):
    model, seen = make_deep_model(attention_kind="causal"), []
    attend = model.language_model.model.layers[0].self_attn
    attend.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    model(**processor.batch(dialogues(), rows=[3]))
    assert seen[0]["attention_mask"] is None
    assert seen[0]["segment_ids"].unique().numel() >= 3


@torch.no_grad()
@pytest.mark.parametrize("point", POINTS)
def test_another_first_image_changes_later_images_where_layers_look_across(make_deep_model, processor, point):
    """Bit by bit in every layer; text before the image never changes. What chat may reuse agrees."""
    model = make_deep_model(**POINTS[point])
    found = []
    for first in (RED, GREEN):
        batch = processor.batch(dialogues(first)[:1])
        out = model(**batch, output_hidden_states=True)
        found.append(torch.stack(out.hidden_states)[:, 0])  # (layers, S, E)
    units, image = batch["unit_ids"][0], batch["mm_token_type_ids"][0] == Modality.IMAGE
    begin = int(image.nonzero()[0])
    assert torch.equal(found[0][:, :begin], found[1][:, :begin])
    later = image & (units > 1)
    isolated = "causal" not in (POINTS[point]["attention_kind"], POINTS[point].get("early_attention_kind"))
    assert torch.equal(found[0][:, later], found[1][:, later]) == isolated
    assert (why_not_own(model) is None) == isolated


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"attention_kind": "unit", "image_positions": "shared"}, "not everywhere at the same distance from its label"),
        ({"attention_kind": "mmca", "early_attention_kind": "label"}, "in some layers and to the text before it in"),
        (
            POINTS["all, then image"],
            r"under attention kind 'image' after 'causal' an image's states are not kept apart",
        ),
    ],
)
def test_why_states_cannot_be_reused_is_said(make_deep_model, config, reason):
    assert re.search(reason, why_not_own(make_deep_model(**config)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_positions": "same"}, "unknown image_positions 'same', expected one of running, shared"),
        ({"early_attention_kind": "units"}, "unknown attention kind 'units'.*did you mean unit"),
        ({"early_attention_kind": "mmca"}, "in 0.25 of 2 layers: expected a kind other than 'mmca'"),
        ({"early_attention_kind": "image", "early_attention_share": 0.9}, "in at least one layer and fewer than all"),
        ({"early_attention_kind": "image", "early_attention_share": 0}, "in at least one layer and fewer than all"),
        ({"attention_kind": "cross", "image_positions": "shared"}, "'cross' has images outside the sequence"),
        ({"attention_kind": "cross", "early_attention_kind": "image"}, "'cross' has images outside the sequence"),
    ],
)
def test_what_makes_no_sense_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        VisualChatConfig(text_config={"model_type": "llama", "num_hidden_layers": 2}, **config)


def test_what_cannot_be_computed_is_refused(make_deep_model, processor, tmp_path):
    model = make_deep_model(**POINTS["causal, shared"], attention_implementation="eager")
    with pytest.raises(ValueError, match=r"packed rows with image_positions 'shared' need .* 'auto' or 'sdpa'"):
        model(**processor.batch(dialogues(), rows=[3]))
    for point in ("shared", "image, then self"):
        make_deep_model(**POINTS[point], projector_type="linear_norm").save_pretrained(tmp_path / point)
        with pytest.raises(
            ValueError, match="positions of all tokens and attends alike in all layers, found image_pos"
        ):
            to_published(tmp_path / point, tmp_path / "pytorch_model.bin")

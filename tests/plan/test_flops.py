"""The planner's FLOPs against torch's counter."""

import pytest
import torch
from small import build
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from visualchat.plan.flops import attention_pairs, days, flops
from visualchat.plan.machine import Machine
from visualchat.plan.shapes import sizes_of
from visualchat.plan.workload import Workload

TOKENS = 192


def counted(model, images):
    """FLOPs of one row by torch's counter, by operator: of the language layers, forward and in all."""
    embeds = torch.randn(1, TOKENS, 128, requires_grad=True)
    modality = torch.zeros(1, TOKENS, dtype=torch.long)
    modality[:, : 4 * images] = 1
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        out = model.language_model.base_model(inputs_embeds=embeds, key_modality=modality, use_cache=False)
        forward = dict(counter.get_flop_counts()["Global"])
        out.last_hidden_state.sum().backward()
    return forward, dict(counter.get_flop_counts()["Global"])


def planned(model, images=0, checkpointing=False, kind="causal"):
    load = Workload(1, images, TOKENS - 4 * images, 0, "test")
    return flops(sizes_of(model), load, kind, checkpointing=checkpointing)


def test_linear_maps_forward_and_backward_are_exact():
    """Frozen maps cost as much backward as forward."""
    model = build()
    _, both = counted(model, 0)
    assert planned(model).linear == both[torch.ops.aten.mm]


def test_trained_maps_cost_their_weights_gradient_too():
    model = build()
    model.language_model.model.layers.requires_grad_(True)
    _, both = counted(model, 0)
    assert planned(model).linear == both[torch.ops.aten.mm]


def test_recomputed_linear_maps_are_exact():
    model = build()
    _, plain = counted(model, 0)
    model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    _, both = counted(model, 0)
    plan = planned(model, checkpointing=True)
    attention = plan.attention / 3.5
    assert plan.recomputed - attention == both[torch.ops.aten.mm] - plain[torch.ops.aten.mm]


@pytest.mark.parametrize(("kind", "images"), [("causal", 0), ("causal", 1), ("mmca", 1)])
def test_attention_forward(kind, images, monkeypatch):
    """torch's counter knows plain attention only, which computes whole squares.

    Causal attention uses half of them: the other half is taken off.

    One picture stands before all text, so every text token sees it.
    """
    monkeypatch.setattr("visualchat.attention.sdpa.available", lambda query: False)
    model = build(kind=kind)
    forward, _ = counted(model, images)
    square = TOKENS if kind == "causal" else TOKENS - 4 * images
    unused = 4 * 3 * 128 * square**2 / 2  # 3 layers of width 128
    assert planned(model, images, kind=kind).attention / 3.5 == forward[torch.ops.aten.bmm] - unused


def test_pairs_of_the_family():
    text, images, size = 1000.0, 4.0, 256
    total = text + images * size
    assert attention_pairs("causal", text, images, size) == total**2 / 2
    assert attention_pairs("mmca_reference", text, images, size) == total**2 / 2
    assert attention_pairs("mmca", text, images, size) == text**2 / 2 + text * size * 2.5
    assert attention_pairs("unit", text, images, size) == attention_pairs("mmca", text, images, size) + images * size**2
    assert attention_pairs("mmca", text, 0, size) == attention_pairs("causal", text, 0, size)


def test_the_vision_encoder_is_counted_once_forward():
    model = build()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.vision_tower(torch.zeros(3, 3, 16, 16))
    assert planned(model, images=3).vision == counter.get_total_flops()


def test_days():
    machine = Machine(gpus=8, memory=1.0, reserve=0.0, name="mine", peak_tflops=1000, utilisation=0.4)
    assert days(86_400 * 400e12 * 8, machine) == 1.0


def test_two_kinds_by_depth_cost_their_shares():
    model, load = build(), Workload(1, 2, 40, 0, "test")

    def attention(kind, early=None):
        return flops(sizes_of(model), load, kind, checkpointing=False, early=early).attention

    expected = 0.25 * attention("causal") + 0.75 * attention("mmca")
    assert attention("mmca", ("causal", 0.25)) == pytest.approx(expected)
    assert attention("causal") > attention("mmca")

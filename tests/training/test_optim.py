"""AdamW's groups and the learning rate's course."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from visualchat.model.trainable import Trainable, set_trainable
from visualchat.training.optim import OptimizerSettings, build_optimizer, warmup_cosine


def test_groups_and_rates(model):
    set_trainable(model, Trainable(vision="full", language="lora", lora_rank=2))
    settings = OptimizerSettings(learning_rate=0.1, embedding_learning_rate=0.01, backbone_learning_rate=0.001)
    optimizer = build_optimizer(settings, model)
    groups = {group["name"]: group for group in optimizer.param_groups}
    adapters = [p for name, p in model.named_parameters() if "lora" in name]
    assert {id(p) for p in groups["new"]["params"]} == {
        id(p) for p in [*model.multi_modal_projector.parameters(), *adapters]
    }
    assert [id(p) for p in groups["embedding"]["params"]] == [id(model.get_input_embeddings().weight)]
    assert {id(p) for p in groups["backbone"]["params"]} == {id(p) for p in model.vision_tower.parameters()}
    assert [groups[name]["lr"] for name in ("new", "embedding", "backbone")] == [0.1, 0.01, 0.001]
    assert optimizer.defaults["betas"] == (0.0, 0.95)


def test_cross_attention_is_new(make_model):
    model = make_model(attention_kind="cross", cross_attention_every=1)
    set_trainable(model)
    (new, _) = build_optimizer(OptimizerSettings(), model).param_groups
    gated = [p for name, p in model.named_parameters() if "gated_cross_attention" in name]
    assert gated
    assert {id(p) for p in new["params"]} == {id(p) for p in [*model.multi_modal_projector.parameters(), *gated]}


def test_one_rate_for_all_unless_asked(model):
    set_trainable(model, Trainable(language="full"))
    optimizer = build_optimizer(OptimizerSettings(learning_rate=0.1), model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.1]


def test_nothing_to_train_is_an_error(model):
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(OptimizerSettings(), model)


def test_warm_up_then_cosine():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = warmup_cosine(optimizer, steps=20, warmup_fraction=0.2)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[12] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[4:]))
    assert schedule.get_last_lr()[0] == pytest.approx(0.0)

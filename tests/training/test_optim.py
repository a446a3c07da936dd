"""AdamW's groups and the learning rate's course."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from visualchat.training.optim import OptimizerSettings, build_optimizer, warmup_cosine


def parts() -> tuple[nn.Embedding, nn.ModuleDict]:
    embedding = nn.Embedding(3, 2)
    return embedding, nn.ModuleDict({"embedding": embedding, "projector": nn.Linear(2, 2), "frozen": nn.Linear(2, 2)})


def test_groups_and_rates():
    embedding, model = parts()
    model["frozen"].requires_grad_(False)
    settings = OptimizerSettings(learning_rate=0.1, embedding_learning_rate=0.01)
    optimizer = build_optimizer(settings, embedding, model.named_parameters())
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert {id(p) for p in groups["projector"]["params"]} == {id(p) for p in model["projector"].parameters()}
    assert [id(p) for p in groups["embedding"]["params"]] == [id(embedding.weight)]
    assert (groups["projector"]["lr"], groups["embedding"]["lr"]) == (0.1, 0.01)
    assert optimizer.defaults["betas"] == (0.0, 0.95)


def test_one_rate_for_all_unless_asked():
    embedding, model = parts()
    optimizer = build_optimizer(OptimizerSettings(learning_rate=0.1), embedding, model.named_parameters())
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_nothing_to_train_is_an_error():
    embedding, model = parts()
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(OptimizerSettings(), embedding, model.named_parameters())


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

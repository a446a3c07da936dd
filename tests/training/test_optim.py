"""AdamW's groups and the learning rate's course."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from visualchat.model.trainable import Trainable, set_trainable
from visualchat.training.optim import OptimizerSettings, build_optimizer, warmup_cosine


def test_groups_and_rates(model):
    set_trainable(model, Trainable(vision="full", language="lora", lora_rank=2))
    settings = OptimizerSettings(
        learning_rate=0.1, embedding_learning_rate=0.01, adapter_learning_rate=0.02, backbone_learning_rate=0.001
    )
    optimizer = build_optimizer(settings, model)
    groups = {group["name"]: group for group in optimizer.param_groups}
    adapters = [p for name, p in model.named_parameters() if "lora" in name]
    assert {id(p) for p in groups["new"]["params"]} == {id(p) for p in model.multi_modal_projector.parameters()}
    assert {id(p) for p in groups["adapters"]["params"]} == {id(p) for p in adapters}
    assert [id(p) for p in groups["embedding"]["params"]] == [id(model.get_input_embeddings().weight)]
    assert {id(p) for p in groups["backbone"]["params"]} == {id(p) for p in model.vision_tower.parameters()}
    assert [groups[name]["lr"] for name in ("new", "embedding", "adapters", "backbone")] == [0.1, 0.01, 0.02, 0.001]
    assert optimizer.defaults["betas"] == (0.0, 0.95)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learning_rate": -1e-3}, r"optimizer\.learning_rate=-0\.001: expected 0 or more"),
        ({"embedding_learning_rate": float("nan")}, r"optimizer\.embedding_learning_rate=nan: expected 0 or more"),
        ({"adapter_learning_rate": -1.0}, r"optimizer\.adapter_learning_rate=-1\.0: expected 0 or more"),
        ({"backbone_learning_rate": float("inf")}, r"optimizer\.backbone_learning_rate=inf: expected 0 or more"),
        ({"weight_decay": -0.1}, r"optimizer\.weight_decay=-0\.1: expected 0 or more"),
        ({"warmup_fraction": 5}, r"optimizer\.warmup_fraction=5: expected a share between 0 and 1"),
    ],
)
def test_numbers_that_would_train_away_from_the_data_or_never_warm_up_are_refused(settings, told):
    """torch checks the rate of its defaults alone, not those of groups."""
    with pytest.raises(ValueError, match=told):
        OptimizerSettings(**settings)


def test_cross_attention_is_new(make_model):
    model = make_model(attention_kind="cross", cross_attention_every=1)
    set_trainable(model)
    (new, _) = build_optimizer(OptimizerSettings(), model).param_groups
    gated = [p for name, p in model.named_parameters() if "gated_cross_attention" in name]
    assert gated
    assert {id(p) for p in new["params"]} == {id(p) for p in [*model.multi_modal_projector.parameters(), *gated]}


def test_one_rate_for_all_unless_asked(model):
    set_trainable(model, Trainable(vision="lora", language="full", lora_rank=2))
    optimizer = build_optimizer(OptimizerSettings(learning_rate=0.1), model)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.1, 0.1, 0.1]


def test_halved_are_the_rates_of_what_trains():
    settings = OptimizerSettings(learning_rate=0.1, embedding_learning_rate=0.01, adapter_learning_rate=0.02)
    assert settings.halved(["new", "adapters"]) == {"learning_rate": 0.05, "adapter_learning_rate": 0.01}
    assert settings.halved(["embedding", "backbone"]) == {"learning_rate": 0.05, "embedding_learning_rate": 0.005}


def test_nothing_to_train_is_an_error(model):
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        build_optimizer(OptimizerSettings(), model)


def bf16_and_fp32(model, rate):
    """The same model in both types, with an optimizer each."""
    twin = copy.deepcopy(model).to(torch.bfloat16)
    model.load_state_dict(twin.state_dict())  # fp32 numbers that bf16 can hold
    settings = OptimizerSettings(learning_rate=rate, betas=(0.9, 0.95), weight_decay=0.1)
    pair = twin, model
    for one in pair:
        set_trainable(one, Trainable(language="lora", lora_rank=2))
    twin.load_state_dict(model.state_dict())
    model.load_state_dict(twin.state_dict())
    return [(one, build_optimizer(settings, one)) for one in pair]


def steps(model, optimizer, count, seed=0):
    """Steps by gradients that bf16 can hold."""
    torch.manual_seed(seed)
    for _ in range(count):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape).bfloat16().to(parameter.dtype)
        optimizer.step()


def trained(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_bf16_parameters_follow_fp32_training(model):
    """Steps of 1e-5 that bf16 would round away add up; what the model holds is the fp32 model's, rounded."""
    (half, its), (whole, other) = bf16_and_fp32(model, rate=1e-5)
    before = trained(half)
    steps(half, its, 200)
    steps(whole, other, 200)
    after = trained(half)
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    for name, value in trained(whole).items():
        master = its.state[half.get_parameter(name)]["master"]
        assert torch.allclose(master, value, rtol=0, atol=1e-7)
        assert torch.equal(after[name], master.bfloat16())
        assert not torch.equal(after[name], before[name])


def test_a_resumed_optimizer_of_bf16_parameters_goes_on_to_the_last_bit(model):
    ((half, its), _) = bf16_and_fp32(model, rate=1e-5)
    steps(half, its, 3)
    kept, state = copy.deepcopy(half), copy.deepcopy(its.state_dict())
    steps(half, its, 50, seed=1)
    resumed = build_optimizer(OptimizerSettings(), kept)
    resumed.load_state_dict(state)
    steps(kept, resumed, 50, seed=1)
    for ours, theirs in zip(its.state.values(), resumed.state.values(), strict=True):
        assert {name: value.dtype for name, value in theirs.items()} == dict.fromkeys(ours, torch.float32)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.equal(value, trained(kept)[name]) for name, value in trained(half).items())


def test_a_strategy_with_masters_of_its_own_gets_torchs_adamw(model):
    assert type(build_optimizer(OptimizerSettings(), model.bfloat16(), masters=False)) is torch.optim.AdamW


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

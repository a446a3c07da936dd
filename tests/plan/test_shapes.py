"""Sizes of models, from the meta device and from real ones."""

import pytest
import torch

from visualchat.model.parameters import Part, part_sizes
from visualchat.model.trainable import set_trainable
from visualchat.plan.shapes import backbone_config, meta_model, sizes_of

FIELDS = {"image_seq_length": 4, "vision_feature_select_strategy": "default"}


@pytest.fixture
def planned(backbones):
    model = meta_model(backbones.vision, backbones.language, torch.float32, **FIELDS)
    set_trainable(model)
    return model


def test_a_planned_model_is_the_real_one_without_weights(planned, make_model):
    """Down to each parameter's name, shape, type and whether it trains; the head is untied in both."""
    real = make_model()
    set_trainable(real)

    def all_of(model):
        return {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}

    assert {p.device.type for p in planned.parameters()} == {"meta"}
    assert all_of(planned) == all_of(real)
    assert sizes_of(planned) == sizes_of(real)


def test_parts_add_up_to_the_model(planned):
    sizes = part_sizes(planned)
    assert {size.part for size in sizes} == {Part.VISION, Part.PROJECTOR, Part.EMBEDDING, Part.LANGUAGE, Part.HEAD}
    assert sum(size.parameters for size in sizes) == sum(p.numel() for p in planned.parameters())
    assert sum(size.bytes for size in sizes) == sum(p.nbytes for p in planned.parameters())
    assert sum(size.trainable for size in sizes) == sum(p.numel() for p in planned.parameters() if p.requires_grad)


def test_values_and_folder_give_the_same_model(planned, backbones):
    values = [backbone_config(folder).to_dict() for folder in (backbones.vision, backbones.language)]
    model = meta_model(*values, torch.float32, **FIELDS)
    set_trainable(model)
    assert sizes_of(model) == sizes_of(planned)


def test_an_architecture_without_its_type_is_refused():
    with pytest.raises(ValueError, match="needs its model_type, found only hidden_size"):
        backbone_config({"hidden_size": 8})

"""A base is known by its fingerprint."""

import torch

from visualchat.model.fingerprint import base_fingerprint
from visualchat.model.trainable import set_trainable


def test_the_fingerprint_knows_the_base_and_ignores_what_trains(make_model):
    model, same = make_model(), make_model()
    for m in (model, same):
        set_trainable(m)
    with torch.no_grad():
        same.multi_modal_projector.weight.add_(1)
        same.get_input_embeddings().weight.add_(1)
    assert base_fingerprint(model) == base_fingerprint(same)
    with torch.no_grad():
        same.language_model.model.layers[0].mlp.up_proj.weight.mul_(1.001)
    assert base_fingerprint(model) != base_fingerprint(same)

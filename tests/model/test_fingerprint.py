"""Only projector and token embedding train, and a base is known by its fingerprint."""

import pytest
import torch
from PIL import Image

from visualchat.dialogue import Dialogue, Turn
from visualchat.model.fingerprint import base_fingerprint, trainable_state
from visualchat.model.trainable import set_trainable


def test_only_projector_and_embedding_move(model, processor):
    set_trainable(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    dialogue = Dialogue((Turn.ask("Colour?", [Image.new("RGB", (16, 16), "red")], "red"),))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**processor.batch([dialogue])).loss.backward()
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {
        "language_model.model.embed_tokens.weight",
        "multi_modal_projector.weight",
        "multi_modal_projector.bias",
    }
    assert moved == set(trainable_state(model))


def test_tied_weights_are_refused(model):
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    with pytest.raises(ValueError, match="token embedding and language head are tied"):
        set_trainable(model)


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

"""What a plan says a server keeps is what an engine keeps."""

import torch
from PIL import Image

from visualchat.dialogue import Dialogue, Turn
from visualchat.engine import Engine, Request
from visualchat.plan.machine import GIB, Machine
from visualchat.plan.serving import serving
from visualchat.plan.shapes import sizes_of


def test_images_and_conversations_take_what_was_planned(make_model, processor):
    model = make_model(projector_type="linear_norm").to(torch.bfloat16)
    found = serving(sizes_of(model))
    engine = Engine(model, processor)
    image = Image.new("RGB", (16, 16), (200, 30, 90))
    engine.submit(Request.to_know(processor, image)).result()
    assert engine.store.stats.device_bytes == found.image
    answer = engine.submit(
        Request.of(processor, Dialogue((Turn.ask("What is it? " * 60, [image]),)), max_new_tokens=8)
    ).result()
    tokens = answer.usage.prompt_tokens + answer.usage.answer_tokens - 1  # the last one was never read
    assert 1 <= engine.stats.kept_bytes / found.session(tokens) < 1.2  # an eighth of room to grow into
    assert found.weights == sum(tensor.nbytes for tensor in model.parameters())


def test_sessions_that_a_gpu_holds(make_model):
    found = serving(sizes_of(make_model()))
    assert found.sessions(100, Machine(1, GIB, 0.0)) == int((0.9 * GIB - found.weights) // (100 * found.token))
    assert found.sessions(100, Machine(1, 1.0, 0.0)) == 0

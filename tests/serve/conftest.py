"""A server around the tests' small model, whose images make a difference."""

from contextlib import contextmanager

import pytest
import torch
from starlette.testclient import TestClient

from visualchat.engine import Engine
from visualchat.serve.app import build_app
from visualchat.serve.local import Local
from visualchat.serve.settings import Settings


@pytest.fixture(scope="module")
def loud(make_model):
    model = make_model(projector_type="linear_norm").eval()
    with torch.no_grad():
        model.multi_modal_projector.last_norm.weight.mul_(4)
    return model


@pytest.fixture(scope="module")
def serving(loud, processor):
    """Opens a client to a server with these settings; the app is `client.app`, its engine `client.engine`."""

    @contextmanager
    def opened(settings=None, model=loud, **engine):
        working = Engine(model, processor, **engine)
        chosen = settings or Settings()
        gate = build_app(Local(working, chosen), chosen)
        with TestClient(gate, "http://localhost", raise_server_exceptions=False) as client:
            client.engine = working
            yield client
            assert not gate.visits

    return opened


@pytest.fixture(scope="module")
def client(serving):
    with serving() as found:
        yield found

"""A session with the tests' small model."""

import pytest
from talking import MOST

from visualchat.chat import ChatSession


@pytest.fixture
def session(model, processor):
    return ChatSession(model, processor, max_new_tokens=MOST)

"""The running batch against plain lists of entries: what joins comes out again, with what was decoded behind it."""

import random
from types import SimpleNamespace

import torch
from transformers import LlamaConfig

from visualchat.engine.batch import STEP, Batch
from visualchat.model.growing_cache import GrowingCache

CONFIG = LlamaConfig(hidden_size=4, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)


def cache_of(entries):
    """A conversation whose entries are these numbers, other ones in each layer."""
    cache = GrowingCache(CONFIG)
    for layer in range(2):
        states = torch.tensor(entries, dtype=torch.float32)[None, None, :, None].expand(-1, 1, -1, 2) + 1000 * layer
        cache.update(states, -states, layer)
    return cache


def entries_of(batch, row):
    into = GrowingCache(CONFIG)
    batch.copy(row, into)
    found = [layer.keys[0, 0, :, 0] - 1000 * number for number, layer in enumerate(into.layers)]
    assert all(torch.equal(layer.keys, -layer.values) for layer in into.layers)
    assert torch.equal(*found)
    return found[0].tolist()


def check_what_is_read(expected):
    """A model that looks at what a step gives it."""

    def model(*, input_ids, attention_mask, position_ids, key_modality, past_key_values, **_):
        longest = max(map(len, expected))
        assert position_ids[:, 0].tolist() == [len(row) for row in expected]
        for layer in range(2):
            new = input_ids[:, None, :, None].expand(-1, 1, -1, 2) + 1000.0 * layer
            keys, values = past_key_values.update(new, -new, layer)
            assert keys.shape == values.shape == (len(expected), 1, longest + 1, 2)
            assert keys.isfinite().all()
            real = torch.ones_like(key_modality).bool() if attention_mask is None else attention_mask
            for row, entries in enumerate(expected):
                seen = (keys[row, 0, :, 0] - 1000 * layer)[real[row]].tolist()
                assert seen == [*entries, input_ids[row, 0].item()]
                assert key_modality[row][real[row]].tolist() == [entry % 2 for entry in entries] + [0]
        return SimpleNamespace(logits=torch.zeros(len(expected), 1, 3))

    return model


def test_rows_hold_what_joined_and_was_decoded_whatever_comes_and_goes():
    rng, batch, expected = random.Random(0), Batch(), []
    most = 0
    for _ in range(600):
        action = rng.random()
        if action < 0.2 and len(expected) < 9:
            entries = [2 * rng.randrange(200) + rng.randrange(2) for _ in range(rng.choice([1, 5, 90, 300]))]
            batch.join(cache_of(entries), torch.tensor([entry % 2 for entry in entries]))
            expected.append(entries)
        elif action < 0.3 and expected:
            row = rng.randrange(len(expected))
            assert entries_of(batch, row) == expected[row]
            batch.leave(row)
            expected[row] = expected[-1]
            expected.pop()
        elif expected:
            tokens = [2 * rng.randrange(200) for _ in expected]  # text
            batch.decode(check_what_is_read(expected), tokens)
            expected = [[*row, token] for row, token in zip(expected, tokens, strict=True)]
        assert batch.lengths == [len(row) for row in expected]
        needed = max(4, len(expected)) * max(STEP, batch.longest) * 2 * 2 * 2 * 4 if expected else 0
        assert batch.nbytes <= 16 * needed
        most = max(most, len(expected))
    assert most > 5
    assert [entries_of(batch, row) for row in range(len(expected))] == expected
    for _ in expected:
        batch.leave(0)
    assert batch.nbytes == batch.end == 0

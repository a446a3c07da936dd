"""The cache that grows in place: transformers' own bits, whatever is copied, cut, forked or reordered in between."""

import copy
import threading

import pytest
import torch
from transformers import DynamicCache, LlamaConfig

from visualchat.model.growing_cache import GrowingCache, GrowingLayer

CONFIG = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)


def entries(cache):
    return [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]


def grow(caches, count, seed, batch=2):
    """The same new entries for each cache."""
    generator = torch.Generator().manual_seed(seed)
    new = torch.randn(2, 2, batch, 2, count, 4, generator=generator)
    for cache in caches:
        for layer, (keys, values) in enumerate(new):
            cache.update(keys, values, layer)


def assert_same(ours, theirs):
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert all(torch.equal(*pair) for pair in zip(entries(ours), entries(theirs), strict=True))


def test_any_course_gives_the_entries_of_transformers_own():
    """Growing, cutting, forking, copying, beams and a reset, mixed at random; every fork stays what it was."""
    random = torch.Generator().manual_seed(3)
    pairs = [(GrowingCache(CONFIG), DynamicCache(config=CONFIG))]
    for step in range(120):
        ours, theirs = pairs[int(torch.randint(len(pairs), (), generator=random))]
        length = ours.get_seq_length()
        match int(torch.randint(8, (), generator=random)):
            case 0 if length:
                for cache in (ours, theirs):
                    cache.crop(-min(length, 3))
            case 1 if len(pairs) < 6:
                twins = [copy.copy(ours), copy.deepcopy(theirs)]
                twins[0].layers = [copy.copy(layer) for layer in ours.layers]
                pairs.append(tuple(twins))
            case 2 if len(pairs) < 6:
                pairs.append((copy.deepcopy(ours), copy.deepcopy(theirs)))
            case 3 if length:
                for cache in (ours, theirs):
                    cache.reorder_cache(torch.tensor([1, 0]))
            case 4 if step % 3 == 0:
                for cache in (ours, theirs):
                    cache.reset()
            case _:
                grow((ours, theirs), 1 + 40 * (step % 5 == 0), step)
        for pair in pairs:
            if pair[0].get_seq_length():
                assert_same(*pair)
    assert max(ours.get_seq_length() for ours, _ in pairs) > 64


def test_a_new_entry_copies_nothing_and_a_fork_copies_once():
    cache = GrowingCache(CONFIG)
    grow([cache], 100, 0)
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    home = cache.layers[0].keys.data_ptr()
    for step in range(10):
        grow([cache], 1, step)
        grow([fork], 1, step)
    assert cache.layers[0].keys.data_ptr() == home != fork.layers[0].keys.data_ptr()
    assert_same(cache, fork)
    room = cache.layers[0].room.keys
    assert room.shape[2] == 100 + 64  # a bounded share of it is empty


def test_of_threads_that_grow_one_beginning_each_keeps_its_own():
    cache = GrowingCache(CONFIG)
    grow([cache], 20, 0)
    forks = []
    for _ in range(8):
        forks.append(copy.copy(cache))
        forks[-1].layers = [copy.copy(layer) for layer in cache.layers]
    threads = [threading.Thread(target=grow, args=([fork], 30, seed)) for seed, fork in enumerate(forks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, fork in enumerate(forks):
        plain = DynamicCache(config=CONFIG)
        grow([plain], 20, 0)
        grow([plain], 30, seed)
        assert_same(fork, plain)


def test_gradients_and_inference_mode_meet_it():
    cache, plain = GrowingCache(CONFIG), DynamicCache(config=CONFIG)
    with torch.inference_mode():
        grow([cache, plain], 5, 0)
    grow([cache, plain], 1, 1)
    assert_same(cache, plain)
    keys = torch.ones(2, 2, 1, 4, requires_grad=True)
    found, _ = cache.update(keys, keys, 0)
    (gradient,) = torch.autograd.grad(found.sum(), keys)
    assert torch.equal(gradient, torch.ones_like(keys))


def test_layers_that_forget_stay_transformers_own():
    sliding = LlamaConfig(num_hidden_layers=2, hidden_size=8, num_attention_heads=2)
    sliding.layer_types, sliding.sliding_window = ["sliding_attention", "full_attention"], 4
    cache = GrowingCache(sliding)
    assert [isinstance(layer, GrowingLayer) for layer in cache.layers] == [False, True]
    assert not cache.keeps_all
    assert GrowingCache(CONFIG).keeps_all


@pytest.mark.parametrize("length", [1, 63])
def test_values_may_be_of_another_size_than_keys(length):
    layer = GrowingLayer()
    for _ in range(2):
        keys, values = layer.update(torch.ones(1, 2, length, 4), torch.ones(1, 2, length, 6))
    assert keys.shape == (1, 2, 2 * length, 4)
    assert values.shape == (1, 2, 2 * length, 6)

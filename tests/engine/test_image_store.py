"""The store itself: what a key tells apart, what leaves when room is short, and threads that share it."""

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from visualchat.engine.image_store import ImageKeys, ImageStore, digest, model_state
from visualchat.images.feature_store import image_key
from visualchat.model.image_states import Unit

CPU = torch.device("cpu")


def states(value, numbers=4):
    return torch.full((numbers,), float(value))


def ask(store, *keys):
    """What was computed for these keys, in order."""
    computed = []
    for key in keys:

        def compute(key=key):
            computed.append(key)
            return states(ord(key))

        assert torch.equal(store.get(key, CPU, compute), states(ord(key)))
    return computed


def test_equal_bytes_of_another_size_mode_or_framing_are_another_image():
    pixels = np.arange(48, dtype=np.uint8)
    images = [
        Image.frombytes("RGB", (2, 8), pixels.tobytes()),
        Image.frombytes("RGB", (8, 2), pixels.tobytes()),
        Image.frombytes("RGB", (4, 4), pixels.tobytes()),
        Image.frombytes("L", (6, 8), pixels.tobytes()),
        Image.frombytes("CMYK", (3, 4), pixels.tobytes()),
    ]
    found = {image_key(image) for image in images}
    assert len(found) == len(images)
    assert {len(name) for name in found} == {64}
    assert image_key(images[0]) == image_key(images[0].copy())
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", ""), digest("", "abc")}) == 5


def test_least_recently_used_goes_to_the_host_and_then_away():
    store = ImageStore(device_bytes=32, host_bytes=16)  # two entries, and one more
    assert ask(store, "a", "b", "c", "a") == ["a", "b", "c"]  # a came back from the host; b went there
    assert ask(store, "d") == ["d"]  # c to the host, b away
    assert ask(store, "c", "a") == []
    assert ask(store, "b") == ["b"]
    found = store.stats
    assert (found.hits, found.misses, found.evicted, found.entries) == (3, 5, 2, 3)
    assert (found.device_bytes, found.host_bytes) == (32, 16)
    store.clear()
    assert (store.stats.entries, store.stats.device_bytes, store.stats.host_bytes) == (0, 0, 0)
    assert ask(store, "a") == ["a"]


@pytest.mark.parametrize(("device", "host", "kept"), [(0, 0, 0), (0, 16, 1), (8, 40, 2), (16, 0, 1)])
def test_tiny_budgets_hold_what_fits(device, host, kept):
    store = ImageStore(device, host)
    assert ask(store, "a", "b", "c") == ["a", "b", "c"]
    assert store.stats.entries == kept
    assert store.stats.device_bytes <= device
    assert store.stats.host_bytes <= host
    assert ask(store, "c") == (["c"] if not kept else [])


def test_threads_share_a_store():
    """Each always gets its own key's states; the books balance at the end."""
    store, wrong = ImageStore(device_bytes=48, host_bytes=32), []

    def work(seed):
        order = np.random.default_rng(seed).integers(0, 8, 300)
        for value in order.tolist():
            if not torch.equal(store.get(str(value), CPU, lambda value=value: states(value)), states(value)):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.stats
    assert not wrong
    assert found.hits + found.misses == 1200
    assert (found.entries, found.device_bytes, found.host_bytes) == (5, 48, 32)


def unit(number, label=()):
    return Unit((*label, 0, 0), (*[0] * len(label), 1, 1), number, 0)


def test_a_key_tells_models_kinds_numbers_and_labels_apart(make_model):
    image = Image.new("RGB", (4, 4), "red")
    found = {}
    for kind, config in (("mmca", {}), ("mmca_joint", {}), ("mmca_joint", {"image_numbers": "learned"}), ("unit", {})):
        keys = ImageKeys(make_model(attention_kind=kind, **config), "scaled")
        label = (5, 6) if kind == "unit" else ()
        first, again, second = keys.of([(image, unit(number, label)) for number in (1, 1, 2)], [])[0]
        assert first == again
        assert (first == second) == (kind != "unit" and not config)
        found |= {first: 1, second: 1}
        if kind == "unit":
            assert keys.of([(image, unit(1, (5, 7)))], [])[0][0] not in found
            assert ImageKeys(keys.model, "cropped").of([(image, unit(1, label))], [])[0][0] not in found
    assert len(found) == 6


@torch.no_grad()
def test_changed_weights_and_adapters_make_another_model(make_model):
    model, other = make_model(), make_model()
    names = [model_state(model)]
    assert model_state(model) == names[0]
    assert model_state(other) != names[0]

    def changed():
        names.append(model_state(model))
        assert names[-1] not in names[:-1]
        assert model_state(model) == names[-1]

    model.multi_modal_projector.get_parameter(next(iter(dict(model.multi_modal_projector.named_parameters())))).add_(1)
    changed()
    model.load_state_dict(other.state_dict())
    changed()
    model.language_model.get_input_embeddings().weight.data.mul_(2)
    changed()
    model.vision_tower.to(torch.float64)
    changed()

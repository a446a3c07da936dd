"""The store of vision features: gives back what was written, bit for bit, or says that it does not know."""

import multiprocessing
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from visualchat.images.feature_store import FeatureStore, image_key


def picture(number: int = 0) -> Image.Image:
    return Image.new("RGB", (4, 3), (number, 7, 7))


def store(folder, **maker) -> FeatureStore:
    return FeatureStore(folder, {"encoder": "A", **maker})


def features(number: int = 0) -> torch.Tensor:
    return torch.randn(5, 8, generator=torch.Generator().manual_seed(number))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_bits_are_kept(tmp_path, dtype):
    key, made = image_key(picture()), features().to(dtype)
    store(tmp_path).write(key, made)
    found = store(tmp_path).read(key)
    assert found.dtype == dtype
    assert torch.equal(found, made)


def test_a_key_tells_pictures_apart_that_have_the_same_bytes():
    """As lists of bytes these are equal (CVE-2025-46722)."""
    data = bytes(range(12))
    images = [Image.frombytes("RGB", (2, 2), data), Image.frombytes("RGB", (4, 1), data)]
    images += [Image.frombytes(mode, (4, 3), data) for mode in ("L", "P")] + [Image.frombytes("L", (3, 4), data)]
    assert len({image_key(image) for image in images}) == len(images)
    assert image_key(images[0]) == image_key(images[0].copy())


def test_what_is_known_and_what_is_not_stand_in_the_pictures_order(tmp_path):
    pictures = [picture(n) for n in range(4)]
    for number in (3, 1):
        store(tmp_path).write(image_key(pictures[number]), features(number))
    found = store(tmp_path).lookup([image_key(image) for image in pictures])
    assert found.keys == [image_key(pictures[0]), "", image_key(pictures[2]), ""]
    nothing = torch.zeros(5, 8)
    assert torch.equal(found.features, torch.stack([nothing, features(1), nothing, features(3)]))
    assert found.damaged == 0
    assert store(tmp_path).lookup([image_key(pictures[0])]).features is None


def test_another_encoder_knows_nothing(tmp_path):
    key = image_key(picture())
    store(tmp_path).write(key, features())
    assert store(tmp_path, layer="-2").read(key) is None
    assert store(tmp_path, encoder="B").read(key) is None


DAMAGES = ("empty", "cut in the header", "cut in the data", "one bit", "longer", "text", "another picture", "foreign")
DAMAGES += ("no features",)


def damage(name: str, path, other) -> None:
    """Spoil the file at `path`; `other` is a good file of another picture."""
    content = bytearray(path.read_bytes())
    match name:
        case "empty":
            content.clear()
        case "cut in the header":
            del content[20:]
        case "cut in the data":
            del content[-1:]
        case "one bit":
            content[-9] ^= 1
        case "text":
            content[:] = b"not a feature file"
        case "another picture":
            content[:] = other.read_bytes()
        case "foreign":
            content[:] = save({"features": features()})
        case "no features":
            content[:] = save({"weights": features()})
        case "longer":
            content += b"0"
    path.write_bytes(content)


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_never_used(tmp_path, name, caplog):
    some, pictures = store(tmp_path), [picture(0), picture(1)]
    keys = [image_key(image) for image in pictures]
    for number, key in enumerate(keys):
        some.write(key, features(number))
    damage(name, some.path(keys[0]), some.path(keys[1]))
    with pytest.raises(ValueError, match="feature file"):
        some.read(keys[0])
    found = some.lookup(keys)
    assert (found.keys, found.damaged) == ([keys[0], ""], 1)
    assert "the image is encoded again" in caplog.text
    some.write(keys[0], features(0))
    assert torch.equal(some.read(keys[0]), features(0))


def test_a_file_moved_from_another_encoder_is_never_used(tmp_path):
    key, one, other = image_key(picture()), store(tmp_path), store(tmp_path, encoder="B")
    one.write(key, features())
    other.path(key).parent.mkdir(parents=True)
    shutil.copy(one.path(key), other.path(key))
    with pytest.raises(ValueError, match="maker is"):
        other.read(key)


def test_a_kill_in_the_middle_of_a_write_leaves_nothing_behind_that_counts(tmp_path, monkeypatch):
    key, some = image_key(picture()), store(tmp_path)
    some.write(key, features(0))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)  # a kill tidies nothing up
        with pytest.raises(KeyboardInterrupt):
            some.write(key, features(1))
    assert torch.equal(some.read(key), features(0))
    assert len([*tmp_path.rglob(".*")]) == 1
    some.write(key, features(1))
    assert torch.equal(some.read(key), features(1))


def test_a_full_disk_leaves_no_litter(tmp_path, monkeypatch):
    some = store(tmp_path)
    some.write(image_key(picture(0)), features())
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError("No space left")))
    with pytest.raises(OSError, match="No space left"):
        some.write(image_key(picture(0)), features())
    assert not [*tmp_path.rglob(".*")]


def write_all(folder) -> None:
    for _ in range(20):
        for number in range(5):
            store(folder).write(image_key(picture(number)), features(number))


def test_several_processes_share_a_folder(tmp_path):
    """Two write the same files over and over; a reader finds each as it should be, or not yet."""
    processes = [multiprocessing.get_context("fork").Process(target=write_all, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        for number in range(5):
            found = store(tmp_path).read(image_key(picture(number)))
            assert found is None or torch.equal(found, features(number))
    assert [process.exitcode for process in processes] == [0, 0]
    found = store(tmp_path).lookup([image_key(picture(number)) for number in range(5)])
    assert torch.equal(found.features, torch.stack([features(number) for number in range(5)]))
    assert not [*tmp_path.rglob("*.tmp")]

"""Qwen-VL's encoder out of checkpoints in every published form; nothing else is opened; what is broken is named."""

import json
import shutil

import pytest
import torch
from PIL import Image
from qwen_checkpoints import PREFIX, VISUAL, random_weights, write_checkpoint
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, LlamaConfig, Qwen2Config

from visualchat.model.vision import (
    QwenVLVisionConfig,
    QwenVLVisionModel,
    assign_weights,
    load_image_processor,
    load_vision_tower,
    vision_config,
)
from visualchat.model.vision.checkpoint import read_encoder
from visualchat.model.vision.modeling_qwen_vl import expected_shapes

CONFIG = QwenVLVisionConfig.from_qwen(VISUAL)
WEIGHTS = random_weights()
THIRD = "pytorch_model-00003-of-00005.bin"


def same_weights(model: QwenVLVisionModel, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the model holds exactly the checkpoint's weights, all but `proj`."""
    state = model.state_dict()
    kept = {name: weight.to(dtype) for name, weight in WEIGHTS.items() if name != "proj"}
    return kept.keys() == state.keys() and all(torch.equal(kept[name], state[name]) for name in kept)


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("qwen") / "Qwen-VL-Chat", WEIGHTS)


@pytest.fixture
def broken(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "broken")


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_only_the_shards_of_the_encoder_are_opened(form, tmp_path):
    """The shards of the language model are garbage, and the checkpoint's own code raises."""
    folder = write_checkpoint(tmp_path, WEIGHTS, form=form)
    model = load_vision_tower(folder, torch.float32)
    assert isinstance(model, QwenVLVisionModel)
    assert vision_config(folder).to_dict() == CONFIG.to_dict()
    assert model.config.name_or_path == str(folder)
    assert same_weights(model)
    assert not model.training


def test_shards_of_the_language_model_need_not_be_there(broken):
    for number in (1, 2, 5):
        (broken / f"pytorch_model-0000{number}-of-00005.bin").unlink()
    assert same_weights(load_vision_tower(broken, torch.float32))


def test_of_a_hub_repository_only_the_needed_files_are_fetched(sharded, monkeypatch):
    fetched = []

    def cached_file(repository, name, **_):
        assert repository == "Qwen/Qwen-VL-Chat"
        if not (sharded / name).is_file():
            return None
        fetched.append(name)
        return str(sharded / name)

    monkeypatch.setattr("visualchat.model.vision.checkpoint.cached_file", cached_file)
    assert read_encoder("Qwen/Qwen-VL-Chat", expected_shapes(CONFIG)).keys() == WEIGHTS.keys() - {"proj"}
    assert set(fetched) == {"pytorch_model.bin.index.json", THIRD, THIRD.replace("3", "4")}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_checkpoint_in_one_file(name, tmp_path):
    write_checkpoint(tmp_path, WEIGHTS)
    for file in tmp_path.glob("pytorch_model*"):
        file.unlink()
    whole = {f"{PREFIX}{key}": weight for key, weight in WEIGHTS.items()} | {"lm_head.weight": torch.ones(2)}
    save_file(whole, tmp_path / name) if name.endswith("safetensors") else torch.save(whole, tmp_path / name)
    assert same_weights(load_vision_tower(tmp_path, torch.float32))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "qwen.pt", "qwen.safetensors"])
@pytest.mark.parametrize("left_out", [(), ("proj",)], ids=["with proj", "without"])
def test_the_extracted_file(name, left_out, tmp_path):
    extracted = {key: weight for key, weight in WEIGHTS.items() if key not in left_out}
    file = tmp_path / name
    save_file(extracted, file) if name.endswith("safetensors") else torch.save(extracted, file)
    state = read_encoder(file, expected_shapes(CONFIG))
    assert same_weights(assign_weights(CONFIG, state, torch.float32))
    assert vision_config(file).to_dict() == QwenVLVisionConfig().to_dict()
    with pytest.raises(ValueError, match=rf"{name}: .* has shape .*, expected "):  # the published sizes
        load_vision_tower(file, torch.float32)


def test_a_saved_encoder_is_like_any_other_of_transformers(sharded, tmp_path):
    model = load_vision_tower(sharded, torch.float32)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoModel.from_pretrained(tmp_path), QwenVLVisionModel)
    assert same_weights(load_vision_tower(tmp_path, torch.float32))
    assert vision_config(tmp_path).query_grid == 3
    assert load_image_processor(tmp_path).size["height"] == 56
    load_image_processor(sharded).save_pretrained(tmp_path)
    assert load_image_processor(tmp_path).size["height"] == 56


def test_loading_makes_no_second_copy(sharded):
    """The model's weights are the mapped files' own memory, as long as the dtype is theirs."""
    state = read_encoder(sharded, expected_shapes(CONFIG))
    model = assign_weights(CONFIG, state, torch.float32)
    assert all(weight.data_ptr() == state[name].data_ptr() for name, weight in model.state_dict().items())
    assert same_weights(load_vision_tower(sharded, torch.bfloat16), torch.bfloat16)


@pytest.mark.parametrize("form", ["bin", "safetensors"])
def test_training_a_loaded_encoder_leaves_its_files_alone(form, tmp_path):
    folder = write_checkpoint(tmp_path, WEIGHTS, form=form)
    model = load_vision_tower(folder, torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert same_weights(load_vision_tower(folder, torch.float32))


def rewrite(file, change) -> None:
    weights = torch.load(file, weights_only=True)
    change(weights)
    torch.save(weights, file)


def rewrite_json(file, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


FIRST = PREFIX + "attn_pool.attn.in_proj_bias"


def test_a_missing_shard_is_named(broken):
    (broken / THIRD).unlink()
    with pytest.raises(ValueError, match=rf"lacks {THIRD}, which pytorch_model.bin.index.json says holds {PREFIX}"):
        load_vision_tower(broken, torch.float32)


@pytest.mark.parametrize("name", [THIRD, "model-00003-of-00005.safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99], ids=str)
def test_a_shard_that_is_cut_short_is_named(name, kept, tmp_path):
    folder = write_checkpoint(tmp_path, WEIGHTS, form=name.rpartition(".")[2])
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: kept if kept > 1 else int(len(content) * kept)])
    with pytest.raises(ValueError, match=rf"{name} cannot be read as weights"):
        load_vision_tower(folder, torch.float32)


def test_a_shard_that_lacks_a_weight_is_named(broken):
    rewrite(broken / THIRD, lambda weights: weights.pop(FIRST))
    with pytest.raises(ValueError, match=rf"{THIRD} lacks attn_pool.attn.in_proj_bias, which the index says"):
        load_vision_tower(broken, torch.float32)


def test_a_weight_of_another_shape_is_named(broken):
    rewrite(broken / THIRD, lambda weights: weights.update({FIRST: torch.zeros(767)}))
    message = rf"{THIRD}: attn_pool.attn.in_proj_bias has shape \(767,\), expected \(768,\)"
    with pytest.raises(ValueError, match=message):
        load_vision_tower(broken, torch.float32)


def test_missing_and_unknown_weights_are_named(broken):
    rewrite_json(broken / "config.json", lambda config: config["visual"].update(layers=3))
    with pytest.raises(ValueError, match=r"lacks transformer.resblocks.2.attn.in_proj.bias, .* and 8 more"):
        load_vision_tower(broken, torch.float32)
    rewrite_json(broken / "config.json", lambda config: config["visual"].update(layers=1))
    with pytest.raises(ValueError, match=r"holds unknown transformer.resblocks.1.attn.in_proj.bias, .* and 8 more"):
        load_vision_tower(broken, torch.float32)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_named(broken, content):
    (broken / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"index.json is not an index of weights"):
        load_vision_tower(broken, torch.float32)


def test_an_index_may_not_leave_its_folder_or_lack_the_encoder(broken):
    index = broken / "pytorch_model.bin.index.json"
    rewrite_json(index, lambda content: content["weight_map"].update({FIRST: "../secret.bin"}))
    with pytest.raises(ValueError, match=r"lies in '../secret.bin', expected the name of a file beside the index"):
        load_vision_tower(broken, torch.float32)
    rewrite_json(index, lambda content: content.update(weight_map={"lm_head.weight": THIRD}))
    with pytest.raises(ValueError, match=r"names no transformer.visual.\* weight: this is not a Qwen-VL checkpoint"):
        load_vision_tower(broken, torch.float32)


class Explosive:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"conv1.weight": Explosive()}, "cannot be read as weights"),
        ([torch.zeros(2)], "holds no dict of tensors: found list"),
        ({"epoch": 3}, "holds no dict of tensors: found dict"),
    ],
    ids=["code", "list", "numbers"],
)
def test_a_pickle_that_is_no_weights_is_refused_unexecuted(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.bin")
    with pytest.raises(ValueError, match=rf"odd.bin {message}"):
        load_vision_tower(tmp_path / "odd.bin", torch.float32)


def test_folders_without_an_encoder_or_without_weights_are_refused(broken, tmp_path):
    for file in broken.glob("pytorch_model*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"broken holds no weights, expected one of model.safetensors.index.json"):
        load_vision_tower(broken, torch.float32)
    write_checkpoint(broken, WEIGHTS, visual=None)
    with pytest.raises(ValueError, match="is a Qwen without a vision encoder"):
        vision_config(broken)
    for config in (LlamaConfig(), Qwen2Config()):
        config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=f"holds no vision encoder: its configuration is a '{config.model_type}'"):
            vision_config(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        load_vision_tower(tmp_path / "nowhere", torch.float32)


def test_the_image_processor_shows_the_whole_picture(sharded, tmp_path):
    """448 pixels from a picture of another form: resized by PIL's bicubic, scaled by CLIP's numbers, nothing cut."""
    config = json.loads((sharded / "config.json").read_text())
    config["visual"]["image_size"] = 448
    (tmp_path / "config.json").write_text(json.dumps(config))
    processor = load_image_processor(tmp_path)
    picture = Image.effect_noise((300, 170), 90).convert("RGB")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    resized = torch.tensor(list(picture.resize((448, 448), Image.Resampling.BICUBIC).tobytes())).view(448, 448, 3)
    expected = ((resized / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)
    found = processor(images=[picture], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-5)  # float32's rounding of three operations
    processor.save_pretrained(tmp_path)
    again = AutoImageProcessor.from_pretrained(tmp_path)(images=[picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(again, found)

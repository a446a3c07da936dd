"""The cache of vision features changes no loss; what is kept is not encoded again; a feature is never another's."""

import logging
from functools import partial

import lightning
import pytest
import torch
from PIL import Image

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.training.feature_cache import FeatureFiller, open_store
from visualchat.training.module import VisualChatModule


@pytest.fixture(autouse=True)
def one_thread():
    """With several, matrices as small as these are cut differently in batches of different sizes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def dialogues() -> list[Dialogue]:
    """Five, with 0, 1, 2, 1 and 2 images; one image is in two dialogues, so there are five."""
    images = [Image.effect_noise((20 + n, 16), 90.0).convert("RGB") for n in range(5)]
    shown = [[], images[:1], images[1:3], images[1:2], images[3:]]
    return [Dialogue((Turn.ask(f"Number {n}?", some, "yes"),), id=f"d{n}") for n, some in enumerate(shown)]


class Run:
    """A training run: its losses, the pictures that were encoded in each epoch, and its data."""

    def __init__(self, make_model, processor, told, folder=None, **settings) -> None:
        self.losses: list[float] = []
        self.encoded: list[int] = [0, 0]

        def build():
            model = make_model()
            encode = model.vision_tower.forward

            def counting(pixel_values, *args, **kwargs):
                self.encoded[trainer.current_epoch] += len(pixel_values)
                return encode(pixel_values, *args, **kwargs)

            model.vision_tower.forward = counting
            return model

        run = self

        class Keep(lightning.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, number):
                run.losses.append(outputs["loss"].item())

        trainer = lightning.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            callbacks=[Keep()],
        )
        settings = {"batch_size": 2, "max_length": 500, **settings}
        self.data = VisualChatDataModule(processor, told, told[1:2], feature_cache=folder, **settings)
        self.module = VisualChatModule(build)
        trainer.fit(self.module, self.data)


SETTINGS = {"padded": {}, "packed": {"packing": True}, "one by one": {"batch_size": 1}, "workers": {"num_workers": 1}}


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_are_the_same_to_the_last_bit(make_model, processor, tmp_path, name):
    told, settings = dialogues(), SETTINGS[name]
    plain = Run(make_model, processor, told, **settings)
    first = Run(make_model, processor, told, tmp_path, **settings)
    second = Run(make_model, processor, told, tmp_path, **settings)
    assert plain.losses == first.losses == second.losses
    text_only = plain.encoded[0] - 6 if name == "one by one" else 0  # a blank image for the idle vision side
    if name != "workers":  # a worker looks ahead, before the picture that two dialogues share is kept
        assert first.encoded == [5 + text_only, text_only]
        assert first.data.feature_counts["encoded"] == 5
    assert second.encoded == [text_only, text_only]
    assert second.data.feature_counts["encoded"] == second.data.feature_counts["damaged"] == 0


def test_a_truncated_file_is_made_anew_and_counted(make_model, processor, tmp_path, caplog):
    told = dialogues()
    first = Run(make_model, processor, told, tmp_path)
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with caplog.at_level(logging.INFO, "visualchat"):
        second = Run(make_model, processor, told, tmp_path)
    assert second.losses == first.losses
    made = path.read_bytes()
    assert (len(made), made[-64:]) == (len(whole), whole[-64:])  # a header's entries have no fixed order
    assert second.data.feature_counts["damaged"] == second.encoded[0] == 1
    assert f"feature file {str(path)!r} cannot be read" in caplog.text
    assert "1 encoded, 1 damaged files" in caplog.text


def test_another_encoder_or_preprocessing_finds_nothing(make_model, processor, tmp_path, monkeypatch):
    told = dialogues()
    Run(make_model, processor, told, tmp_path)

    def other(**config):
        model = make_model(**config)
        with torch.no_grad():
            next(model.vision_tower.parameters()).view(-1)[3] += 1e-6
        return model

    assert Run(other, processor, told, tmp_path).encoded == [5, 0]
    assert Run(partial(make_model, vision_feature_layer=-2), processor, told, tmp_path).encoded == [5, 0]
    monkeypatch.setattr(processor.image_processor, "image_mean", [0.0, 0.0, 0.0])
    assert Run(make_model, processor, told, tmp_path).encoded == [5, 0]
    assert len([*tmp_path.iterdir()]) == 4


def test_an_encoder_that_trains_is_refused(make_model, processor, tmp_path):
    model = make_model()
    with pytest.raises(ValueError, match=r"keeps what a frozen vision encoder makes, but \d+ of its parameters train"):
        open_store(tmp_path, model, processor, "32-true")


def test_a_sharded_encoder_is_refused(make_model, processor, tmp_path):
    model = make_model().requires_grad_(False)
    next(model.vision_tower.parameters()).ds_id = 0
    with pytest.raises(ValueError, match="needs the whole vision encoder on every rank"):
        open_store(tmp_path, model, processor, "32-true")


def test_a_full_disk_ends_the_keeping_not_the_training(make_model, processor, tmp_path, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("visualchat.images.feature_store.whole_file", full)
    told = dialogues()
    assert Run(make_model, processor, told, tmp_path).losses == Run(make_model, processor, told).losses
    assert caplog.text.count("features are no longer kept") == 1


def test_unknown_pictures_are_completed_in_their_places(make_model, processor, collated, tmp_path):
    """One picture known of three: the batch's features are those of the encoder, in order."""
    model = make_model().requires_grad_(False)
    store = open_store(tmp_path, model, processor, "32-true")
    told = dialogues()[1:3]
    expected = model.vision_features(processor.batch(told)["pixel_values"])
    filler = FeatureFiller(store)
    filler.complete(model, collated(processor, [Dialogue((Turn.ask("?", told[1].images[:1], "yes"),))], store=store))
    batch = collated(processor, told, store=store)
    assert len(batch["pixel_values"]) == 2
    assert [bool(key) for key in batch["feature_keys"]] == [True, False, True]
    batch.pop("features_damaged")
    complete = filler.complete(model, batch)
    assert torch.equal(complete["vision_features"], expected)
    assert torch.equal(model(**complete).loss, model(**processor.batch(told)).loss)


def test_pixels_and_features_at_once_are_an_error(model, processor):
    batch = processor.batch(dialogues()[1:2])
    with pytest.raises(ValueError, match="expected either pixel_values or vision_features, found both"):
        model(**batch, vision_features=torch.zeros(1, 4, 16))
    del batch["pixel_values"]
    with pytest.raises(ValueError, match=r"bring 3 tokens an image, config.image_seq_length is 4"):
        model(**batch, vision_features=torch.zeros(1, 3, 16))

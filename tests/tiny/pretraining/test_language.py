"""Pretraining of the language models: resuming, and how much of a course is about how many images."""

from dataclasses import replace

import pytest
import torch

from visualchat.tiny import backbone
from visualchat.tiny.pretraining import language
from visualchat.tiny.pretraining.__main__ import main
from visualchat.tiny.pretraining.language import train_language
from visualchat.tiny.pretraining.recipes import MIXED_COURSE, RECIPES
from visualchat.tiny.pretraining.tokenizer import train_tokenizer

SHORT = replace(RECIPES["language_hops"], course=MIXED_COURSE, layers=5, steps=6, batch_size=2, most_rounds=3)


class StoppedError(Exception):
    """Stands for a machine that goes away."""


def test_a_stopped_pretraining_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(language, "POOL", 2)
    tokenizer, start = train_tokenizer(hops=True, dialogues=60), backbone("language_causal")

    def stop(done: int, total: int, loss: float) -> None:
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        train_language(SHORT, tokenizer, 0, stop, start, tmp_path / "checkpoint")
    seen = []
    resumed = train_language(
        SHORT, tokenizer, 0, lambda done, total, loss: seen.append(done), start, tmp_path / "checkpoint"
    )
    whole = train_language(SHORT, tokenizer, 0, start=start)
    assert seen == [5, 6]
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, rtol=0, atol=0)


def test_dialogues_with_hops_grow_from_few_images_to_many():
    recipe = replace(RECIPES["language_hops"], one_image_share=0.2, few_images_share=0.3)
    assert [language.most_images(recipe, progress) for progress in (0.0, 0.1, 0.3, 0.6, 0.99)] == [1, 1, 4, 8, 8]
    plain = RECIPES["language_causal"]
    assert [language.most_images(plain, progress) for progress in (0.0, 0.5, 0.99)] == [1, 4, 4]


def test_a_model_that_grows_needs_the_one_that_it_grows_from(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--only", "language-hops", "--out", str(tmp_path / "out")])
    assert "language_hops grows from language_causal, which is not in" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

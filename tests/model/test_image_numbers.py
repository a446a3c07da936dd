"""Numbered images: what is added to which token, how it starts, and that it goes everywhere its model goes."""

import pytest
import torch
from PIL import Image
from recomputed import best_tokens
from transformers import AutoTokenizer

from visualchat.attention import Modality
from visualchat.chat import ChatSession
from visualchat.dialogue import Caption, Dialogue, Turn
from visualchat.dialogue.image_references import insert_image
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.convert_published import from_published, to_published
from visualchat.model.light import load_light, save_light
from visualchat.model.parameters import Part, part_sizes
from visualchat.model.trainable import Trainable, set_trainable, trainable_state
from visualchat.training.optim import OptimizerSettings, build_optimizer

RED, BLUE = (Image.new("RGB", (20, 20), colour) for colour in ("red", "blue"))


@pytest.fixture
def numbered(make_model):
    """With numbers that count."""

    def make(**config):
        model = make_model(**{"attention_kind": "mmca_joint", "image_numbers": "learned", **config})
        torch.nn.init.normal_(model.image_numbers.weight, std=0.5, generator=torch.Generator().manual_seed(1))
        return model

    return make


def dialogues(answer=None):
    """The same picture as image 1, 2 and 3; a caption counts as an image."""
    return [
        Dialogue((Turn.ask("Which?", [RED, BLUE], answer),), "two"),
        Dialogue((Turn.ask("Hi.", [BLUE], "Hello."), Turn((Caption("a cat"), "Is it", RED, "?"), answer)), "later"),
        Dialogue((Turn.ask("Text?", [], answer),), "none"),
    ]


NUMBERS = [[1, 2], [1, 3], []]


@torch.no_grad()
def test_all_tokens_of_an_image_carry_its_numbers_vector(numbered, processor):
    """By hand: embeddings with the images in their slots, the vector of its number on each of their tokens."""
    model, batch = numbered(), processor.batch(dialogues("Yes."))
    embeds = model.get_input_embeddings()(batch["input_ids"])
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    embeds = model.splice(embeds, batch["mm_token_type_ids"], features)
    for row, numbers in enumerate(NUMBERS):
        slots = (batch["mm_token_type_ids"][row] == Modality.IMAGE).nonzero().flatten().tolist()
        for place, slot in enumerate(slots):
            embeds[row, slot] += model.image_numbers.weight[numbers[place // processor.image_seq_length] - 1]
    types, mask = batch["mm_token_type_ids"], batch["attention_mask"]
    expected = model.language_model(inputs_embeds=embeds, key_modality=types, attention_mask=mask).logits
    del batch["labels"]
    real = mask.bool()
    torch.testing.assert_close(model(**batch).logits[real], expected[real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_learned_numbers_start_as_nothing_and_labels_at_their_words(make_model, backbones, processor):
    batch = processor.batch(dialogues("Yes."))
    plain, learned = (
        make_model(attention_kind="mmca_joint"),
        make_model(attention_kind="mmca_joint", image_numbers="learned"),
    )
    assert torch.equal(learned(**batch).logits, plain(**batch).logits)
    label = make_model(attention_kind="mmca_joint", image_numbers="label", image_number_limit=12)
    words = AutoTokenizer.from_pretrained(backbones.language)("### Image 12:\n", add_special_tokens=False)["input_ids"]
    expected = label.get_input_embeddings().weight[words].mean(0)
    torch.testing.assert_close(label.image_numbers.weight[11], expected)
    assert label.image_numbers.weight.shape == (12, 32)


@pytest.mark.parametrize("kind", ["mmca_joint", "causal", "unit", "cross"])
def test_packed_shared_cached_and_in_rounds_it_is_the_same(numbered, backbones, processor, collated, kind):
    outside = kind == "cross"
    model = numbered(attention_kind=kind, cross_attention_every=1)
    if outside:
        processor = VisualChatProcessor.from_backbones(backbones.vision, backbones.language, image_seq_length=1)
        for name, parameter in model.named_parameters():
            if name.endswith("_gate"):
                torch.nn.init.constant_(parameter, 0.7)
    given = dialogues("Yes.")
    with torch.no_grad():
        alone = torch.cat([model(**processor.batch([dialogue])).logits for dialogue in given])
        for rows in (None,) if outside else (None, [3]):
            batch = collated(processor, given, rows)
            assert len(batch["pixel_values"]) == 2
            torch.testing.assert_close(model(**batch).logits, alone, atol=1e-4, rtol=1e-4)
    prompt = processor.prompt(dialogues()[:1])
    asked = prompt["input_ids"].shape[1]
    answer = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, asked:]
    assert torch.equal(answer, model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=False)[0, asked:])
    session = ChatSession(model, processor, max_new_tokens=5)
    for images in ([RED], [], [RED, BLUE]):
        asked = len(session._encode(Turn.ask("And?", images))[0].ids)
        list(session.ask("And?", images))
    best = best_tokens(model, processor, session, [RED, RED, BLUE])
    said = session.ids[asked : asked + 5]
    assert best[asked - 1 : asked - 1 + len(said)].tolist() == said


def test_images_that_are_renumbered_get_the_new_numbers_vector(processor):
    """A picture slipped in before the second one moves it from 2 to 3, in words and in the ids that choose vectors."""
    moved = insert_image(Dialogue((Turn.ask("Is image 2 blue?", [RED, BLUE], "yes"),)), RED, 1)
    encoding = processor.encode(moved)
    found = [u for u, kind in zip(encoding.unit_ids, encoding.mm_token_type_ids, strict=True) if kind == Modality.IMAGE]
    assert found == [1] * 4 + [2] * 4 + [3] * 4
    assert "Is image 3 blue?" in processor.tokenizer.decode(encoding.input_ids)


def test_they_train_with_the_projector_at_its_rate(numbered, processor):
    model = numbered()
    set_trainable(model)
    assert "image_numbers.weight" in trainable_state(model)
    assert Part.IMAGE_NUMBERS in {size.part for size in part_sizes(model) if size.trainable == 64 * 32}
    optimizer = build_optimizer(OptimizerSettings(learning_rate=0.5, embedding_learning_rate=0.1), model)
    (group,) = (g for g in optimizer.param_groups if any(p is model.image_numbers.weight for p in g["params"]))
    assert (group["name"], group["lr"]) == ("new", 0.5)
    model.train()(**processor.batch(dialogues("Yes."))).loss.backward()
    moved = model.image_numbers.weight.grad.abs().sum(1) > 0
    assert moved.nonzero().flatten().tolist() == [0, 1, 2]
    model.zero_grad()
    model(**processor.batch(dialogues("Yes.")[2:])).loss.backward()  # ranks wait for all that trains
    assert model.image_numbers.weight.grad is not None
    set_trainable(model, Trainable(projector=False))
    assert "image_numbers.weight" not in trainable_state(model)


@pytest.mark.parametrize("start", ["learned", "label"])
def test_saved_whole_and_light_they_come_back(numbered, backbones, processor, tmp_path, start):
    model, batch = numbered(image_numbers=start), processor.batch(dialogues("Yes."))
    set_trainable(model)
    model.save_pretrained(tmp_path / "whole")
    save_light(model, tmp_path / "light", backbones.vision, backbones.language)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        for again in (
            VisualChatForConditionalGeneration.from_pretrained(tmp_path / "whole"),
            load_light(tmp_path / "light"),
        ):
            assert again.config.image_numbers == start
            assert torch.equal(again(**batch).logits, expected)


def test_what_cannot_be_is_refused(numbered, make_model, processor, backbones, tmp_path):
    model, batch = numbered(image_number_limit=2), processor.batch(dialogues("Yes."))
    with pytest.raises(ValueError, match=r"shows image 3, the model has numbers for 2 images .*image_number_limit"):
        model(**batch)
    del batch["unit_ids"]
    with pytest.raises(ValueError, match=r"image_numbers 'learned'\): it needs unit_ids"):
        model(**batch)
    with pytest.raises(ValueError, match="unknown image_numbers 'yes', expected one of none, learned, label"):
        make_model(image_numbers="yes")
    numbered(projector_type="linear_norm").save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="the published code has no image numbers"):
        to_published(tmp_path / "ours", tmp_path / "pytorch_model.bin")
    plain = make_model(projector_type="linear_norm", vision_feature_select_strategy="full", image_seq_length=5)
    plain.save_pretrained(tmp_path / "plain")
    to_published(tmp_path / "plain", tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="the published code has no image numbers"):
        from_published(
            tmp_path, tmp_path / "b", backbones.vision, backbones.language, image_seq_length=5, image_numbers="learned"
        )

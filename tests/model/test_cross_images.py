"""CA + CrA in the whole model: images outside the sequence against text and images given to the decoder by hand."""

import pytest
import torch
from PIL import Image

from visualchat.attention import GatedCrossAttention, Modality
from visualchat.chat import ChatSession
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.trainable import Trainable, set_trainable, trainable_state


def gates(model):
    return [module for module in model.modules() if isinstance(module, GatedCrossAttention)]


@pytest.fixture(scope="module")
def processor(backbones):
    """One slot an image."""
    return VisualChatProcessor.from_backbones(backbones.vision, backbones.language, image_seq_length=1)


@pytest.fixture
def model(make_model):
    """With open gates, so that images count."""
    made = make_model(attention_kind="cross", cross_attention_every=1)
    for layer in gates(made):
        torch.nn.init.constant_(layer.attention_gate, 0.7)
        torch.nn.init.constant_(layer.feed_forward_gate, 0.4)
    return made


def picture(colour):
    return Image.new("RGB", (20, 20), colour)


def dialogues(answer=None):
    red, blue = picture("red"), picture("blue")
    return [
        Dialogue((Turn.ask("Which?", [red, blue], answer),), "two"),
        Dialogue((Turn.ask("Hello, this one is longer.", [], "Hi."), Turn.ask("This?", [blue], answer)), "later"),
        Dialogue((Turn.ask("Text?", [], answer),), "none"),
    ]


def by_hand(model, features):
    """Logits of the text of one dialogue, its slots cut out and its images given to the decoder directly."""
    slots = features["mm_token_type_ids"][0] == Modality.IMAGE
    images = {}
    if slots.any():
        before = (~slots).cumsum(0)[slots]  # text tokens before each image
        images = {
            "image_states": model.get_image_features(features["pixel_values"]).pooler_output[None],
            "image_positions": before[None],
        }
    return model.language_model(features["input_ids"][:, ~slots], **images).logits[0]


@torch.no_grad()
def test_the_text_sees_what_it_would_see_without_slots(model, processor):
    """Padding at either side; fp32 rounding of masked against unmasked softmaxes."""
    for side in ("left", "right"):
        batch = processor.batch(dialogues("Yes."), padding_side=side)
        del batch["labels"]
        logits = model(**batch).logits
        text = (batch["mm_token_type_ids"] == Modality.TEXT) & batch["attention_mask"].bool()
        for row, dialogue in enumerate(dialogues("Yes.")):
            alone = by_hand(model, processor.batch([dialogue]))
            torch.testing.assert_close(logits[row][text[row]], alone, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_new_model_is_its_base_on_the_text_alone(make_model, processor):
    new, causal = make_model(attention_kind="cross", cross_attention_every=2), make_model(attention_kind="causal")
    batch = processor.batch([dialogues("Yes.")[0]])
    text = batch["mm_token_type_ids"][0] == Modality.TEXT
    expected = causal.language_model(batch["input_ids"][:, text]).logits[0]
    torch.testing.assert_close(new(**{**batch, "labels": None}).logits[0][text], expected, atol=2e-5, rtol=1e-4)
    assert [hasattr(layer, "gated_cross_attention") for layer in new.language_model.model.layers] == [False, True]


def answers(model, features, **settings):
    out = model.generate(**features, max_new_tokens=10, do_sample=False, **settings)
    return out[:, features["input_ids"].shape[1] :]


def test_generation_cached_uncached_alone_and_batched_agree(model, processor):
    batch = processor.prompt(dialogues())
    cached = answers(model, batch)
    assert torch.equal(cached, answers(model, batch, use_cache=False))
    for row, dialogue in enumerate(dialogues()):
        alone = answers(model, processor.prompt([dialogue]))[0]
        assert torch.equal(alone, cached[row][: len(alone)])


def test_answers_depend_on_the_images(model, processor):
    def logits(colour):
        features = processor.prompt([Dialogue((Turn.ask("What?", [picture(colour)]),), "one")])
        with torch.no_grad():
            return model(**features).logits[0, -1]

    assert not torch.allclose(logits("red"), logits("blue"), atol=1e-3)


def test_a_chat_equals_recomputing_every_round(model, processor):
    """Each token that was said is the best one of a single pass over the whole conversation, without a cache."""
    session, shown = ChatSession(model, processor, max_new_tokens=6), []
    for number, images in enumerate(([picture("red")], [], [picture("blue"), picture("green")])):
        asked = len(session._encode(Turn.ask(f"Question {number}?", images))[0].ids)
        list(session.ask(f"Question {number}?", images))
        shown += images
        pixels = processor.image_processor(images=shown, return_tensors="pt")["pixel_values"]
        ids, modality = torch.tensor([session.ids]), torch.tensor([session.modality])
        with torch.no_grad():
            best = model(ids, pixels, mm_token_type_ids=modality, use_cache=False).logits[0].argmax(-1)
        said = ids[0, asked : asked + 6]
        assert torch.equal(best[asked - 1 : asked - 1 + len(said)], said)
    assert session.images == 3


def test_new_layers_train_beside_projector_and_embedding(model):
    set_trainable(model)
    own = {name for name, _ in model.named_parameters() if "gated_cross_attention" in name}
    assert len(own) == sum(len([*layer.parameters()]) for layer in gates(model)) > 0
    others = {name.partition(".")[0] for name in trainable_state(model).keys() - own}
    assert own < trainable_state(model).keys()
    assert others == {"multi_modal_projector", "language_model"}


def test_adapters_leave_the_new_layers_alone(model):
    set_trainable(model, Trainable(language="lora", lora_rank=2))
    adapters = [name for name, _ in model.named_parameters() if ".lora_" in name]
    assert adapters
    assert not [name for name in adapters if "gated_cross_attention" in name]
    assert all(p.requires_grad for layer in gates(model) for p in layer.parameters())


def test_a_training_batch_of_text_touches_all_that_trains_and_changes_nothing(model, processor):
    batch = processor.batch([dialogues("Yes.")[2]])
    quiet = model.eval()(**batch).loss
    set_trainable(model)
    loss = model.train()(**batch).loss
    loss.backward()
    assert loss.item() == pytest.approx(quiet.item(), abs=1e-6)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_gradients_reach_gates_layers_and_projector(model, processor):
    set_trainable(model)
    model.train()(**processor.batch(dialogues("Yes."))).loss.backward()
    assert all(p.grad.abs().sum() > 0 for layer in gates(model) for p in layer.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.multi_modal_projector.parameters())


def test_save_and_load(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    again = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    batch = processor.batch(dialogues("Yes."))
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert torch.equal(answers(again, processor.prompt(dialogues())), answers(model, processor.prompt(dialogues())))


def test_what_does_not_fit_is_refused(model, processor):
    batch = processor.batch(dialogues("Yes.")[:2], rows=[2])
    with pytest.raises(ValueError, match=r"one dialogue a row, found packed rows"):
        model(**batch)
    batch = processor.batch(dialogues("Yes.")[:1])
    with pytest.raises(ValueError, match=r"marks 2 slots, one an image .*, 1 images are given"):
        model(**{**batch, "pixel_values": batch["pixel_values"][:1]})

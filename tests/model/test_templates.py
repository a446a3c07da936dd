"""The choice of template through processor and model: special headings, a chat model's own format, saving, chatting."""

import pytest
import torch
from PIL import Image

from visualchat.chat import ChatSession
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor

CHATML = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}<pad>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
RED = Image.new("RGB", (16, 16), "red")
HEADINGS = ("### Image", "### Question:", "### Answer:")
DIALOGUE = Dialogue((Turn.ask("### Question: which?", [RED], "a"), Turn.ask("### Image", answer="b")), system="S")


@pytest.fixture
def build(backbones):
    """A processor with a template, and a model that fits it."""

    def make(template, chat_template=None):
        processor = VisualChatProcessor.from_backbones(
            backbones.vision, backbones.language, image_seq_length=4, template="paper"
        )
        processor.tokenizer.chat_template = chat_template
        processor = VisualChatProcessor(processor.image_processor, processor.tokenizer, 4, "S", template)
        torch.manual_seed(0)
        model = VisualChatForConditionalGeneration.from_backbones(
            backbones.vision,
            backbones.language,
            vocab_size=len(processor.tokenizer),
            image_seq_length=4,
            vision_feature_select_strategy="default",
        )
        return processor, model

    return make


def test_special_headings_are_one_token_each_and_typed_ones_are_not(build):
    processor, _ = build("special")
    ids = processor.encode(DIALOGUE).input_ids
    new = [processor.tokenizer.convert_tokens_to_ids(heading) for heading in HEADINGS]
    assert [ids.count(token) for token in new] == [1, 2, 2]
    spelled = processor.tokenizer.decode(ids)
    assert "### Question:\n### Question: which?" in spelled
    plain, _ = build("paper")
    lengths = len(plain.tokenizer("### Question:")["input_ids"])
    assert len(plain.encode(DIALOGUE)) > len(ids)
    assert lengths > 1


def test_a_label_behind_an_image_is_text_of_no_image(build):
    """Only the label before an image belongs to it; the one behind sees both, as any text does."""
    processor, _ = build("label_behind")
    segments = processor.render(DIALOGUE)
    behind = segments[[type(segment).__name__ for segment in segments].index("ImageSegment") + 1]
    assert behind.text.startswith("\n### Image 1:\n\n### Question:\n")
    encoding = processor.encode(DIALOGUE)
    last = max(n for n, unit in enumerate(encoding.unit_ids) if unit == 1)
    assert encoding.mm_token_type_ids[last] == 1
    assert set(encoding.unit_ids[last + 1 :]) == {-1}
    assert set(encoding.mm_token_type_ids[last + 1 :]) == {0}


def test_the_vocabulary_grows_by_the_mean_of_the_old_rows(build, make_model):
    processor, model = build("special")
    plain = make_model()
    old = plain.get_input_embeddings().weight.shape[0]
    for part, before in (
        (model.get_input_embeddings(), plain.get_input_embeddings()),
        (model.get_output_embeddings(), plain.get_output_embeddings()),
    ):
        assert part.weight.shape[0] == len(processor.tokenizer) == old + 3
        assert torch.equal(part.weight[:old], before.weight)
        assert torch.equal(part.weight[old:], before.weight.mean(dim=0).expand(3, -1))
    assert model.config.text_config.vocab_size == old + 3


@pytest.mark.parametrize(("template", "chat_template"), [("special", None), ("chat", CHATML)])
def test_a_saved_pair_goes_on_as_it_was(build, tmp_path, template, chat_template):
    processor, model = build(template, chat_template)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = VisualChatProcessor.from_pretrained(tmp_path)
    assert again.template == template
    assert again.encode(DIALOGUE) == processor.encode(DIALOGUE)
    loaded = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    batch = processor.batch([DIALOGUE])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("template", "chat_template"), [("paper", None), ("special", None), ("label_behind", None), ("chat", CHATML)]
)
def test_a_chat_of_two_rounds_is_what_trains(build, template, chat_template):
    """The session's own tokens are those of the whole dialogue with its answers, in every template."""
    processor, model = build(template, chat_template)
    session = ChatSession(model, processor, max_new_tokens=5)
    for question, images in (("which?", [RED]), ("and now?", [])):
        dialogue = Dialogue((*session.turns, Turn.ask(question, images)))
        new = len(processor.encode(dialogue)) - len(processor.encode(Dialogue(session.turns)) if session.turns else [])
        start = len(session.ids)
        list(session.ask(question, images))
        assert session.ids[start : start + new] == processor.encode(dialogue).input_ids[-new:]
        assert session.ids[-len(processor.end_token_ids) :] == processor.end_token_ids


def test_generation_stops_at_the_formats_own_end(build):
    processor, model = build("chat", CHATML.replace("<s>", "<x>").replace("<pad>", "<s>").replace("<x>", "<pad>"))
    assert processor.tokenizer.convert_ids_to_tokens(processor.end_token_ids) == ["<s>"]
    with torch.no_grad():  # all logits equal: the greedy answer is token 0, "<s>"
        model.get_output_embeddings().weight.zero_()
    session = ChatSession(model, processor, max_new_tokens=5)
    prompt = processor.encode(Dialogue((Turn.ask("which?"),)))
    list(session.ask("which?"))
    assert len(session.ids) - len(prompt) == 1


def test_an_unknown_template_is_refused(processor):
    with pytest.raises(
        ValueError, match="unknown template 'vicuna', expected one of paper, special, label_behind, chat"
    ):
        VisualChatProcessor(processor.image_processor, processor.tokenizer, template="vicuna")

"""Images from a store: the same bits as in a new session, wherever they stand, and never another's."""

from copy import copy

import pytest
import torch
from recorded import (
    Recorded,
    a_dialogue,
    assert_answers_are_those_of_one_pass,
    assert_same_bits,
    joined,
    language_folder,
    picture,
)

from visualchat.attention import KINDS
from visualchat.chat.session import ChatSession
from visualchat.engine.image_store import ImageStore
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor
from visualchat.model.image_states import OWN_STATES, why_not_own
from visualchat.model.trainable import Trainable, set_trainable
from visualchat.tiny import backbone

OWN = {name: {"attention_kind": name} for name, kind in KINDS.items() if kind.image_context in OWN_STATES} | {
    "image, then self": {"attention_kind": "mmca_joint", "early_attention_kind": "image"},
    "shared": {"attention_kind": "mmca_joint", "image_positions": "shared"},
    "image, shared": {"attention_kind": "image", "image_positions": "shared"},
}
"""What a model is configured by whose images' states are their own."""


@pytest.mark.parametrize(
    ("kind", "numbers"), [*((kind, "none") for kind in OWN), ("mmca_joint", "learned"), ("unit", "learned")]
)
def test_a_known_image_gives_the_same_bits_in_any_dialogue(make_model, processor, kind, numbers):
    """Other positions, orders, numbers of other images, sessions, and another text before them."""
    model = make_model(**OWN[kind], image_numbers=numbers)
    if numbers == "learned":
        torch.nn.init.normal_(model.image_numbers.weight)
    store = ImageStore()
    dialogues = [
        [("What are these?", [0, 1]), ("Sure?", []), ("And this?", [2])],
        [("Hello, this is a longer question.", []), ("Which?", [2, 1, 0])],
        [("Which?", [1])],
        [("Same twice?", [0, 0, 0, 3]), ("And?", [0])],
    ]
    new = [a_dialogue(model, processor, ImageStore(), rounds)[0] for rounds in dialogues]
    for number in (*range(len(dialogues)), *reversed(range(len(dialogues)))):
        known, _ = a_dialogue(model, processor, store, dialogues[number])
        assert_same_bits(known, new[number])
    in_order = [[seed for _, seeds in dialogue for seed in seeds] for dialogue in dialogues]
    numbered = {(number, seed) for seeds in in_order for number, seed in enumerate(seeds)}
    by_picture = not kind.startswith(("label", "unit")) and numbers == "none"
    assert store.stats.misses == store.stats.entries == (4 if by_picture else len(numbered))


@pytest.mark.parametrize("kind", ["mmca", "unit"])
def test_the_system_text_is_computed_once_for_all_conversations_that_begin_with_images(make_model, processor, kind):
    model, store = make_model(attention_kind=kind), ImageStore()
    new, session = a_dialogue(model, processor, store, [("What?", [0]), ("And?", [1])])
    opening = session.units.index(1) if kind == "unit" else session.modality.index(1)
    passes = []
    hook = model.language_model.base_model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    first, other = a_dialogue(model, processor, store, [("Which one is it?", [0])])
    prompt = slice(opening, other.rounds[0].end - len(other.rounds[0].said))
    known = other.units if kind == "unit" else [1 if image else -1 for image in other.modality]
    assert max(passes) == known[prompt].count(-1)
    hook.remove()
    assert_same_bits(first, a_dialogue(model, processor, ImageStore(), [("Which one is it?", [0])])[0])
    assert_same_bits(new, a_dialogue(model, processor, store, [("What?", [0]), ("And?", [1])])[0])
    assert (store.stats.openings, store.stats.entries) == (1, 2)
    a_dialogue(model, processor, store, [("Text first.", []), ("What?", [0])])
    assert store.stats.openings == 1


def test_a_model_is_tried_once_however_many_sessions_it_has(model, processor):
    passes = []
    model.language_model.base_model.register_forward_hook(lambda *given: passes.append(given))
    for _ in range(3):
        assert ChatSession(model, processor).why_not_stored is None
        assert len(passes) == 2


@pytest.mark.parametrize("kind", ["mmca", "unit"])
def test_a_b_a_interleaved_with_equal_sizes_and_text_never_mixes_images(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    expected = {
        seeds: a_dialogue(model, processor, ImageStore(), [("Which?", list(seeds))])[0]
        for seeds in [(0,), (1,), (0, 1), (1, 0)]
    }
    assert not torch.equal(expected[0, 1][0][0], expected[1, 0][0][0])
    assert not torch.equal(expected[0,][0][0], expected[1,][0][0])
    store = ImageStore()
    for seeds in [(0,), (1,), (0,), (0, 1), (1, 0), (0, 1), (1,), (0,)]:
        assert_same_bits(a_dialogue(model, processor, store, [("Which?", list(seeds))])[0], expected[seeds])
    one, other = (Recorded(model, processor, store=store) for _ in range(2))
    first = one.answer("Which?", [picture(0)]), other.answer("Which?", [picture(1)]), one.answer("And?", [picture(0)])
    plain = a_dialogue(model, processor, ImageStore(), [("Which?", [0]), ("And?", [0])])[0]
    assert_same_bits(first, [plain[0], expected[1,][0], plain[1]])


@pytest.mark.parametrize("budgets", [(0, 0), (1, 5000), (5000, 0), (5000, 5000)])
def test_what_was_evicted_changes_no_bit(make_model, processor, budgets):
    model = make_model(attention_kind="unit")
    rounds = [("What are these?", [0, 1, 2]), ("And?", [1]), ("And?", [0])]
    assert_same_bits(
        a_dialogue(model, processor, ImageStore(*budgets), rounds * 2)[0],
        a_dialogue(model, processor, ImageStore(), rounds * 2)[0],
    )


@pytest.mark.parametrize("kind", OWN)
def test_ten_rounds_with_images_in_1_3_and_7_equal_recomputing(make_model, processor, kind):
    model = make_model(**OWN[kind])
    rounds = [(f"Question {n}?", {1: [0, 1], 3: [2], 7: [0, 3, 1]}.get(n, [])) for n in range(1, 11)]
    logits, session = a_dialogue(model, processor, ImageStore(), rounds)
    assert len(session.turns) == 10
    assert_answers_are_those_of_one_pass(model, session, logits)


@pytest.mark.parametrize("kind", ["mmca", "unit"])
def test_adapters_of_image_tokens_act_wherever_an_image_is_computed(make_model, processor, kind):
    """On its own, to be kept, and in its place; never on the label that is computed with it."""
    rounds = [("What are these?", [0, 1]), ("Sure?", []), ("And this?", [1, 2])]
    model = make_model(attention_kind=kind)
    plain, _ = a_dialogue(model, processor, ImageStore(), rounds)
    set_trainable(model, Trainable(language="lora_images", lora_rank=4))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    store = ImageStore()
    a_dialogue(model, processor, store, [("Hello.", []), ("First", [0, 1, 2])])
    logits, session = a_dialogue(model, processor, store, rounds)
    assert store.stats.hits >= 2
    assert_same_bits(logits, a_dialogue(model, processor, ImageStore(), rounds)[0])
    assert_answers_are_those_of_one_pass(model, session, logits)
    assert not torch.allclose(logits[0][0], plain[0][0], atol=1e-3)


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 2048}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 1e4,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 1024,
}


@pytest.mark.parametrize("kind", ["mmca", "unit"])
@pytest.mark.parametrize(
    ("name", "config"),
    [(n, {}) for n in ("llama", "mistral", "qwen2", "qwen3", "gemma", "granite")]
    + [("llama", {"rope_parameters": YARN}), ("llama", {"rope_parameters": LLAMA3})],
    ids=["llama", "mistral", "qwen2", "qwen3", "gemma", "granite", "yarn", "llama3"],
)
def test_families_reuse_exactly_with_grouped_heads(backbones, tokenizer, processor, tmp_path, name, config, kind):
    model = joined(backbones, language_folder(tmp_path, tokenizer, name, **config), kind)
    rounds = [("What are these?", [0, 1]), ("Sure?", []), ("And this?", [1, 2])]
    store = ImageStore()
    a_dialogue(model, processor, store, [("Hello.", []), ("First", [0, 1, 2])])
    logits, session = a_dialogue(model, processor, store, rounds)
    assert_same_bits(logits, a_dialogue(model, processor, ImageStore(), rounds)[0])
    assert store.stats.hits >= 2
    assert_answers_are_those_of_one_pass(model, session, logits)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("bits", [None, 8, 4])
def test_quantized_models_and_adapters_reuse_exactly(bits):
    """A known image gives a new one's bits; adapters that are switched, changed or merged make another model."""
    tiny = backbone("vision"), backbone("language_mixed")
    torch.manual_seed(0)
    model = VisualChatForConditionalGeneration.from_backbones(
        *tiny, image_seq_length=16, projector_type="linear_norm", language_bits=bits, attention_kind="unit"
    )
    processor = VisualChatProcessor.from_backbones(*tiny, image_seq_length=16)
    set_trainable(model, Trainable(language="lora", lora_rank=4))
    store, rounds = ImageStore(), [("What are these?", [0, 1]), ("Sure?", []), ("And this?", [1])]

    def known_is_new():
        before = store.stats.misses
        for _ in range(2):
            found, _ = a_dialogue(model, processor, store, [("Hello.", []), *rounds])
            assert_same_bits(found, a_dialogue(model, processor, ImageStore(), [("Hello.", []), *rounds])[0])
        assert store.stats.misses == before + 3
        return found[1]

    answers = [known_is_new()]
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    answers.append(known_is_new())
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    for layer in layers:
        layer.enable_adapters(False)
    answers.append(known_is_new())
    assert not torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][0], answers[2][0])


@pytest.mark.parametrize("kind", ["causal", "mmca_reference", "cross"])
def test_kinds_whose_images_have_no_states_of_their_own_say_so_once(make_model, processor, kind, caplog):
    model = make_model(attention_kind=kind, cross_attention_every=1)
    processor = copy(processor)
    processor.image_seq_length = 1 if kind == "cross" else 4
    store = ImageStore()
    for _ in range(2):
        session = ChatSession(model, processor, store=store)
    assert f"attention kind '{kind}'" in session.why_not_stored
    assert [r.message for r in caplog.records].count(
        f"images are not reused but as part of what precedes them: {session.why_not_stored}"
    ) == 1
    "".join(session.ask("What?", [picture(0)]))
    assert store.stats.misses == store.stats.entries == 0


@pytest.mark.parametrize("rope", ["dynamic", "longrope"])
def test_rotations_that_depend_on_the_length_are_refused_by_name(backbones, tokenizer, tmp_path, rope):
    parameters = {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 512}
    if rope == "longrope":
        parameters |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = joined(backbones, language_folder(tmp_path, tokenizer, "llama", rope_parameters=parameters), "mmca")
    assert f"rotary embedding '{rope}' changes its angles" in why_not_own(model)

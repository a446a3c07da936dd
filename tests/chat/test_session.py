"""A session equals recomputing every round from nothing, does each piece of work once, and survives what goes wrong."""

import pytest
import torch
from talking import MOST, ROUNDS, picture, prompt_of, recompute, state, talk

from visualchat.chat import ChatSession
from visualchat.dialogue import Dialogue, Turn
from visualchat.model import VisualChatForConditionalGeneration


def end_at_once(model, eos):
    """Make the end token the model's best wherever it stands."""

    def prefer_end(head, args, logits):
        logits[..., eos] = logits.max() + 1
        return logits

    return model.get_output_embeddings().register_forward_hook(prefer_end)


def end_where(model, eos, token):
    """Make the model end its answer where it would have said `token`."""
    with torch.no_grad():
        weight = model.get_output_embeddings().weight
        weight[[eos, token]] = weight[[token, eos]]


def say(model, ids):
    """Make the model say exactly these tokens next, then go on as it likes."""
    waiting = list(ids)

    def force(head, args, logits):
        if waiting:
            logits = torch.full_like(logits, -1e4)
            logits[..., waiting.pop(0)] = 0.0
        return logits

    return model.get_output_embeddings().register_forward_hook(force)


def assert_equal_to_recomputing(session, pieces, rounds, *, cached):
    """Streamed text and kept tokens are those of the answers recomputed from nothing."""
    processor = session.processor
    answers = recompute(session.model, processor, rounds, cached=cached)
    texts = [processor.tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    assert ["".join(answer) for answer in pieces] == texts
    assert [turn.answer for turn in session.turns] == texts
    ids, modality = prompt_of(processor, (*rounds, ("Next?", ())), answers)
    assert session.ids == ids[: len(session.ids)]
    assert session.modality == modality[: len(session.ids)]
    assert session.ids[-len(answers[-1]) :] == answers[-1]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("ending", ["cut", "own"])
@pytest.mark.parametrize("kind", ["mmca", "causal"])
def test_a_conversation_equals_recomputing_every_round(backbones, processor, kind, ending, cached):
    torch.manual_seed(0)
    model = VisualChatForConditionalGeneration.from_backbones(
        backbones.vision,
        backbones.language,
        attention_kind=kind,
        image_seq_length=4,
        vision_feature_select_strategy="default",
    )
    eos = processor.tokenizer.eos_token_id
    if ending == "own":
        first = recompute(model, processor, ROUNDS[:1], cached=True)[0]
        end_where(model, eos, first[len(first) // 2])
    session = ChatSession(model, processor, max_new_tokens=MOST)
    pieces = talk(session)
    assert_equal_to_recomputing(session, pieces, ROUNDS, cached=cached)
    if ending == "own":
        answers = recompute(model, processor, ROUNDS, cached=True)
        assert 1 < len(answers[0]) < MOST


def test_answers_depend_on_the_images(session):
    """Else the equality above would say little about images."""
    first = talk(session)
    session.reset()
    other = talk(session, (ROUNDS[0], ROUNDS[1], ("And what is this?", (picture(3),))))
    assert other[:2] == first[:2]
    assert other[2] != first[2]


def test_said_words_stand_in_the_conversation_as_if_it_had_been_given_whole(session, model, processor):
    answers = ["Two cats.", "Yes,\nI am sure of it.", "é 猫 🐈 x"]
    dialogue = []
    for (question, images), answer in zip(ROUNDS, answers, strict=True):
        tokens = processor.tokenizer(answer)["input_ids"]
        session.max_new_tokens = len(tokens) + 1
        forced = say(model, [*tokens, processor.tokenizer.eos_token_id])
        assert "".join(session.ask(question, images)) == answer
        forced.remove()
        dialogue.append(Turn.ask(question, images, answer))
    whole = processor.encode(Dialogue(tuple(dialogue)))
    assert session.ids == whole.input_ids
    assert session.modality == whole.mm_token_type_ids
    assert [turn.answer for turn in session.turns] == answers
    assert [turn.question for turn in session.turns] == [question for question, _ in ROUNDS]
    assert session.images == 3


def test_text_is_streamed_word_by_word(session, model, processor):
    say(model, [*processor.tokenizer("one two three")["input_ids"], processor.tokenizer.eos_token_id])
    session.max_new_tokens = 100
    pieces = [piece for piece in session.ask("Count.") if piece]
    assert pieces == ["one ", "two ", "three"]


@pytest.mark.parametrize("ending", ["cut", "own"])
@pytest.mark.parametrize("kind", ["causal", "mmca"])
def test_each_image_and_each_token_is_computed_once(make_model, processor, kind, ending):
    """Images together with the text around them, or each alone where its states are its own, and what opens it all."""
    model = make_model(attention_kind=kind)
    session = ChatSession(model, processor, max_new_tokens=MOST)
    if ending == "own":
        end_where(model, processor.tokenizer.eos_token_id, recompute(model, processor, ROUNDS[:1], cached=True)[0][5])
    answers = recompute(model, processor, ROUNDS, cached=True)
    rows, passes = [], []
    model.vision_tower.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    model.language_model.base_model.register_forward_hook(
        lambda module, args, kwargs, out: passes.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    for k, (_, images) in enumerate(ROUNDS):
        cached = session.cache.get_seq_length()
        done, encoded = len(passes), len(rows)
        list(session.ask(*ROUNDS[k]))
        alone = [processor.image_seq_length] * len(images) if kind == "mmca" else []
        assert rows[encoded:] == ([1] * len(alone) or [len(images)] * bool(images))
        if alone and not k:
            alone.append(session.modality.index(1))
        assert passes[done : done + len(alone)] == alone
        prefill, *steps = passes[done + len(alone) :]
        assert prefill + sum(alone) == len(prompt_of(processor, ROUNDS[: k + 1], answers[:k])[0]) - cached
        assert steps == [1] * (min(len(answers[k]), MOST) - 1)
    assert sum(passes) == session.cache.get_seq_length()
    assert len(session.ids) - sum(passes) in (1, 2)  # the last token said, and the end token after a cut


def bad_file(folder):
    path = folder / "text.png"
    path.write_text("no picture")
    return path


@pytest.mark.parametrize("asked_before", [0, 1])
def test_a_bad_image_leaves_the_session_as_it_was(session, tmp_path, asked_before):
    expected = talk(session)
    session.reset()
    talk(session, ROUNDS[:asked_before])
    before = state(session)
    with pytest.raises(ValueError, match=r"text\.png' cannot be read as an image"):
        session.ask("What is this?", [picture(0), bad_file(tmp_path)])
    with pytest.raises(ValueError, match=r"^image 2 cannot be read as an image"):
        session.ask("What is this?", [picture(0), b"no picture"])
    assert state(session) == before
    assert talk(session, ROUNDS[asked_before:]) == expected[asked_before:]


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_leaves_the_session_as_it_was(session, question):
    talk(session, ROUNDS[:1])
    before = state(session)
    with pytest.raises(ValueError, match="turn 2 has no question"):
        session.ask(question)
    assert state(session) == before


def test_a_conversation_too_long_for_the_model_is_refused(session, model):
    talk(session, ROUNDS[:2])
    before = state(session)
    answers = recompute(model, session.processor, ROUNDS[:2], cached=True)
    needed = len(prompt_of(session.processor, ROUNDS, answers)[0]) + MOST
    model.config.text_config.max_position_embeddings = needed - 1
    with pytest.raises(ValueError, match=rf"{needed - MOST} tokens and {MOST} are kept .* the {needed - 1} that"):
        session.ask(*ROUNDS[2])
    assert state(session) == before
    model.config.text_config.max_position_embeddings = needed
    assert list(session.ask(*ROUNDS[2]))
    assert len(session.turns) == 3


def test_an_answer_may_be_empty(session, model, processor):
    ending = end_at_once(model, processor.tokenizer.eos_token_id)
    pieces = talk(session, ROUNDS[:2])
    assert ["".join(answer) for answer in pieces] == ["", ""]
    assert [turn.answer for turn in session.turns] == ["", ""]
    turns = tuple(Turn.ask(question, images, "") for question, images in ROUNDS[:2])
    assert session.ids == processor.encode(Dialogue(turns)).input_ids
    ending.remove()
    assert "".join(talk(session, ROUNDS[2:])[0])
    assert len(session.turns) == 3


def test_reset_starts_anew(session):
    first = talk(session)
    before = state(session)
    session.reset()
    assert state(session) == ((), [], [], 0)
    assert session.images == 0
    assert talk(session) == first
    assert state(session)[1:] == before[1:]


def test_sampling_follows_the_seed_and_leaves_the_greedy_path(model, processor, session):
    greedy = talk(session)
    sampling = ChatSession(model, processor, max_new_tokens=MOST, temperature=5.0)
    answers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        sampling.reset()
        answers.append(talk(sampling))
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]
    assert answers[0] != greedy


def test_tokens_are_those_that_generate_chooses(model, processor):
    """By the model's generation config, as it is when an answer begins; drawn with the same generator."""
    session = ChatSession(model, processor, max_new_tokens=MOST, temperature=0.9, seed=3)
    found = [talk(session, ROUNDS[:1])]
    for settings in ({"repetition_penalty": 1.3, "top_k": 5}, {"top_p": 0.5}):
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        session.reset()
        found.append(talk(session, ROUNDS[:1]))
        ids, modality = prompt_of(processor, ROUNDS[:1], [])
        torch.manual_seed(3)
        expected = model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            mm_token_type_ids=torch.tensor([modality]),
            pixel_values=processor.image_processor(images=list(ROUNDS[0][1]), return_tensors="pt")["pixel_values"],
            do_sample=True,
            temperature=0.9,
            max_new_tokens=MOST,
        )
        assert session.ids[: expected.shape[1]] == expected[0].tolist()
    assert len({str(pieces) for pieces in found}) == 3


def test_a_new_question_cuts_an_unread_answer_short(session):
    first = session.ask(*ROUNDS[0])
    next(first)
    answer = "".join(session.ask(*ROUNDS[1]))
    assert list(first) == []
    assert [turn.question for turn in session.turns] == [ROUNDS[0][0], ROUNDS[1][0]]
    assert session.turns[1].answer == answer


def test_a_question_whose_answer_nobody_reads_does_not_count(session):
    unread = session.ask(*ROUNDS[0])
    list(session.ask(*ROUNDS[1]))
    assert list(unread) == []
    assert [turn.question for turn in session.turns] == [ROUNDS[1][0]]


def test_reset_forgets_an_answer_that_is_still_streaming(session):
    stream = session.ask(*ROUNDS[0])
    next(stream)
    session.reset()
    assert list(stream) == []
    assert state(session) == ((), [], [], 0)


def test_a_processor_of_another_model_is_refused(make_model, processor):
    """Its images would fill other places than the model's."""
    with pytest.raises(ValueError, match="an image 4 tokens, the model takes 5: load both from one folder"):
        ChatSession(make_model(image_seq_length=5, vision_feature_select_strategy="full"), processor)

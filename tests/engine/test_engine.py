"""Answers of a batch are those of a session alone, token for token; rows join and leave at any step."""

import random

import pytest
import torch
from conversations import DIALOGUES, KINDS, MOST, alone, asked, opened, picture
from transformers import MistralConfig, MistralForCausalLM

from visualchat.chat import ChatSession
from visualchat.dialogue import Dialogue, Turn
from visualchat.engine import Engine, Request
from visualchat.engine.batch import Batch
from visualchat.engine.image_store import ImageStore
from visualchat.model import VisualChatForConditionalGeneration, VisualChatProcessor


@pytest.fixture
def ask(processor):
    """The request for a dialogue's answer."""
    return lambda dialogue, **settings: Request.of(processor, dialogue, **{"max_new_tokens": MOST, **settings})


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_sessions_alone(make_model, processor, backbones, kind):
    """Greedy and seeded, whatever the chunks, and when a request joins."""
    model = opened(make_model(**KINDS[kind]))
    if kind == "cross":  # whose images take one slot each
        processor = VisualChatProcessor.from_backbones(backbones.vision, backbones.language, image_seq_length=1)
    drawn = torch.get_rng_state()
    for settings, chunk in (({}, 64), ({"temperature": 0.9}, 10_000)):
        seeds = [{"seed": row} if settings else {} for row in range(len(DIALOGUES))]
        asked_so = [settings | seed for seed in seeds]
        expected = [alone(model, processor, *each) for each in zip(DIALOGUES, asked_so, strict=True)]
        assert len({tuple(said) for said in expected}) > (1 if kind == "cross" else 4)
        engine, handles = Engine(model, processor, chunk=chunk), []
        for dialogue, how in zip(DIALOGUES, asked_so, strict=True):
            handles.append(engine.submit(Request.of(processor, dialogue, max_new_tokens=MOST, **how)))
            engine.step()
        assert [handle.result().ids for handle in handles] == expected
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("kind", ["mmca", "numbered", "unit", "causal"])
def test_logits_of_a_batch_are_those_of_a_row_alone(make_model, ask, processor, kind, monkeypatch):
    """To float32's rounding: sums over keys run in another order where rows are longer."""
    model = opened(make_model(**KINDS[kind]))

    def logits_of(dialogues):
        seen, decode = [], Batch.decode
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "decode", lambda *args: seen.append(decode(*args)) or seen[-1])
            engine = Engine(model, processor, chunk=10_000)
            handles = [engine.submit(ask(dialogue)) for dialogue in dialogues]
            engine.step()
        assert all(handle.finish is None for handle in handles)
        return seen[0]

    together = logits_of(DIALOGUES)
    each = torch.cat([logits_of([dialogue]) for dialogue in DIALOGUES])
    torch.testing.assert_close(together, each, atol=1e-4, rtol=1e-4)


def test_rows_join_and_leave_at_random_steps(model, processor, ask):
    expected = [alone(model, processor, dialogue) for dialogue in DIALOGUES]
    rng = random.Random(0)
    engine = Engine(model, processor, max_running=4, chunk=100)
    running, whole, cut = [], 0, 0
    for _ in range(150):
        if len(running) < 7 and rng.random() < 0.6:
            number, most = rng.randrange(len(DIALOGUES)), rng.randint(1, MOST)
            running.append((engine.submit(ask(DIALOGUES[number], max_new_tokens=most)), expected[number][:most]))
        engine.step()
        for handle, said in list(running):
            if handle.finish is not None:
                assert handle.result().ids == said
                running.remove((handle, said))
                whole += 1
            elif rng.random() < 0.06:
                handle.cancel()
                ids = handle.result().ids
                assert (handle.finish, ids) == ("cancelled", said[: len(ids)])
                running.remove((handle, said))
                cut += 1
    assert whole > 30
    assert cut > 3


@pytest.mark.parametrize("kind", ["mmca", "numbered", "unit", "causal"])
def test_a_b_a_with_equal_sizes_and_text_never_mixes_images(make_model, processor, ask, kind):
    """One after the other, all at once, and with the images in another order."""
    model = opened(make_model(**KINDS[kind]))
    seeds = [[0], [1], [0], [1, 0], [0, 1], [1, 0]]
    expected = [alone(model, processor, asked("Which?", images)) for images in seeds]
    assert len({tuple(said) for said in expected}) >= 3
    engine = Engine(model, processor, ImageStore())
    for together in (False, True):
        handles = []
        for images in seeds:
            handles.append(engine.submit(ask(asked("Which?", images))))
            if not together:
                handles[-1].result()
        assert [handle.result().ids for handle in handles] == expected


ROUNDS = (("What are these?", [0, 1]), ("Are you sure?", []), ("And what is this?", [2]), ("So?", []))


@pytest.mark.parametrize("kind", ["mmca", "numbered", "unit", "causal", "cross"])
def test_later_rounds_continue_what_was_computed(make_model, processor, backbones, kind):
    """Several conversations in turn; each round computes only what is new, and says what a session says."""
    model = opened(make_model(**KINDS[kind]))
    if kind == "cross":
        processor = VisualChatProcessor.from_backbones(backbones.vision, backbones.language, image_seq_length=1)
    sessions = [ChatSession(model, processor, max_new_tokens=MOST) for _ in range(3)]
    engine = Engine(model, processor)
    for question, seeds in ROUNDS:
        handles, before = [], []
        for number, session in enumerate(sessions):
            turn = Turn.ask(f"{question}{number}", [picture(seed + 3 * number) for seed in seeds])
            before.append(len(session.ids))
            tokens, _ = session._encode(turn)
            images = [image for earlier in (*session.turns, turn) for image in earlier.images]
            handles.append(engine.submit(Request(tokens, images, max_new_tokens=MOST)))
            list(session.ask(f"{question}{number}", turn.images))
        for session, handle, held in zip(sessions, handles, before, strict=True):
            answer = handle.result()
            assert answer.ids == session.rounds[-1].said[:MOST]
            new_images = len(seeds) * (1 if kind == "cross" else 4)
            assert answer.usage.image_tokens == sum(session.modality)
            if held:  # all but the last token of the answer, which was never fed, and the end that a cut one got
                assert held - 2 <= answer.usage.cached_tokens <= held + new_images
    assert engine.stats.kept == len(sessions)


def test_a_changed_round_continues_what_stands_before_it(model, processor, ask):
    """As an edited question, and one more image; nothing of the longer conversation is left in it."""
    engine = Engine(model, processor)
    first = asked("What are these?", [0, 1])
    engine.submit(ask(first)).result()
    for changed in (asked("What are they?", [0, 1]), asked("What are these?", [0, 2]), asked("What are these?", [0])):
        answer = engine.submit(ask(changed)).result()
        assert answer.ids == alone(model, processor, changed)
        assert answer.usage.cached_tokens > 0
    again = engine.submit(ask(first)).result()
    assert again.ids == alone(model, processor, first)
    assert again.usage.cached_tokens == again.usage.prompt_tokens - 1


def test_known_images_count_as_cached_tokens(model, processor, ask):
    engine = Engine(model, processor, kept_bytes=0)
    counts = [
        engine.submit(ask(asked(text, seeds))).result().usage.cached_tokens
        for text, seeds in (("One?", [0]), ("Another?", [1, 0]), ("Both?", [0, 1]))
    ]
    assert counts == [0, 4, 8]
    assert engine.stats.kept == engine.stats.kept_bytes == 0


def test_kept_conversations_stay_within_their_budget(model, processor, ask):
    one = Engine(model, processor)
    one.submit(ask(DIALOGUES[4])).result()
    size = one.stats.kept_bytes
    engine = Engine(model, processor, kept_bytes=2 * size)
    for dialogue in DIALOGUES * 2:
        engine.submit(ask(dialogue)).result()
        assert 0 < engine.stats.kept_bytes <= 2 * size
    assert engine.stats.kept < len(DIALOGUES)
    assert engine.stats.batch_bytes == 0


def test_a_changed_model_continues_nothing(make_model, processor, ask):
    model = make_model()
    engine = Engine(model, processor)
    before = engine.submit(ask(DIALOGUES[0])).result()
    with torch.no_grad():
        model.language_model.get_decoder().layers[0].mlp.down_proj.weight.mul_(-1)
    after = engine.submit(ask(DIALOGUES[0])).result()
    assert (after.ids, after.usage.cached_tokens) == (alone(model, processor, DIALOGUES[0]), 0)
    assert after.ids != before.ids


def test_a_system_text_is_shared_by_conversations(model, processor, ask):
    system = "All of this stands before each conversation, whatever it is about."
    engine = Engine(model, processor)
    usages = [
        engine.submit(ask(Dialogue(asked(question, [0]).turns, system=system))).result().usage
        for question in ("What?", "Why?")
    ]
    assert usages[0].cached_tokens == 0
    assert usages[1].cached_tokens > len(system) // 2


def test_settings_of_the_model_count_as_in_a_session(make_model, processor, ask):
    """A penalty reads the tokens so far, of this answer alone; a nucleus is remembered from request to request."""
    model = make_model()
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.top_k = 5
    for settings in ({}, {"temperature": 0.9, "seed": 1}):
        engine = Engine(model, processor)
        handles = [engine.submit(ask(dialogue, **settings)) for dialogue in DIALOGUES[:3] * 2]
        expected = [alone(model, processor, dialogue, settings) for dialogue in DIALOGUES[:3]] * 2
        assert [handle.result().ids for handle in handles] == expected
    model.generation_config.repetition_penalty = None
    model.generation_config.top_p = 0.5
    greedy = [alone(model, processor, dialogue) for dialogue in DIALOGUES[:3]]
    engine = Engine(model, processor)
    for top_p, same in ((1e-6, True), (None, False)):
        handles = [engine.submit(ask(d, temperature=2.0, top_p=top_p, seed=4)) for d in DIALOGUES[:3]]
        assert ([handle.result().ids for handle in handles] == greedy) == same


def test_sliding_windows_decode_alone(backbones, tokenizer, processor, ask, tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes["num_key_value_heads"] = 2
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    config = MistralConfig(**sizes, **ids, vocab_size=len(tokenizer), sliding_window=16, initializer_range=0.3)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = VisualChatForConditionalGeneration.from_backbones(
        backbones.vision,
        tmp_path,
        attention_kind="causal",
        image_seq_length=4,
        vision_feature_select_strategy="default",
    )
    engine = Engine(model, processor)
    handles = [engine.submit(ask(dialogue)) for dialogue in DIALOGUES[:3] * 2]
    expected = [alone(model, processor, dialogue) for dialogue in DIALOGUES[:3]] * 2
    assert [handle.result().ids for handle in handles] == expected
    assert (engine.stats.kept, engine.stats.batch_bytes) == (0, 0)

"""Rounds taken back, edited, forked, saved and loaded: always what a new session says to the same conversation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from visualchat.chat.session import ChatSession
from visualchat.engine.image_store import ImageStore
from visualchat.engine.spoken import before, until

MOST = 6
KINDS = ("mmca", "unit", "causal")


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), dtype=np.uint8))


def asked(session, *rounds):
    return ["".join(session.ask(question, [picture(seed) for seed in seeds])) for question, seeds in rounds]


def new(model, processor, *rounds, **settings):
    session = ChatSession(model, processor, **{"max_new_tokens": MOST, **settings})
    asked(session, *rounds)
    return session


def content(session):
    return [(turn.question, [image.tobytes() for image in turn.images], turn.answer) for turn in session.turns]


def assert_same(session, expected):
    assert session.ids == expected.ids
    assert session.modality == expected.modality
    assert session.units == expected.units
    assert content(session) == content(expected)


FIRST, SECOND, THIRD = ("What are these?", [0, 1]), ("And this?", [2]), ("Sure?", [])


def entries(session):
    return [(layer.keys, layer.values) for layer in session.cache.layers]


@pytest.mark.parametrize("kind", KINDS)
def test_undo_computes_nothing_and_leaves_the_very_cache(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    session, plain = (new(model, processor, FIRST, SECOND, THIRD) for _ in range(2))
    passes = []
    hook = model.language_model.base_model.register_forward_hook(lambda *given: passes.append(given))
    for rounds in (("More?", [3]), ("More?", [])):
        hook.remove()
        asked(session, rounds)
        hook = model.language_model.base_model.register_forward_hook(lambda *given: passes.append(given))
        session.undo()
        assert_same(session, plain)
        for found, expected in zip(entries(session), entries(plain), strict=True):
            assert torch.equal(found[0], expected[0])
            assert torch.equal(found[1], expected[1])
    assert not passes
    hook.remove()
    session.undo()
    session.undo()
    assert_same(session, new(model, processor, FIRST))
    asked(session, SECOND)
    assert_same(session, new(model, processor, FIRST, SECOND))
    session.undo()
    session.undo()
    with pytest.raises(ValueError, match="there is no round to take back"):
        session.undo()


@pytest.mark.parametrize("kind", KINDS)
def test_edit_asks_again_with_the_same_images(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    session = new(model, processor, FIRST, SECOND, THIRD)
    before_it = content(session)
    for number in (0, 4):
        with pytest.raises(ValueError, match=f"there is no round {number} to edit: the conversation has 3"):
            session.edit(number, "Which?")
    with pytest.raises(ValueError, match="no question"):
        session.edit(3, " ")
    assert content(session) == before_it
    "".join(session.edit(2, "What else?"))
    assert_same(session, new(model, processor, FIRST, ("What else?", [2])))
    "".join(session.edit(1, "Which?"))
    assert_same(session, new(model, processor, ("Which?", [0, 1])))


@pytest.mark.parametrize("kind", KINDS)
def test_forks_go_their_own_ways(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    session = new(model, processor, FIRST)
    fork = session.fork()
    asked(session, SECOND)
    asked(fork, THIRD, ("And?", [3]))
    other = session.fork()
    other.undo()
    asked(other, THIRD)
    asked(session, THIRD)
    assert_same(session, new(model, processor, FIRST, SECOND, THIRD))
    assert_same(fork, new(model, processor, FIRST, THIRD, ("And?", [3])))
    assert_same(other, new(model, processor, FIRST, THIRD))


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_conversation_continues_as_if_it_had_not_been_left(make_model, processor, tmp_path, kind):
    model = make_model(attention_kind=kind)
    session = new(model, processor, FIRST, SECOND, temperature=3.0, seed=5, stop=["zzz"])
    session.save(tmp_path / "kept")
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        session.save(tmp_path / "kept")
    loaded = new(model, processor, THIRD)
    loaded.load(tmp_path / "kept")
    assert_same(loaded, session)
    assert (loaded.temperature, loaded.seed, loaded.stop, loaded.max_new_tokens) == (3.0, 5, ("zzz",), MOST)
    assert asked(loaded, THIRD, ("And?", [3])) == asked(session, THIRD, ("And?", [3]))
    assert_same(loaded, session)
    loaded.undo()
    session.undo()
    assert_same(loaded, session)


def test_what_cannot_be_loaded_is_named_and_changes_nothing(model, processor, tmp_path):
    session = new(model, processor, FIRST)
    expected = content(session)
    session.save(tmp_path / "kept")

    def refused(match, name="", text=None):
        path = tmp_path / "kept" / name
        kept = path.read_bytes() if name else b""
        if name:
            path.write_text(text)
        with pytest.raises(ValueError, match=match):
            session.load(tmp_path / "kept" if name else tmp_path)
        assert content(session) == expected
        if name:
            path.write_bytes(kept)

    refused("is not a saved conversation: it has no dialogue.jsonl")
    refused(r"dialogue\.jsonl cannot be read", "dialogue.jsonl", "{")
    refused(r"session\.json: expected one JSON object with settings", "session.json", "[]")
    record = json.loads((tmp_path / "kept" / "session.json").read_text())
    wrong = {**record, "settings": {**record["settings"], "temperature": "hot"}}
    refused("setting temperature must be float or int, found 'hot'", "session.json", json.dumps(wrong))
    refused("expected answer_ids of 1 rounds, a list", "session.json", json.dumps({**record, "answer_ids": []}))
    for damage, told in (
        ({"settings": []}, "settings must be a dict, found"),
        ({"answer_ids": [["a"]]}, "expected answer_ids of 1 rounds, a list of whole numbers each"),
        ({"answer_ids": 3}, "answer_ids must be a list, found 3"),
        ({"generator": "00"}, "generator is not the state of one"),
        ({"generator": 7}, "generator is not the state of one"),
        *(
            ({"settings": {**record["settings"], name: value}}, told)
            for name, value, told in (
                ("max_new_tokens", True, "setting max_new_tokens must be int, found True"),
                ("max_new_tokens", -4, "max_new_tokens must be 1 or more, found -4"),
                ("temperature", float("nan"), "temperature must be 0 or more, found nan"),
                ("stop", [3], r"setting stop must be a list of texts, found \[3\]"),
                ("stop", [""], "stop must be texts that are not empty"),
                ("seed", 1 << 80, "seed must be a number of 64 bits"),
            )
        ),
    ):
        refused(r"session\.json: " + told, "session.json", json.dumps({**record, **damage}))
    text = (tmp_path / "kept" / "dialogue.jsonl").read_text()
    refused(r"dialogue\.jsonl: messages must be a list, found 3", "dialogue.jsonl", '{"messages": 3}')
    system = {"messages": [{"role": "system", "content": "Lie."}, *json.loads(text)["messages"]]}
    refused("a session has no system message of its own", "dialogue.jsonl", json.dumps(system))
    unknown = {**record, "answer_ids": [[10**6, *record["answer_ids"][0]]]}
    (tmp_path / "kept" / "session.json").write_text(json.dumps(unknown))
    session.load(tmp_path / "kept")  # its answer is taken as it reads
    assert content(session) == expected
    assert asked(session, SECOND)
    session.undo()
    (tmp_path / "kept" / "session.json").write_text(json.dumps(record))
    refused(
        r"image '\.\./image-1\.png' must be a file of this folder",
        "dialogue.jsonl",
        text.replace("image-1.png", "../image-1.png"),
    )
    refused(r"image-9\.png' cannot be read as an image", "dialogue.jsonl", text.replace("image-1.png", "image-9.png"))


def test_what_cannot_be_saved_leaves_nothing(model, processor, tmp_path, monkeypatch):
    session = new(model, processor, FIRST)
    for folder in (tmp_path / "new", tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", lambda *given, **settings: (_ for _ in ()).throw(OSError(28, "full")))
            with pytest.raises(OSError, match=rf"full: '{folder}'$"):
                session.save(folder)
        assert not [*tmp_path.iterdir()]
    session.save(tmp_path / "new")


def test_an_edited_answer_is_taken_as_it_stands(model, processor, tmp_path):
    session = new(model, processor, FIRST, THIRD)
    session.save(tmp_path / "kept")
    path = Path(tmp_path / "kept" / "dialogue.jsonl")
    record = json.loads(path.read_text())
    record["messages"][1]["content"] = "Two cats."
    path.write_text(json.dumps(record))
    session.load(tmp_path / "kept")
    tokens = processor.tokenizer("Two cats.")["input_ids"]
    assert session.turns[0].answer == "Two cats."
    assert session.rounds[0].said == [*tokens, *processor.end_token_ids]
    assert asked(session, SECOND)


def test_stop_texts_are_found_across_pieces():
    def pieces(*given, stops=("###", "\n\n")):
        return list(until(stops, given))

    assert pieces("a#", "#b", "c") == ["a", "##b", "c"]
    assert pieces("a#", "##b", "c") == ["a", ""]
    assert pieces("ab\n", "\nc") == ["ab", ""]
    assert pieces("ab#") == ["ab", "#"]
    assert pieces("a", "", "b", stops=()) == ["a", "", "b"]
    assert before(["b", "ab"], "xab") == "x"
    assert before(["c"], "xab") is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_ends_before_a_stop_text_and_the_next_round_never_saw_it(make_model, processor, kind):
    model = make_model(attention_kind=kind)
    whole = asked(ChatSession(model, processor, max_new_tokens=12), FIRST)[0]
    stop = whole[len(whole) // 2 :][:2]
    kept = whole[: whole.index(stop)]
    session = ChatSession(model, processor, max_new_tokens=12, stop=[stop])
    assert asked(session, FIRST) == [kept]
    assert session.turns[0].answer == kept
    assert session.rounds[0].said == [*processor.tokenizer(kept)["input_ids"], *processor.end_token_ids]
    session.stop = ()
    (answer,) = asked(session, SECOND)
    again = ChatSession(model, processor, max_new_tokens=12)
    again._restart(session.turns[:1], [session.rounds[0].said])
    assert asked(again, SECOND) == [answer]
    with pytest.raises(ValueError, match="stop must be texts that are not empty"):
        ChatSession(model, processor, stop=[""])
    assert asked(ChatSession(model, processor, max_new_tokens=12, stop=stop), FIRST) == [kept]  # one text, not letters


def test_images_are_taken_as_the_processor_takes_them(model, processor, tmp_path):
    shown = picture(0)
    shown.save(tmp_path / "cat.png")
    file = tmp_path / "cat.png"
    answers = []
    for images in ([shown], [file], [str(file)], str(file), file, [np.asarray(shown)]):
        session = ChatSession(model, processor, max_new_tokens=4)
        answers.append("".join(session.ask("What?", images)))
        assert session.turns[0].images[0].tobytes() == shown.convert("RGB").tobytes()
    assert len({*answers}) == 1
    with pytest.raises(ValueError, match=r"image file 'no\.png' cannot be read as an image: it does not exist"):
        ChatSession(model, processor).ask("What?", ["no.png"])


def test_a_seed_makes_sampling_the_sessions_own(model, processor):
    rounds = (FIRST, THIRD)
    one = content(new(model, processor, *rounds, temperature=5.0, seed=1))
    torch.manual_seed(7)
    session = new(model, processor, *rounds, temperature=5.0, seed=1)
    state = torch.get_rng_state()
    assert content(session) == one
    torch.manual_seed(7)
    assert torch.equal(torch.get_rng_state(), state)
    assert content(new(model, processor, *rounds, temperature=5.0, seed=2)) != one
    session.reset()
    asked(session, *rounds)
    assert content(session) == one


@pytest.mark.parametrize("kind", KINDS)
def test_the_oldest_rounds_are_dropped_if_asked_and_it_is_told(make_model, processor, kind, caplog):
    model = make_model(attention_kind=kind)
    session = new(model, processor, FIRST, SECOND, drop_oldest=True)
    limit = len(session.ids) + MOST + 10  # too little for the next round
    kept, said = session.turns[1:], [session.rounds[1].said]
    model.config.text_config.max_position_embeddings = limit
    (answer,) = asked(session, ("And what is that?", [0]))
    assert "the conversation is full: the oldest 1 of its rounds are dropped" in caplog.text
    again = ChatSession(model, processor, max_new_tokens=MOST)
    again._restart(kept, said)
    assert asked(again, ("And what is that?", [0])) == [answer]
    assert_same(session, again)
    assert session.images == 2
    with pytest.raises(ValueError, match=r"more than the \d+ that the model can hold"):
        session.ask("x" * limit)
    assert_same(session, again)


@pytest.mark.parametrize("kind", ["mmca", "unit"])
def test_random_sessions_say_what_a_new_one_says_to_the_same_rounds(make_model, processor, tmp_path, kind):
    """Any mixture of asking, taking back, editing, forking, saving and loading over one small store."""
    model = make_model(attention_kind=kind)
    store = ImageStore(device_bytes=1100, host_bytes=1100)
    rng = np.random.default_rng(11)
    session, rounds = ChatSession(model, processor, max_new_tokens=MOST, store=store), []
    for step in range(24):
        action = rng.choice(["ask", "ask", "ask", "undo", "edit", "fork", "save"]) if rounds else "ask"
        if action == "ask":
            rounds.append((f"Question {step}?", rng.integers(0, 4, rng.integers(0, 3)).tolist()))
            asked(session, rounds[-1])
        elif action == "undo":
            session.undo()
            rounds.pop()
        elif action == "edit":
            number = int(rng.integers(0, len(rounds)))
            rounds = [*rounds[:number], (f"Edited {step}?", rounds[number][1])]
            "".join(session.edit(number + 1, rounds[-1][0]))
        elif action == "fork":
            left, session = session, session.fork()
            asked(left, ("Never kept?", [0]))
        else:
            session.save(tmp_path / str(step))
            session = ChatSession(model, processor, store=store)
            session.load(tmp_path / str(step))
        if action != "ask" or step % 4 == 3:
            assert_same(session, new(model, processor, *rounds))
    assert_same(session, new(model, processor, *rounds))
    assert store.stats.evicted

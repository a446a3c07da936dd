"""What a server relies on: order, limits, cancelling, failures that stay where they are, stop texts, threads."""

import gc
import random
import threading
import time

import pytest
import torch
from conversations import DIALOGUES, MOST, alone, asked

from visualchat.chat import ChatSession
from visualchat.dialogue import Dialogue
from visualchat.dialogue.encoding import encode_text
from visualchat.engine import Engine, QueueFull, Request
from visualchat.engine.answering import Tokens
from visualchat.engine.image_store import ImageStore
from visualchat.engine.sampling import NotNumbers
from visualchat.engine.spoken import has_stop, pieces, text_of


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def expected(model, processor):
    """What a session alone says to each dialogue."""
    return [alone(model, processor, dialogue) for dialogue in DIALOGUES]


@pytest.fixture
def engine(model, processor):
    """Makes one that steps when it is told to, or when someone waits."""
    return lambda **settings: Engine(model, processor, **settings)


@pytest.fixture(scope="module")
def ask(processor):
    return lambda number, **settings: Request.of(processor, DIALOGUES[number], **{"max_new_tokens": MOST, **settings})


def test_requests_begin_in_the_order_in_which_they_came(engine, ask):
    serving = engine(max_running=2)
    handles = [serving.submit(ask(n % 6, max_new_tokens=1 + n % 3)) for n in range(12)]
    begun = []
    while serving.step():
        assert serving.stats.running <= 2
        begun += [n for n, handle in enumerate(handles) if handle.said and n not in begun]
    assert begun == list(range(12))
    assert [handle.finish for handle in handles] == ["length"] * 12


def test_a_long_prompt_stalls_neither_answers_nor_short_prompts(engine, processor, ask):
    serving = engine(chunk=64)
    talking = serving.submit(ask(0, max_new_tokens=30))
    while not talking.said:
        serving.step()
    long = serving.submit(Request.of(processor, asked("Why? " * 150, [0, 1, 2]), max_new_tokens=1))
    short = serving.submit(ask(5, max_new_tokens=1))
    steps = 0
    while not long.said:
        told = len(talking.said)
        serving.step()
        steps += 1
        if short.finish is None:
            early = steps
        assert len(talking.said) == min(told + 1, 30)
    assert steps > 2 * early


def test_a_full_queue_refuses_and_a_cancelled_request_gives_its_place_away_at_once(engine, ask):
    serving = engine(max_running=1, max_waiting=2)
    running, waiting, third = (serving.submit(ask(n)) for n in range(3))
    with pytest.raises(QueueFull, match=r"3 requests are running and waiting.*max_running=1, max_waiting=2"):
        serving.submit(ask(3))
    waiting.cancel()
    late = serving.submit(ask(3))
    serving.step()
    running.cancel()
    assert (running.finish, running.result().finish) == ("cancelled", "cancelled")
    serving.step()
    assert third.said
    del late  # nothing can read it any more
    gc.collect()
    serving.step()
    assert serving.stats.waiting == 0
    assert third.result().finish == "length"


def test_what_cannot_be_answered_is_refused_with_what_to_change(engine, ask, processor):
    serving = engine()
    good = ask(0)
    for wrong, message in (
        ({"images": ()}, "4 image tokens, 0 images of 4 each"),
        ({"tokens": Tokens([], [], [])}, "needs tokens"),
        ({"max_new_tokens": 10**6}, "1000000 are kept for the answer"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, found 0"),
        ({"temperature": -1.0}, "temperature must be 0 or more, found -1"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"stop": "END"}, "stop must be texts"),
        ({"stop": [""]}, "stop must be texts that are not empty"),
        ({"seed": 1, "generator": torch.Generator()}, "a seed or a generator"),
    ):
        with pytest.raises(ValueError, match=message):
            serving.submit(Request(**{"tokens": good.tokens, "images": good.images, **wrong}))
    with pytest.raises(ValueError, match="the last turn has an answer"):
        Request.of(processor, Dialogue((DIALOGUES[0].turns[0].__class__(("What?",), "That."),)))
    with pytest.raises(ValueError, match="chunk must be 1 or more, found 0"):
        engine(chunk=0)
    assert not serving.step()


class Broken(ImageStore):
    """Has no memory for the second image that it is asked for."""

    def get(self, key, device, compute):
        if self.stats.misses == 1:
            self.get = super().get
            raise torch.OutOfMemoryError("no memory left")
        return super().get(key, device, compute)


def test_a_failed_prompt_fails_alone(engine, ask, expected):
    serving = engine(store=Broken())
    handles = [serving.submit(ask(number)) for number in (0, 1, 3)]
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        list(handles[1])
    assert handles[1].finish == "error"
    assert [handles[n].result().ids for n in (0, 2)] == [expected[0], expected[3]]
    assert serving.submit(ask(1)).result().ids == expected[1]


def test_an_image_that_cannot_be_read_never_gets_in(engine, ask):
    request = ask(0)
    request.images[0].close()
    serving = engine()
    with pytest.raises(ValueError, match="closed image"):
        serving.submit(request)
    assert not serving.step()


def test_a_batch_without_memory_gives_up_the_request_that_came_last(model, engine, ask, expected, monkeypatch):
    serving = engine(chunk=10_000)
    handles = [serving.submit(ask(number)) for number in range(4)]
    forward = type(model).forward

    def tight(self, *args, past_key_values=None, **kwargs):
        if len(getattr(past_key_values, "lengths", ())) > 2:
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, *args, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(type(model), "forward", tight)
    assert [handle.result().ids for handle in handles[:2]] == expected[:2]
    for handle in handles[2:]:
        with pytest.raises(torch.OutOfMemoryError):
            handle.result()


def test_numbers_that_are_none_stay_in_their_row(engine, ask, expected):
    """Nor do they reach a shorter request that takes the row afterwards, whose buffers they stand in."""
    serving = engine(chunk=10_000)
    handles = [serving.submit(ask(number)) for number in (4, 0, 2)]
    serving.step()
    for layer in serving._batch.layers:
        layer.values[2, :, serving._batch.end - 1] = torch.nan
    with pytest.raises(NotNumbers, match="not numbers"):
        handles[2].result()
    late = serving.submit(ask(3))
    assert [handle.result().ids for handle in (*handles[:2], late)] == [expected[n] for n in (4, 0, 3)]


def test_a_fault_of_the_engine_reaches_everyone_and_the_next_request_is_served(engine, ask, expected, monkeypatch):
    with engine() as serving:
        admit = serving._admit
        monkeypatch.setattr(serving, "_admit", lambda: 1 / 0)
        handle = serving.submit(ask(0))
        with pytest.raises(ZeroDivisionError):
            handle.result()
        monkeypatch.setattr(serving, "_admit", admit)
        assert serving.submit(ask(0)).result().ids == expected[0]


def test_an_interrupted_step_leaves_no_one_waiting(engine, ask, expected, monkeypatch):
    serving = engine()
    handles = [serving.submit(ask(number)) for number in (0, 1)]
    with monkeypatch.context() as patch:
        patch.setattr(serving._answerer, "prefill", interrupt)
        with pytest.raises(KeyboardInterrupt):
            handles[0].result()
    for handle in handles:
        with pytest.raises(RuntimeError, match="ended by KeyboardInterrupt"):
            handle.result()
    assert serving.submit(ask(0)).result().ids == expected[0]


def interrupt(*args):
    raise KeyboardInterrupt


def test_stop_texts_end_an_answer_where_they_end_a_session_s(model, processor, engine, ask, expected):
    text = processor.tokenizer.decode(expected[4])
    serving = engine()
    for stop in ([text[3:5]], ["absent", text[2]], [text[-1:]], ["absent"]):
        session = ChatSession(model, processor, max_new_tokens=MOST, stop=stop)
        said = "".join(session.ask(DIALOGUES[4].turns[0].question, DIALOGUES[4].turns[0].images))
        handle = serving.submit(ask(4, stop=stop))
        answer = handle.result()
        assert "".join(handle.text()) == answer.text == said
        found = any(end in text for end in stop)
        assert answer.finish == ("stop" if found else "length")
        assert answer.ids == expected[4][: len(answer.ids)]
        if found:  # no token more than it takes
            assert text_of(processor.tokenizer, answer.ids[:-1], stop) == processor.tokenizer.decode(answer.ids[:-1])


def test_stop_tokens_end_an_answer(engine, ask, expected):
    answer = engine().submit(ask(2, stop_ids=[expected[2][3]])).result()
    assert (answer.ids, answer.finish) == (expected[2][: expected[2].index(expected[2][3]) + 1], "stop")


def test_text_comes_in_pieces_and_a_stop_text_is_seen_at_its_last_token(processor):
    tokenizer, rng = processor.tokenizer, random.Random(0)
    for _ in range(200):
        text = "".join(rng.choices("ab \nü漢🙂#", k=rng.randint(1, 30)))
        ids = encode_text(tokenizer, text)
        assert "".join(pieces(tokenizer, ids)) == text
        stop = ["".join(rng.choices("abü漢", k=rng.randint(1, 4))), "漢🙂"]
        seen = next((n for n in range(1, len(ids) + 1) if has_stop(tokenizer, ids[:n], stop)), None)
        real = next((n for n in range(1, len(ids) + 1) if any(s in tokenizer.decode(ids[:n]) for s in stop)), None)
        assert seen == real


def test_threads_submit_read_and_give_up_at_once(engine, ask, expected):
    wrong, told = [], []

    def client(seed):
        rng = random.Random(seed)
        for _ in range(8):
            number = rng.randrange(len(DIALOGUES))
            handle = serving.submit(ask(number))
            if rng.random() < 0.3:
                next(iter(handle), None)
                handle.cancel()
            ids = list(handle) if rng.random() < 0.5 else handle.result().ids
            (told if ids == expected[number][: len(ids)] else wrong).append(ids)

    with engine(max_running=3, chunk=200) as serving:
        clients = [threading.Thread(target=client, args=(seed,)) for seed in range(4)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert serving.stats.running == serving.stats.waiting == 0
    assert not wrong
    assert len(told) == 32


def test_closing_ends_what_waits_and_forgets_all(engine, ask):
    serving = engine(max_running=1)
    with serving:
        handles = [serving.submit(ask(number, max_new_tokens=500)) for number in (3, 0)]
        next(iter(handles[0]))
    assert [handle.result().finish for handle in handles] == ["cancelled", "cancelled"]
    assert not serving.runs
    assert (serving.stats.kept_bytes, serving.stats.batch_bytes) == (0, 0)
    for again in (serving.start, lambda: serving.submit(ask(0))):
        with pytest.raises(RuntimeError, match="closed"):
            again()


def test_times_and_usage_are_told(engine, ask):
    begun = time.perf_counter()
    answer = engine().submit(ask(2)).result()
    assert 0 < answer.first_token < answer.seconds <= time.perf_counter() - begun
    usage = answer.usage
    assert (usage.prompt_tokens, usage.cached_tokens) == (len(ask(2).tokens.ids), 0)
    assert (usage.image_tokens, usage.answer_tokens) == (8, len(answer.ids))


def tensors():
    gc.collect()
    return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())


@pytest.mark.slow
def test_a_thousand_requests_leave_nothing_behind(model, processor):
    """Clients that give up at any time; every token that was read is the right one, and all memory is given back."""
    dialogues = [asked(text, seeds) for text in "?!." for seeds in ([0], [1], [1, 0], [])]
    expected = [alone(model, processor, dialogue) for dialogue in dialogues]
    requests = [Request.of(processor, dialogue, max_new_tokens=MOST) for dialogue in dialogues]
    rng, store = random.Random(0), ImageStore()
    serving = Engine(model, processor, store, max_running=8, max_waiting=8, kept_bytes=1 << 20)
    sent, whole, open_ = 0, 0, []
    before = tensors()
    while sent < 1000 or open_:
        if sent < 1000 and len(open_) < 16:
            number = rng.randrange(len(requests))
            open_.append((serving.submit(requests[number]), expected[number]))
            sent += 1
        if rng.random() < 0.4:
            serving.step()
        for handle, said in list(open_):
            assert handle.said == said[: len(handle.said)]
            if handle.finish in ("stop", "length"):
                assert handle.said == said
                whole += 1
                open_.remove((handle, said))
            elif rng.random() < 0.02:  # told, or only dropped
                if rng.random() < 0.5:
                    handle.cancel()
                open_.remove((handle, said))
        del handle
    while serving.step():
        pass
    assert 200 < whole < 900
    stats = serving.stats
    assert (stats.running, stats.waiting, stats.batch_bytes) == (0, 0, 0)
    assert 0 < stats.kept_bytes <= 1 << 20
    serving.close()
    store.clear()
    assert tensors() <= before + 10

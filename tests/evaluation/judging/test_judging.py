"""A judge's address, prompts and verdicts: tried again with limits, read strictly, compared in both orders."""

import pytest
from stand_in import judge

from visualchat.evaluation.judging.endpoint import Endpoint, Reply
from visualchat.evaluation.judging.protocols import Case, read_choice, read_scores
from visualchat.evaluation.judging.verdicts import comparison, mean_scores, verdict


def test_a_busy_server_is_asked_again_as_late_as_it_says():
    troubles = iter([(429, {"Retry-After": "3"}), (503, {}), (500, {"Retry-After": "100000"})])
    waited: list[float] = []
    with judge(lambda prompt: next(troubles, f"so: {prompt}")) as (address, asked):
        endpoint = Endpoint(address, "m", "secret", max_tokens=7, attempts=4, wait=waited.append)
        assert endpoint.ask("why?", ["data:image/png;base64,AA=="]) == Reply("so: why?", "stop", 4)
        assert waited == [3, 2, 60]
        assert {request["path"] for request in asked} == {"/v1/chat/completions"}
        assert asked[0]["headers"]["Authorization"] == "Bearer secret"
        assert (asked[0]["model"], asked[0]["max_tokens"], asked[0]["temperature"]) == ("m", 7, 0)
        assert asked[0]["messages"][0]["content"][1]["image_url"] == {"url": "data:image/png;base64,AA=="}
        waited.clear()
        endpoint = Endpoint(address, "m", attempts=3, wait=waited.append)
        troubles = iter([(503, {})] * 9)
        with pytest.raises(RuntimeError, match=r"gave no answer in 3 attempts, at last: HTTP 503\n.*to continue"):
            endpoint.ask("why?")
        assert waited == [1, 2]
    with pytest.raises(RuntimeError, match=r"in 2 attempts, at last: .*refused"):  # nobody listens there any more
        Endpoint(address, "m", attempts=2, wait=waited.append).ask("why?")


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ((401, {}), r'refused with HTTP 401: {"error": "no"}; its key is read from OPENAI_API_KEY$'),
        ((404, {}), r"refused with HTTP 404"),
        ((302, {"Location": "http://127.0.0.1:9/"}), r"refused with HTTP 302"),
    ],
)
def test_a_refusal_is_not_repeated_and_the_key_goes_nowhere_else(trouble, told):
    with judge(lambda prompt: trouble) as (address, asked):
        endpoint = Endpoint(address, "m", "secret")
        with pytest.raises(ValueError, match=told) as refusal:
            endpoint.ask("why?")
        assert len(asked) == 1
    assert "secret" not in f"{refusal.value} {endpoint}"
    with pytest.raises(ValueError, match="expected http:// or https://"):
        Endpoint("localhost:8000", "m")


NAMES = ("A1 C1", "A1")


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ('Good. {"A1 C1": 7, "A1": 10}', {"A1 C1": 7, "A1": 10}),
        (
            'The form {"A1 C1": 0, "A1": 0} becomes ```json\n{"A1": 1,\n "A1 C1": 2}\n``` as asked.',
            {"A1 C1": 2, "A1": 1},
        ),
        ('{"A1 C1": 7, "A1": 11}', None),
        ('{"A1 C1": 7, "A1": "8"}', None),
        ('{"A1 C1": 7, "A1": true}', None),
        ('{"A1 C1": 7}', None),
        ('{"A1 C1": 7, "A1": 8, "A2": 8}', None),
        ("{'A1 C1': 7, 'A1': 8}", None),
        ("seven and eight", None),
        ("", None),
    ],
)
def test_scores_are_read_strictly(text, scores):
    assert read_scores(text, NAMES) == scores


@pytest.mark.parametrize(
    ("text", "choice"),
    [("Because. [[1]]", "1"), ("[[tie]]", "tie"), ("[[2]], I say [[2]]", "2"), ("[[1]] or [[2]]", None), ("1", None)],
)
def test_choices_are_read_strictly(text, choice):
    assert read_choice(text) == choice


def said(dialogue, order, words, names=()):
    return verdict(Case("p", dialogue, 1, order, "?", (), names), Reply(words, "stop", 1))


def test_one_answer_is_better_if_it_is_so_in_both_orders():
    pairs = {
        "d1": ("1", "2"),
        "d2": ("2", "1"),
        "d3": ("1", "1"),
        "d4": ("tie", "tie"),
        "d5": ("1", "tie"),
        "d6": ("1", ""),
    }
    verdicts = [
        said(dialogue, order, f"[[{word}]]")
        for dialogue, words in pairs.items()
        for order, word in zip(("12", "21"), words, strict=True)
    ]
    found = {figure.name: figure for figure in comparison(verdicts)}
    shares = {name: figure.value for name, figure in found.items()}
    assert shares == {
        "score": 0.5, "first": 0.2, "second": 0.2, "tie": 0.2, "undecided": 0.4, "shown_first": pytest.approx(6 / 8),
    }  # fmt: skip
    assert (found["score"].questions, found["score"].unreadable) == (5, 1)
    assert found["score"].low < 0.5 < found["score"].high
    assert comparison([said("d", "12", "?"), said("d", "21", "?")]) == []


def test_a_verdict_that_cannot_be_read_counts_for_nobody():
    verdicts = [said("d1", "", '{"A1 C1": 4, "A1": 6}', NAMES), said("d2", "", '{"A1 C1": 8, "A1": 7}', NAMES)]
    found = {figure.name: figure for figure in mean_scores([*verdicts, said("d3", "", "no", NAMES)])}
    assert {name: (f.value, f.questions, f.unreadable) for name, f in found.items()} == {
        "A1 C1": (6, 2, 1), "A1": (6.5, 2, 1), "all": (6.5, 2, 1),
    }  # fmt: skip
    assert mean_scores([said("d3", "", "no", NAMES)]) == []

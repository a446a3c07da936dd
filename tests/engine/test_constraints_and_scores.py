"""What a request may ask beside an answer: log-probabilities, a constraint, images that are computed beforehand."""

import pytest
import torch
from conversations import DIALOGUES, KINDS, asked, opened, picture

from visualchat.engine import Engine, NotStored, Request
from visualchat.engine.image_store import ImageStore

MOST = 8


@pytest.fixture(scope="module")
def loud(make_model):
    return opened(make_model(projector_type="linear_norm").eval())


@pytest.fixture
def ask(processor):
    return lambda dialogue, **settings: Request.of(processor, dialogue, **{"max_new_tokens": MOST, **settings})


class Only:
    """Lets one of these tokens come at each place, whatever came before."""

    def __init__(self, *tokens):
        self.tokens, self.came = tokens, []

    def allowed(self):
        return torch.isin(torch.arange(self.size), torch.tensor(self.tokens))

    def take(self, token):
        assert token in self.tokens
        self.came.append(token)


def test_log_probabilities_are_those_of_one_pass_over_the_whole(loud, processor, ask):
    """In a batch with others, by the model alone: temperature and constraint do not count."""
    Only.size = len(processor.tokenizer)
    settings = {"temperature": 1.5, "seed": 3, "logprobs": 3, "constraint": lambda: Only(20, 30, 40, 50)}
    engine = Engine(loud, processor)
    handles = [engine.submit(ask(dialogue, logprobs=2)) for dialogue in DIALOGUES[:3]]
    handles.append(engine.submit(ask(DIALOGUES[4], **settings)))
    plain = engine.submit(ask(DIALOGUES[0]))
    for dialogue, handle in zip([*DIALOGUES[:3], DIALOGUES[4]], handles, strict=True):
        answer = handle.result()
        encoded = ask(dialogue).tokens
        known = answer.ids[:-1]
        with torch.no_grad():
            logits = loud(
                input_ids=torch.tensor([encoded.ids + known]),
                mm_token_type_ids=torch.tensor([encoded.modality + [0] * len(known)]),
                unit_ids=torch.tensor([encoded.units + [-1] * len(known)]),
                pixel_values=processor.image_processor(images=list(dialogue.images), return_tensors="pt")[
                    "pixel_values"
                ],
            ).logits[0, len(encoded.ids) - 1 :]
        expected = logits.log_softmax(-1)
        assert [score.token for score in handle.scores] == answer.ids
        for score, row in zip(handle.scores, expected, strict=True):
            assert score.logprob == pytest.approx(float(row[score.token]), abs=1e-4)
            best = row.topk(len(score.top))
            assert [token for token, _ in score.top] == best.indices.tolist()
            assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [len(score.top) for handle in handles for score in handle.scores[:1]] == [2, 2, 2, 3]
    assert plain.result().ids == handles[0].result().ids
    assert plain.scores == []


def test_a_constraint_holds_for_its_own_answer_alone(loud, processor, ask):
    """Each answer of one request has a constraint of its own; those beside it in the batch say what they say alone."""
    Only.size = len(processor.tokenizer)
    expected = [Engine(loud, processor).submit(ask(dialogue)).result().ids for dialogue in DIALOGUES[:4]]
    made = []

    def constraint():
        made.append(Only(60, 61))
        return made[-1]

    engine = Engine(loud, processor)
    handles = [engine.submit(ask(dialogue)) for dialogue in DIALOGUES[:4]]
    held = ask(DIALOGUES[1], constraint=constraint)
    bound = [engine.submit(held) for _ in range(2)]
    assert [handle.result().ids for handle in handles] == expected
    for handle, own in zip(bound, made, strict=True):
        assert handle.result().ids == own.came
        assert set(own.came) <= {60, 61}


@pytest.mark.parametrize("kind", ["mmca", "unit", "numbered", "shared"])
def test_an_image_is_known_before_anyone_asks_about_it(make_model, processor, ask, kind):
    """As the number that it will have, which counts for some kinds; the answer is that of one who knew nothing."""
    model = opened(make_model(projector_type="linear_norm", **KINDS[kind]).eval())
    dialogue = asked("Which?", [0, 1])
    engine = Engine(model, processor)
    for number, image in enumerate(dialogue.images, start=1):
        for known in (False, True):
            told = engine.submit(Request.to_know(processor, image, number)).result()
            assert (told.usage.cached_tokens, told.usage.image_tokens, told.ids) == (4 * known, 4, [])
    before = engine.store.stats
    answer = engine.submit(ask(dialogue)).result()
    assert engine.store.stats.misses == before.misses == 2
    assert answer.usage.cached_tokens == 8
    assert answer.ids == Engine(model, processor).submit(ask(dialogue)).result().ids
    assert engine.stats.kept == 1  # the conversation; an image alone is none
    other = engine.submit(Request.to_know(processor, dialogue.images[0], 1, scope="another")).result()
    assert other.usage.cached_tokens == 0


def test_an_image_that_cannot_be_kept_is_not_said_to_be_known(make_model, loud, processor):
    causal = opened(make_model(projector_type="linear_norm", attention_kind="causal").eval())
    with pytest.raises(NotStored, match="not kept apart"):
        Engine(causal, processor).submit(Request.to_know(processor, picture(0)))
    with pytest.raises(NotStored, match="no room"):
        Engine(loud, processor, ImageStore(10, 10)).submit(Request.to_know(processor, picture(0))).result()

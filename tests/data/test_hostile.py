"""Each hostile input has the documented outcome, on the whole way from a file on disk to a batch."""

import re

import hostile
import pytest
from hostile_cases import LIMIT

from visualchat.data.batching.collate import BatchMaker, Collator
from visualchat.data.batching.images import with_decoded_images
from visualchat.data.batching.sampler import BatchSpec
from visualchat.data.inspection.survey import look

CASES = {f"{name}: {case.what}": case for name, cases in hostile.GROUPS.items() for case in cases}


def test_there_are_many_and_each_is_named_once():
    assert len(CASES) == sum(map(len, hostile.GROUPS.values())) >= 40


def found(case, source, processor) -> tuple[str, str]:
    """The stage at which the input ends, and what is said there."""
    try:
        size = len(source)
    except ValueError as error:
        return "unreadable file", str(error)
    if source.errors:
        return "bad row", str(source.errors[0])
    assert size
    finding = look(source, processor, LIMIT, True, 0)
    return ("bad row", finding.reason) if finding.reason else ("trains", "")


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("name", CASES)
def test_the_outcome_is_the_documented_one(processor, tmp_path, name):
    case = CASES[name]
    folder = tmp_path / "data"
    folder.mkdir()
    source = case.make(folder)
    stage, said = found(case, source, processor)
    assert stage == case.stage, said
    assert re.search(case.match, said), said
    assert "object at 0x" not in said
    if stage == "bad row" and not source.errors:
        maker = BatchMaker(source, Collator(processor, LIMIT), "skip")
        assert maker[BatchSpec(((0,),))].trimmed[0].reason == said
    if stage == "trains":
        batch = BatchMaker(source, Collator(processor, LIMIT))[BatchSpec(((0,),))]
        assert (batch["labels"] >= 0).any()
        if case.verify is not None:
            dialogue = with_decoded_images(source[0])
            case.verify(dialogue, processor, list(dialogue.images))


def test_the_page_is_up_to_date():
    made = "python tests/data/hostile.py (with src on PYTHONPATH) writes it anew"
    assert hostile.PAGE.read_text(encoding="utf-8") == hostile.page(), made

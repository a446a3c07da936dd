"""Damaged images are rows like others: counted once, and what they cost beside themselves is counted too."""

import json

import pytest
from PIL import Image

from visualchat.data.check import Check, reasons
from visualchat.data.collate import BatchMaker, Collator
from visualchat.data.compose import Join
from visualchat.data.limits import LoadReport
from visualchat.data.mix import Blend, Mixture
from visualchat.data.schedule import BatchSpec
from visualchat.data.sources import Messages


@pytest.fixture
def corpus(tmp_path):
    """24 rows, of which the fourth shows a torn picture."""
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:60])
    rows = []
    for n in range(24):
        image = {"type": "image", "path": "torn.png" if n == 3 else "red.png"}
        question = {"role": "user", "content": [image, {"type": "text", "text": "What?"}]}
        rows.append({"id": n, "messages": [question, {"role": "assistant", "content": "Red."}]})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Messages(tmp_path, ["own.jsonl"])


def test_sound_rows_that_are_lost_with_a_damaged_one_are_counted(corpus, processor):
    blend = Blend({"own": corpus}, {"pairs": Join("own", 2, 2)}, validation=0)
    found = Check({"train": blend.train}, blend.sources)
    found.run(processor, 1000, 0)
    (error,) = found.errors()
    assert (error.row, str(error.reason)) == ("own.jsonl, line 4 (id 3)", "damaged image")
    assert "own.jsonl:3, image 1 of 1: image file" in error.detail
    (report,) = found.reports().values()
    assert (report.rows, report.members, report.rejected) == (24, 23, {"damaged image": 1})
    assert reasons(report) == ["rejected: 1 damaged image"]
    (bad,) = [finding for finding in found.findings["train"] if finding.reason]
    assert (bad.reason, bad.sound_rows) == ("1 of its 2 rows have a damaged image", 1)
    # and in training
    batch = BatchMaker(blend.train, Collator(processor, 1000), "skip")[BatchSpec(((bad.row,),))]
    (losses,) = batch.losses.values()
    assert losses.rows == 2
    assert "own.jsonl, line 4 (id 3)" in losses.reason
    summary = LoadReport(batch.losses).summary()
    assert "with 2 rows of their sources" in summary
    with pytest.raises(ValueError, match=r"image file .*torn\.png.* \(.*own\.jsonl, line 4 \(id 3\)"):
        BatchMaker(blend.train, Collator(processor, 1000))[BatchSpec(((bad.row,),))]


def test_two_sources_of_one_name_are_told_apart(corpus, processor):
    """As where a validation file of the same form stands beside the training file."""
    other = Messages(corpus.root, ["own.jsonl"])
    parts = {"train": Mixture({"own": corpus}), "validation": Mixture({"own": other})}
    found = Check(parts, {"own": corpus, "validation": other})
    found.run(processor, 1000, 0)
    assert list(found.damaged) == [("own", 3), ("validation", 3)]
    assert json.loads(json.dumps(found.as_json()))["rows"]["validation"]["used"] == 23

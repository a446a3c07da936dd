"""Damaged images are rows like others: counted once, and what they cost beside themselves is counted too."""

import json
import weakref
from dataclasses import replace

import pytest
from PIL import Image

from visualchat.data.batching import images as batch_images
from visualchat.data.batching.collate import BatchMaker, Collator
from visualchat.data.batching.sampler import BatchSpec
from visualchat.data.batching.truncation import TrimReport
from visualchat.data.blend.compose import Join
from visualchat.data.blend.mixture import Blend, Mixture
from visualchat.data.inspection.check import Check, reasons
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
    (losses,) = batch.trimmed.values()
    assert losses.rows == 2
    assert "own.jsonl, line 4 (id 3)" in losses.reason
    summary = TrimReport(batch.trimmed).summary()
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


def test_pictures_of_a_batch_are_scaled_one_by_one(tmp_path, processor, monkeypatch):
    """However many and however large they are, one at most is held at full size."""
    held: list[weakref.ref[Image.Image]] = []
    most = 0
    decode = batch_images.decode_image

    def watched(source, name):
        nonlocal most
        picture = decode(source, name)
        held.append(weakref.ref(picture))
        most = max(most, sum(reference() is not None for reference in held))
        return picture

    monkeypatch.setattr(batch_images, "decode_image", watched)
    images = []
    for n in range(6):
        Image.new("RGB", (300, 200), (n, 0, 0)).save(tmp_path / f"{n}.png")
        images.append({"type": "image", "path": f"{n}.png"})
    question = {"role": "user", "content": [*images, {"type": "text", "text": "What?"}]}
    (tmp_path / "own.jsonl").write_text(json.dumps({"messages": [question, {"role": "assistant", "content": "Red."}]}))
    source = Messages(tmp_path, ["own.jsonl"])
    batch = BatchMaker(source, Collator(processor))[BatchSpec(((0,),))]
    assert len(batch["pixel_values"]) == len(held) == 6
    assert most <= 2  # one is replaced by the next
    monkeypatch.setattr(batch_images, "MAX_ROW_PIXELS", 299_999)
    with pytest.raises(ValueError, match=r"image 5 of 6: the images up to it have 300000 pixels, at most 299999"):
        BatchMaker(source, Collator(processor))[BatchSpec(((0,),))]


def test_a_dialogue_is_encoded_once_and_a_picture_decoded_once(corpus, processor, monkeypatch):
    """Also where it is cut: the first rounds of an encoding are the encoding of the first rounds."""
    encoded, decoded = [], []
    encode, decode = type(processor).encode, batch_images.decode_image
    monkeypatch.setattr(type(processor), "encode", lambda self, d: (encoded.append(d.id), encode(self, d))[1])
    monkeypatch.setattr(batch_images, "decode_image", lambda s, name: (decoded.append(s), decode(s, name))[1])
    BatchMaker(corpus, Collator(processor))[BatchSpec(((0,), (1,), (2,)))]
    assert len(encoded) == 3
    assert len(decoded) == 1
    joined = Mixture({"all": Blend({"own": corpus}, {"a": Join("own", 4, 4)}, validation=0).train})[0]
    whole = encode(processor, joined)
    for rounds in range(1, 5):
        assert whole.cut(rounds) == encode(processor, replace(joined, turns=joined.turns[:rounds]))

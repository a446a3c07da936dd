"""Over-long dialogues are cut at a turn's border, bad rows follow the policy, and all that is lost is counted."""

import logging
import pickle
import re
from types import SimpleNamespace

import lightning
import pytest
import torch
from PIL import Image

from visualchat.data.batching.collate import Batch, BatchMaker, Collator
from visualchat.data.batching.sampler import BatchSpec
from visualchat.data.batching.truncation import Trimmed, TrimReport, trim, turns_that_fit
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.training.module import VisualChatModule

RED, BLUE = Image.new("RGB", (16, 16), "red"), Image.new("RGB", (16, 16), "blue")


def three_turns() -> Dialogue:
    turns = (Turn.ask("One?", [RED], "1"), Turn.ask("Two?", [BLUE, RED], "22"), Turn.ask("Three?", [], "333"))
    return Dialogue(turns, id="three", system="")


def length(processor, turns: int) -> int:
    return len(processor.encode(Dialogue(three_turns().turns[:turns], system="")))


def test_a_dialogue_within_the_limit_is_untouched(processor):
    dialogue = three_turns()
    for limit in (None, length(processor, 3)):
        encoding = processor.encode(dialogue)
        assert trim(dialogue, encoding, limit) == (dialogue, encoding, None)


@pytest.mark.parametrize(("turns", "lost"), [(2, Trimmed(1, 0)), (1, Trimmed(2, 2))])
def test_cut_at_the_border_of_a_turn_with_its_images(processor, turns, lost):
    dialogue = three_turns()
    for limit in (length(processor, turns), length(processor, turns + 1) - 1):
        shorter, encoding, trimmed = trim(dialogue, processor.encode(dialogue), limit)
        assert shorter.turns == dialogue.turns[:turns]
        assert trimmed == lost
        assert encoding == processor.encode(shorter)
        assert len(encoding) == length(processor, turns) <= limit


def test_a_first_turn_that_is_too_long_is_named(processor):
    limit = length(processor, 1) - 1
    message = rf"^three: the first turn alone has {limit + 1} tokens \(1 images\), the limit is {limit}$"
    with pytest.raises(ValueError, match=message):
        turns_that_fit(three_turns(), processor.encode(three_turns()), limit)


def rows(tmp_path) -> list[Dialogue]:
    """Good, bad in three ways, and too long."""
    return [
        Dialogue((Turn.ask("Good?", [RED], "yes"),), id="good", system=""),
        Dialogue((Turn.ask("Open?", [RED]),), id="open", system=""),
        Dialogue((Turn.ask("Gone?", [tmp_path / "gone.png"], "yes"),), id="gone", system=""),
        Dialogue((Turn.ask("Broken?", [b"no picture"], "yes"),), id="broken", system=""),
        Dialogue((Turn.ask("Long? " * 20, [], "yes"),), id="long", system=""),
        three_turns(),
    ]


LIMIT = 60
REASONS = {
    1: "open: turn 1 has no answer (found None); a training dialogue needs one",
    2: "gone.png' cannot be read as an image: it does not exist or is not a file",
    3: "broken, image 1 of 1: it cannot be read as an image: cannot identify image file",
    4: "long: the first turn alone has",
}


@pytest.mark.parametrize("bad", REASONS)
def test_policy_error_ends_at_the_row(processor, tmp_path, bad):
    maker = BatchMaker(rows(tmp_path), Collator(processor, LIMIT))
    with pytest.raises(ValueError, match=re.escape(REASONS[bad])):
        maker[BatchSpec(((0,), (bad,)))]


@pytest.mark.parametrize("bad", REASONS)
@pytest.mark.parametrize("spec", ["own row", "packed"])
def test_policy_skip_makes_the_batch_of_what_is_left(processor, tmp_path, bad, spec):
    packed = spec == "packed"
    maker = BatchMaker(rows(tmp_path), Collator(processor, LIMIT), "skip", packed)
    batch = maker[BatchSpec(((0, bad),) if packed else ((0,), (bad,)))]
    expected = maker[BatchSpec(((0,),))]
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    (row, trimmed), *more = batch.trimmed.items()
    assert not more
    assert row == bad
    assert REASONS[bad] in trimmed.reason


def test_a_batch_of_bad_rows_alone_is_idle(processor, tmp_path):
    batch = BatchMaker(rows(tmp_path), Collator(processor, LIMIT), "skip")[BatchSpec(((1,), (3,)))]
    assert (batch["labels"] == -100).all()
    assert set(batch.trimmed) == {1, 3}


def test_a_source_whose_row_raises_is_a_bad_row(processor):
    class Rows(list):
        def __getitem__(self, index):
            raise ValueError(f"corpus.json, row {index}: unknown role 'cat', expected user")

    batch = BatchMaker(Rows([0]), Collator(processor), "skip")[BatchSpec(((0,),))]
    assert batch.trimmed == {0: Trimmed(reason="corpus.json, row 0: unknown role 'cat', expected user")}


def test_a_file_is_decoded_once_a_batch(processor, tmp_path, monkeypatch):
    RED.save(tmp_path / "red.png")
    dialogues = [Dialogue((Turn.ask("?", [tmp_path / "red.png"] * 2, "a"),), id=f"d{n}") for n in range(3)]
    seen = []
    decode = __import__("visualchat.images.decode", fromlist=["x"]).decode_image
    monkeypatch.setattr("visualchat.data.batching.images.decode_image", lambda *a: seen.append(a) or decode(*a))
    batch = BatchMaker(dialogues, Collator(processor))[BatchSpec(((0,), (1,), (2,)))]
    assert len(seen) == 1
    assert batch["pixel_values"].shape[0] == 1
    assert batch["image_index"].tolist() == [0] * 6


def test_a_batch_keeps_what_was_trimmed_between_processes():
    batch = Batch({"input_ids": torch.ones(1)}, {3: Trimmed(1, 2)})
    found = pickle.loads(pickle.dumps(batch))
    assert found.trimmed == batch.trimmed
    assert found["input_ids"].tolist() == [1.0]


def test_a_report_adds_up():
    report = TrimReport()
    assert report.summary() == ""
    report.add({1: Trimmed(2, 1), 7: Trimmed(reason="no answer")})
    report.add({1: Trimmed(2, 1), 3: Trimmed(1, 0)})
    report.add({9: Trimmed(reason="too dark"), 8: Trimmed(reason="gone"), 6: Trimmed(reason="torn")})
    expected = "2 dialogues cut at a turn's border (3 turns, 1 images), 4 bad rows left out: torn; no answer; gone; ..."
    assert report.summary() == expected
    again = TrimReport()
    again.load_state_dict(report.state_dict())
    assert again == report


def test_an_unknown_policy_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="unknown policy bad_rows='ignore', expected one of error, skip"):
        VisualChatDataModule(processor, rows(tmp_path), rows(tmp_path), batch_size=1, bad_rows="ignore")


def fit(make_model, processor, train, folder, **settings) -> VisualChatDataModule:
    module = VisualChatDataModule(
        processor, train, [three_turns()], **{"batch_size": 2, "max_length": LIMIT, **settings}
    )
    lightning.Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    ).fit(VisualChatModule(make_model), module)
    return module


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_reports_at_its_end(make_model, processor, tmp_path, caplog, packing, workers):
    with caplog.at_level(logging.WARNING, logger="visualchat.data"):
        module = fit(
            make_model,
            processor,
            rows(tmp_path),
            tmp_path,
            bad_rows="skip",
            packing=packing,
            num_workers=workers,
        )
    assert set(module.reports["train"].bad) == set(REASONS)
    assert module.reports["train"].cut == {5: Trimmed(2, 2)}
    assert module.reports["validation"].rows == {0: Trimmed(2, 2)}
    said = [record.getMessage() for record in caplog.records if record.name == "visualchat.data.datamodule"]
    assert said[0].startswith(
        "train: 1 dialogues cut at a turn's border (2 turns, 2 images), 4 bad rows left out: open"
    )
    assert said[1] == "validation: 1 dialogues cut at a turn's border (2 turns, 2 images)"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_ends_at_a_bad_row_by_default(make_model, processor, tmp_path, workers):
    with pytest.raises(ValueError, match="open: turn 1 has no answer"):
        fit(make_model, processor, rows(tmp_path)[:2], tmp_path, num_workers=workers)


def test_a_report_continues_after_a_resume(processor, tmp_path):
    module = VisualChatDataModule(processor, rows(tmp_path), rows(tmp_path), batch_size=1)
    loop = SimpleNamespace(
        epoch_progress=SimpleNamespace(current=SimpleNamespace(processed=0, ready=1)),
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=2))),
    )
    module.trainer = SimpleNamespace(world_size=1, global_rank=0, fit_loop=loop, num_training_batches=6)
    module.reports["train"].add({4: Trimmed(reason="long")})
    again = VisualChatDataModule(processor, rows(tmp_path), rows(tmp_path), batch_size=1)
    again.load_state_dict(pickle.loads(pickle.dumps(module.state_dict())))
    assert again.reports == module.reports
    assert again.state_dict.__self__._start == (0, 2)

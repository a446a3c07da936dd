"""The datamodule: every dialogue once an epoch, in an order of seed and epoch, whatever makes the batches."""

import json
import re
from collections import Counter
from types import SimpleNamespace

import lightning
import pytest
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.utilities.data import _update_dataloader
from PIL import Image

from visualchat.data.batching import images
from visualchat.data.batching.collate import Collator
from visualchat.data.blend.compose import Join
from visualchat.data.blend.mixture import Blend
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.data.sources import Messages
from visualchat.dialogue import Dialogue, Turn


def dialogues(count: int = 10) -> list[Dialogue]:
    return [Dialogue((Turn.ask(f"Number {n}?", [], f"{n}"),), id=f"d{n}") for n in range(count)]


def epochs(processor, count: int = 2, **settings) -> list[list[str]]:
    """The answers of each epoch's training batches as Lightning sees them."""
    data = VisualChatDataModule(processor, dialogues(), dialogues(2), **{"batch_size": 4, **settings})
    seen: list[list[str]] = [[] for _ in range(count)]

    class Record(lightning.LightningModule):
        def training_step(self, batch, batch_idx):
            for row in batch["labels"]:
                seen[self.current_epoch].append(processor.tokenizer.decode(row[row >= 0], skip_special_tokens=True))

        def configure_optimizers(self):
            return None

    lightning.Trainer(
        accelerator="cpu",
        max_epochs=count,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    ).fit(Record(), data)
    return seen


def test_every_dialogue_once_an_epoch_reshuffled(processor):
    first, second = epochs(processor)
    assert sorted(first) == sorted(second) == [str(n) for n in range(10)]
    assert first != second
    assert first != sorted(first)


def test_the_order_depends_on_the_seed_alone(processor):
    expected = epochs(processor, seed=3)
    assert epochs(processor, seed=3) == expected
    assert epochs(processor, seed=3, num_workers=2) == expected
    assert epochs(processor, seed=3, batch_size=1) == expected
    assert epochs(processor, seed=4) != expected


@pytest.mark.parametrize(("size", "batch_size", "batches"), [(10, 4, 3), (8, 4, 2), (3, 4, 1)])
def test_train_batches(processor, size, batch_size, batches):
    data = VisualChatDataModule(processor, dialogues(size), dialogues(1), batch_size=batch_size)
    assert data.train_batches() == batches == len(data.train_dataloader())


def test_ranks_take_disjoint_shares(processor):
    shares = []
    for rank in range(2):
        data = VisualChatDataModule(processor, dialogues(), dialogues(1), batch_size=1)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)
        assert data.train_batches() == 5
        shares.append([index for spec in data.train_dataloader().sampler for row in spec.rows for index in row])
    assert sorted(shares[0] + shares[1]) == list(range(10))


def test_a_trainer_that_shares_batches_out_once_more_is_refused(processor):
    """Lightning's wrapper of a sampler would leave each rank a share of its own share."""
    data = VisualChatDataModule(processor, dialogues(), dialogues(1), batch_size=1)
    loader = data.train_dataloader()
    again = DistributedSamplerWrapper(loader.sampler, num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="say Trainer\\(use_distributed_sampler=False\\)"):
        _update_dataloader(loader, again)


@pytest.mark.parametrize("packing", [False, True])
def test_each_step_is_taken_once(processor, tmp_path, monkeypatch, packing):
    """A dialogue is encoded once an epoch (and once before, to be packed), a file decoded and scaled once a batch."""
    told = []
    for n in range(4):
        Image.new("RGB", (16, 16), (60 * n, 0, 0)).save(path := tmp_path / f"{n}.png")
        told.append(Dialogue((Turn.ask("What?", [path, path], f"{n}"), Turn.ask("Sure?", [path], "yes")), id=f"d{n}"))
    counts = Counter()

    def counted(owner, name):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: counts.update([name]) or original(*args))

    counted(processor, "encode")
    counted(processor, "scale")
    counted(images, "decode_image")
    counted(Dialogue, "require_answers")
    data = VisualChatDataModule(processor, told, told, batch_size=4, max_length=500, packing=packing)
    for epoch in range(1, 3):
        (batch,) = data.train_dataloader()
        assert len(batch["pixel_values"]) == 4
        read = 4 * (epoch + packing)
        assert counts == {"encode": read, "require_answers": read, "decode_image": 4 * epoch, "scale": 4 * epoch}


def test_an_unanswered_turn_is_named(processor, collated):
    with pytest.raises(ValueError, match=r"d7: turn 1 has no answer \(found None\); a training dialogue needs one"):
        collated(processor, [Dialogue((Turn.ask("Well?"),), id="d7")])
    with pytest.raises(ValueError, match=r"d8: turn 1 has no answer \(found ' '\)"):
        collated(processor, [Dialogue((Turn.ask("Well?", [], " "),), id="d8")])


def test_a_dialogue_over_the_limit_is_named(processor, collated):
    long = Dialogue((Turn.ask("word " * 100, [], "yes"),), id="d9")
    length = len(processor.encode(long))
    assert collated(processor, [long], max_length=length)["input_ids"].shape == (1, length)
    with pytest.raises(ValueError, match=rf"d9: the first turn alone has {length} tokens \(0 images\), the limit is"):
        collated(processor, [long], max_length=length - 1)
    with pytest.raises(ValueError, match=rf"d9: {length} tokens \(1 turns, 0 images\) exceed the limit of"):
        Collator(processor, length - 1)([[Collator(processor).read(long, {})]])


def test_a_missing_image_is_named(processor, collated, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png' .* does not exist"):
        collated(processor, [Dialogue((Turn.ask("What?", [tmp_path / "gone.png"], "a"),), id="d1")])


def test_a_batch_mixes_dialogues_with_and_without_images(processor, collated):
    image = Image.new("RGB", (16, 16), "red")
    batch = collated(processor, [*dialogues(1), Dialogue((Turn.ask("What?", [image, image], "red"),))])
    assert batch["pixel_values"].shape == (1, 3, 16, 16)  # each distinct picture once
    assert batch["image_index"].tolist() == [0, 0]
    assert batch["mm_token_type_ids"].sum(1).tolist() == [0, 8]
    alone = len(processor.encode(dialogues(1)[0]))
    assert batch["attention_mask"].sum(1).tolist() == [alone, batch["input_ids"].shape[1]]


@pytest.mark.parametrize(("setting", "value"), [("batch_size", 0), ("num_workers", -1), ("max_length", 0)])
def test_a_number_that_is_too_small_is_named(processor, setting, value):
    with pytest.raises(ValueError, match=rf"data\.{setting}={value}: expected {value + 1} or more"):
        VisualChatDataModule(processor, dialogues(), dialogues(2), **{"batch_size": 4, setting: value})


def test_nothing_to_train_on_is_an_error(processor):
    with pytest.raises(ValueError, match="train holds no dialogue"):
        VisualChatDataModule(processor, [], dialogues(1), batch_size=1)


def blend(folder, weights=None) -> Blend:
    """Forty rows of one's own in two files; the second's weight can be set."""
    for name in ("a", "b"):
        rows = [
            {
                "id": n,
                "messages": [{"role": "user", "content": f"{name} {n}?"}, {"role": "assistant", "content": "Yes."}],
            }
            for n in range(20)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    sources = {name: Messages(folder, [f"{name}.jsonl"], name) for name in ("a", "b")}
    return Blend(sources, {name: Join(name) for name in sources}, validation=0.2, weights=weights)


def questions(processor, batch) -> list[str]:
    """The question of each dialogue of a batch, packed or not."""
    text = "".join(
        processor.tokenizer.decode(row[mask > 0])
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
    return re.findall(r"### Question:\n(.*)\?", text)


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("weights", [None, {"b": 0.5}])
def test_a_blend_with_weights(processor, tmp_path, packing, weights):
    """An epoch holds what the mixture says, on two ranks together, and has as many batches as every other."""
    mixed = blend(tmp_path, weights)
    lengths = set()
    for epoch in range(3):
        seen = []
        for rank in range(2):
            data = VisualChatDataModule.from_blend(
                processor, mixed, batch_size=2, max_length=500, packing=packing, seed=7
            )
            data.trainer = SimpleNamespace(world_size=2, global_rank=rank, max_epochs=3)
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            batches = list(loader)
            assert len(batches) == len(loader) == data.train_batches()
            lengths.add(len(batches))
            seen += [
                question
                for batch in batches
                if (batch["labels"] >= 0).any()
                for question in questions(processor, batch)
            ]
        expected = [mixed.train[place].turns[0].question.rstrip("?") for place in mixed.train.order(7, epoch)]
        assert sorted(seen) == sorted(expected)
        assert len(set(expected)) == len(expected) == mixed.train.epoch_size
    assert len(lengths) == 1
    assert len(list(data.val_dataloader())) == -(-len(mixed.validation) // 4)

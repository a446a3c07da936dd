"""The datamodule: every dialogue once an epoch, in an order of seed and epoch, whatever makes the batches."""

from types import SimpleNamespace

import lightning
import pytest
from PIL import Image

from visualchat.data.collate import Collator
from visualchat.data.datamodule import VisualChatDataModule
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


def test_every_dialogue_once_an_epoch_shuffled_anew(processor):
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
        shares.append(list(data.train_dataloader().sampler))
    assert sorted(shares[0] + shares[1]) == list(range(10))


def test_an_unanswered_turn_is_named(processor):
    with pytest.raises(ValueError, match=r"d7: turn 1 has no answer \(found None\); a training dialogue needs one"):
        Collator(processor)([Dialogue((Turn.ask("Well?"),), id="d7")])
    with pytest.raises(ValueError, match=r"d8: turn 1 has no answer \(found ' '\)"):
        Collator(processor)([Dialogue((Turn.ask("Well?", [], " "),), id="d8")])


def test_a_dialogue_over_the_limit_is_named(processor):
    long = Dialogue((Turn.ask("word " * 100, [], "yes"),), id="d9")
    length = len(processor.encode(long))
    assert Collator(processor, max_length=length)([long])["input_ids"].shape == (1, length)
    with pytest.raises(ValueError, match=rf"d9: {length} tokens \(1 turns, 0 images\) exceed the limit of"):
        Collator(processor, max_length=length - 1)([long])


def test_a_missing_image_is_named(processor, tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png' .* does not exist"):
        Collator(processor)([Dialogue((Turn.ask("What?", [tmp_path / "gone.png"], "a"),), id="d1")])


def test_a_batch_mixes_dialogues_with_and_without_images(processor):
    image = Image.new("RGB", (16, 16), "red")
    batch = Collator(processor)([*dialogues(1), Dialogue((Turn.ask("What?", [image, image], "red"),))])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["mm_token_type_ids"].sum(1).tolist() == [0, 8]
    alone = len(processor.encode(dialogues(1)[0]))
    assert batch["attention_mask"].sum(1).tolist() == [alone, batch["input_ids"].shape[1]]


def test_nothing_to_train_on_is_an_error(processor):
    with pytest.raises(ValueError, match="train holds no dialogue"):
        VisualChatDataModule(processor, [], dialogues(1), batch_size=1)

"""Answers to validation dialogues: the same ones as from generation, in every place where people look."""

import lightning
import pytest
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.evaluation.runner import answer_turns
from visualchat.training.callbacks.samples import HEIGHT, SampleDialogues, sample_rows, side_by_side
from visualchat.training.module import VisualChatModule


def dialogues(count=5) -> list[Dialogue]:
    pictures = [Image.new("RGB", (16, 16), (40 * n, 0, 0)) for n in range(count)]
    return [
        Dialogue((Turn.ask(f"Which | {n}?", [pictures[n]] * 2, "it"), Turn.ask("So?", [], "so")), id=f"d{n}")
        for n in range(count)
    ]


class RecordingWandb(WandbLogger):
    """A W&B logger that keeps tables and starts no run."""

    def __init__(self):
        self.tables = []

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, columns, data, step))

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass

    name = version = save_dir = experiment = None

    def finalize(self, status):
        pass

    def save(self):
        pass


@pytest.fixture
def sampled(make_model, processor, tmp_path):
    """A run of two steps with a validation after each, and what its loggers got."""
    board, wandb = TensorBoardLogger(tmp_path, "logs", "board"), RecordingWandb()
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=[board, wandb],
        max_steps=2,
        val_check_interval=1,
        callbacks=[SampleDialogues(tmp_path, count=2, max_new_tokens=5)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,  # which are no validation
    )
    module = VisualChatModule(make_model)
    trainer.fit(module, VisualChatDataModule(processor, dialogues(), dialogues(), batch_size=3))
    return module, wandb, tmp_path


def test_a_table_a_validation(sampled, processor):
    module, wandb, _ = sampled
    assert [(key, step) for key, _, _, step in wandb.tables] == [("validation/samples", 0), ("validation/samples", 1)]
    _, columns, data, _ = wandb.tables[-1]
    rows = [dict(zip(columns, row, strict=True)) for row in data]
    chosen = [dialogues()[0], dialogues()[2]]
    expected = answer_turns(module.model, processor, chosen, max_new_tokens=5)
    assert [row["answer"] for row in rows] == [answer for given in expected for answer in given]
    assert [(row["dialogue"], row["round"], row["step"]) for row in rows] == [
        *(("d0", 1, 2), ("d0", 2, 2)),
        *(("d2", 1, 2), ("d2", 2, 2)),
    ]
    assert rows[0]["images"].image.size == (36, 16)  # two pictures and a gap
    assert rows[1]["images"] is None
    assert [row["question"] for row in rows[:2]] == ["Which | 0?", "So?"]
    assert [row["expected"] for row in rows[:2]] == ["it", "so"]


def test_text_and_pictures_in_tensorboard(sampled):
    _, _, folder = sampled
    found = EventAccumulator(str(folder / "logs" / "board")).Reload()
    texts = found.Tensors("validation/samples/text_summary")
    assert [event.step for event in texts] == [1, 2]
    text = texts[0].tensor_proto.string_val[0].decode()
    assert text.splitlines()[2].startswith("| d0 | 1 | Which \\| 0? | it | ")
    assert sorted(found.Tags()["images"]) == ["validation/samples/d0/round 1", "validation/samples/d2/round 1"]
    assert [event.step for event in found.Images("validation/samples/d0/round 1")] == [1]


def test_a_page_a_validation(sampled):
    _, _, folder = sampled
    pages = sorted((folder / "samples").iterdir())
    assert [page.name for page in pages] == ["step_000001.html", "step_000002.html"]
    assert pages[0].read_text().count("<section>") == 2


@pytest.mark.parametrize(("count", "size", "chosen"), [(2, 5, [0, 2]), (3, 3, [0, 1, 2]), (4, 2, [0, 1]), (1, 9, [0])])
def test_the_chosen_lie_all_over(processor, count, size, chosen):
    data = VisualChatDataModule(processor, dialogues(1), dialogues(size), batch_size=1)
    assert [dialogue.id for dialogue in data.samples(count)] == [f"d{n}" for n in chosen]


def test_bad_ones_are_replaced_or_named(processor):
    """Cut to the limit like all others, too."""
    found = dialogues(4)
    found[0] = Dialogue((Turn.ask("Too long? " * 50, [], "yes"),), id="long")
    limit = len(processor.encode(found[1])) - 1
    settings = {"batch_size": 1, "max_length": limit}
    data = VisualChatDataModule(processor, dialogues(1), found, bad_rows="skip", **settings)
    assert [(dialogue.id, len(dialogue.turns)) for dialogue in data.samples(2)] == [("d1", 1), ("d2", 1)]
    with pytest.raises(ValueError, match="long: the first turn alone has"):
        VisualChatDataModule(processor, dialogues(1), found, **settings).samples(2)


def test_images_in_a_row_are_of_one_height():
    tall, wide = Image.new("RGB", (100, 3 * HEIGHT), "red"), Image.new("RGB", (4 * HEIGHT, 2 * HEIGHT), "blue")
    row = side_by_side([tall, wide])
    assert row.size == (round(100 / 3) + 4 + 2 * HEIGHT, HEIGHT)
    assert (row.getpixel((0, 0)), row.getpixel((row.width - 1, 0))) == ((255, 0, 0), (0, 0, 255))
    assert side_by_side([Image.new("RGB", (5, 7))]).size == (5, 7)
    assert side_by_side([]) is None


def test_an_exact_answer_is_marked():
    rows = sample_rows(7, dialogues(1), [["it", "no"]])
    assert [(row.step, row.answer, row.exact) for row in rows] == [(7, "it", True), (7, "no", False)]

"""Metrics against the model asked directly, and that looking on changes nothing."""

import io
import itertools
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning
import pytest
import rich
import torch
from lightning.pytorch.loggers import Logger
from PIL import Image

from visualchat.data.blend.mixture import Mixture
from visualchat.data.datamodule import VisualChatDataModule
from visualchat.dialogue import Dialogue, Turn
from visualchat.evaluation.exact_match import correct_answers
from visualchat.training.callbacks import metrics, progress
from visualchat.training.callbacks.metrics import RunMetrics, gradient_norm
from visualchat.training.callbacks.progress import ProgressBar
from visualchat.training.callbacks.samples import SampleDialogues
from visualchat.training.module import VisualChatModule
from visualchat.training.optim import OptimizerSettings

ROOT = Path(__file__).resolve().parents[3]


class Recorder(Logger):
    """Keeps what is logged: (step, metrics), in order."""

    name, version = "recorder", "0"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        pass

    def column(self, name):
        return {step: metrics[name] for step, metrics in self.rows if name in metrics}


def mixture() -> Mixture:
    pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    asked = [Dialogue((Turn.ask("Colour?", [p], f"it is {n}"),), id=f"picture{n}") for n, p in enumerate(pictures)]
    said = [Dialogue((Turn.ask("Hi?", [], "hello"), Turn.ask("So?", [], "n" * n)), id=f"text{n}") for n in (1, 9)]
    return Mixture({"pictures": asked, "empty": [], "text": said})


FROZEN = OptimizerSettings(learning_rate=0.0)
MOVING = OptimizerSettings(learning_rate=1e-2, embedding_learning_rate=2e-2)


def fit(make_model, processor, folder, optimizer=MOVING, data=None, extra=(), **settings):
    recorder = Recorder()
    defaults = {"max_epochs": 1, "log_every_n_steps": 1, "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=recorder,
        callbacks=[RunMetrics(), *extra],
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{**defaults, **settings},
    )
    module = VisualChatModule(partial(make_model, projector_type="linear_norm"), optimizer)
    torch.manual_seed(0)
    trainer.fit(module, VisualChatDataModule(processor, mixture(), mixture(), **{"batch_size": 2, **(data or {})}))
    return module, recorder, trainer


def direct(module, processor, dialogues) -> tuple[float, float]:
    """Loss per answer token and exact match of some dialogues, each on its own."""
    losses, exact = [], []
    for dialogue in dialogues:
        batch = processor.batch([dialogue])
        with torch.no_grad():
            out = module.model.eval()(**batch)
        losses += out.answer_losses.tolist()
        exact += correct_answers(out.logits, batch["labels"])
    return sum(losses) / len(losses), sum(exact) / len(exact)


@pytest.mark.parametrize(
    ("settings", "data"),
    [
        ({"log_every_n_steps": 3}, {}),
        ({"accumulate_grad_batches": 3}, {}),
        ({"log_every_n_steps": 50}, {}),  # nothing but what is left at the end
        ({"log_every_n_steps": 50}, {"packing": True, "max_length": 500}),
    ],
    ids=["three steps", "accumulated", "at the end", "packed"],
)
def test_losses_by_source_are_those_of_the_dialogues(make_model, processor, tmp_path, settings, data):
    """Nothing moves at a rate of 0, so all steps together are the model asked about each dialogue alone."""
    module, recorder, _ = fit(make_model, processor, tmp_path, FROZEN, data, **settings)
    ((_, found),) = recorder.rows
    parts = mixture().parts
    # fp32; rows of other lengths and other neighbours sum in another order
    for name in ("pictures", "text"):
        assert found[f"train/loss/{name}"] == pytest.approx(direct(module, processor, parts[name])[0], rel=1e-5)
    assert found["train/loss"] == pytest.approx(direct(module, processor, mixture())[0], rel=1e-5)
    assert "train/loss/empty" not in found


def test_validation_by_source(make_model, processor, tmp_path):
    module, recorder, _ = fit(make_model, processor, tmp_path, limit_val_batches=1.0)
    for name, dialogues in {"": mixture(), "/pictures": mixture()[:3], "/text": mixture()[3:]}.items():
        loss, exact = direct(module, processor, dialogues)
        assert recorder.column(f"validation/loss{name}") == {2: pytest.approx(loss, rel=1e-5)}  # fp32, as above
        assert recorder.column(f"validation/exact_match{name}") == {2: pytest.approx(exact)}


@pytest.mark.parametrize("clip", [None, 1e-6])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradients_norm_is_that_before_clipping(make_model, processor, tmp_path, clip, accumulate):
    module, recorder, _ = fit(
        make_model, processor, tmp_path, FROZEN, gradient_clip_val=clip, accumulate_grad_batches=accumulate
    )
    data = VisualChatDataModule(processor, mixture(), mixture(), batch_size=2)
    expected, batches = [], list(data.train_dataloader())
    for start in range(0, 3, accumulate):
        module.zero_grad()
        for batch in batches[start : start + accumulate]:
            (module.model.train()(**batch).loss / accumulate).backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        expected.append(float(torch.cat(gradients).norm()))
    assert [*recorder.column("train/gradient_norm").values()] == pytest.approx(expected, rel=1e-5)  # fp32


def test_no_gradient_no_norm():
    assert gradient_norm(torch.nn.Linear(2, 2)) is None


def test_rates_are_those_of_the_step(make_model, processor, tmp_path):
    """Four steps: two of warm-up, then half a cosine, for each group under its name."""
    settings = OptimizerSettings(learning_rate=0.1, embedding_learning_rate=0.2, warmup_fraction=0.5)
    _, recorder, _ = fit(make_model, processor, tmp_path, settings, max_epochs=2, limit_train_batches=2)
    factors = [0.5, 1.0, 1.0, 0.5]
    (other,) = {n for _, row in recorder.rows for n in row if n.startswith("lr/")} - {"lr/embedding"}
    assert [*recorder.column(other).values()] == pytest.approx([0.1 * f for f in factors])
    assert [*recorder.column("lr/embedding").values()] == pytest.approx([0.2 * f for f in factors])
    assert [*recorder.column("lr/embedding")] == [0, 1, 2, 3]


def test_rates_of_work_padding_and_memory(make_model, processor, tmp_path, monkeypatch):
    """On a clock that strikes once a look, and is looked at when a window opens and when it is logged."""
    strikes = itertools.count()
    monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: float(next(strikes))))
    _, recorder, _ = fit(make_model, processor, tmp_path, log_every_n_steps=50)
    ((step, found),) = recorder.rows
    batches = list(VisualChatDataModule(processor, mixture(), mixture(), batch_size=2).train_dataloader())
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    assert step == 2
    assert found["speed/tokens_per_second"] == tokens
    assert found["speed/images_per_second"] == 3
    # counts pass through fp32
    assert found["data/padding"] == pytest.approx(1 - tokens / sum(b["labels"].numel() for b in batches), rel=1e-6)
    answers = sum(int((batch["labels"] >= 0).sum()) for batch in batches)
    assert found["data/answer_tokens"] == pytest.approx(answers / tokens, rel=1e-6)
    assert 0.05 < found["memory/main_gb"] < 500
    assert "memory/gpu_gb" not in found


def test_every_log_step_and_what_is_left(make_model, processor, tmp_path):
    _, recorder, trainer = fit(make_model, processor, tmp_path, log_every_n_steps=2, max_epochs=3)
    assert trainer.global_step == 9
    assert [step for step, _ in recorder.rows] == [1, 3, 5, 7, 8]


def test_every_metric_is_documented(make_model, processor, tmp_path):
    _, recorder, _ = fit(make_model, processor, tmp_path, limit_val_batches=1.0)
    found = {name for _, metrics in recorder.rows for name in metrics} - {"epoch"}
    generic = {re.sub("/(pictures|text)$", "/<source>", re.sub("^lr/.*", "lr/<group>", name)) for name in found}
    assert "train/loss/<source>" in generic
    documented = set(re.findall("`([^` ]+)`", (ROOT / "docs" / "tracking.md").read_text()))
    assert generic <= documented


def test_looking_on_changes_nothing(make_model, processor, tmp_path):
    """Weights and random numbers after three epochs with validations are the same to the last bit."""
    settings = {"max_epochs": 3, "limit_val_batches": 1.0, "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    watched, _, _ = fit(
        make_model,
        processor,
        tmp_path,
        extra=[ProgressBar(), SampleDialogues(tmp_path, count=3, max_new_tokens=4)],
        **{**settings, "enable_progress_bar": True},
    )
    after = torch.random.get_rng_state()
    module = VisualChatModule(partial(make_model, projector_type="linear_norm"), MOVING)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    torch.manual_seed(0)
    lightning.Trainer(accelerator="cpu", default_root_dir=tmp_path, **quiet, **settings).fit(
        module, VisualChatDataModule(processor, mixture(), mixture(), batch_size=2)
    )
    assert torch.equal(after, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(watched.parameters(), module.parameters(), strict=True))
    assert len(list((tmp_path / "samples").iterdir())) == 3


def test_lines_where_there_is_no_terminal(make_model, processor, tmp_path, capsys, monkeypatch):
    """A clock of 7 seconds a look: lines are at least 10 seconds apart, and the last step has one in any case."""
    strikes = itertools.count(step=7)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: float(next(strikes))))
    fit(make_model, processor, tmp_path, extra=[ProgressBar()], max_epochs=2, enable_progress_bar=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert lines
    assert lines[-1].startswith("100 %  step 6/6  loss ")
    assert lines[-1].endswith("run left 0:00:00")
    assert all("tokens/s" in line for line in lines)
    percents = [int(line.split("%")[0]) for line in lines]
    assert percents == sorted(set(percents))


def test_the_bar_is_one_line_of_80_columns(make_model, processor, tmp_path, monkeypatch):
    """On a terminal of that width, with figures as long as they get: a day left, 5 digits of tokens a second."""
    screen = io.StringIO()
    monkeypatch.setattr(ProgressBar, "seconds_left", lambda *_: 360_000.0)
    monkeypatch.setattr(progress, "get_console", lambda: SimpleNamespace(is_terminal=True, is_jupyter=False))
    bar = ProgressBar()
    bar._console_kwargs = {"force_terminal": True, "width": 80, "file": screen, "color_system": None}
    settings = {"max_epochs": 2, "enable_progress_bar": True, "limit_val_batches": 1.0}
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=itertools.count(step=3e-4).__next__))
    fit(make_model, processor, tmp_path, extra=[bar], **settings)
    rich.reconfigure()
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]", screen.getvalue())]
    shown = [line.rstrip() for line in lines if line.startswith("Epoch")]
    assert {line.partition(" ")[2][:3] for line in shown} == {"1/2", "2/2"}
    full = [line for line in shown if "left" in line]
    assert re.fullmatch(r"Epoch 2/2 +━+ 3/3 loss: \d\.\d{3} exact: \d+% tok/s: \d+k left: 100:00:00", full[-1])
    assert max(map(len, full)) + len("10/10") - len("2/2") + len("1000/1000") - len("3/3") <= 80
    assert not [line for line in lines if line.startswith((" left", "left"))]


def test_time_left_is_of_the_whole_run(monkeypatch):
    """After 4 batches in 8 seconds, 6 of 10 steps of 2 batches each remain: 24 seconds."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: 108.0))
    bar = ProgressBar()
    bar._began, bar._batches, bar._steps = 100.0, 4, 10
    assert bar.seconds_left(SimpleNamespace(global_step=4, accumulate_grad_batches=2)) == 24.0
    assert bar.seconds_left(SimpleNamespace(global_step=10, accumulate_grad_batches=2)) == 0.0


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_any_precision(make_model, processor, tmp_path, precision):
    """Lightning converts batches where weights are not fp32; samples are generated in the same precision."""
    samples = SampleDialogues(tmp_path, count=2, max_new_tokens=2)
    settings = {"precision": precision, "limit_val_batches": 1.0, "gradient_clip_val": 1.0}
    _, recorder, _ = fit(make_model, processor, tmp_path, extra=[samples], **settings)
    assert len(recorder.column("train/loss/pictures")) >= 1
    assert set(recorder.column("train/gradient_norm")) == {0, 1, 2}
    assert len(recorder.column("validation/exact_match/text")) == 1

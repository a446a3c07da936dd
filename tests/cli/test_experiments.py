"""The paper's experiments: what they set, what trains in them, and their twins on a CPU."""

import csv
import re

import pytest
import torch
from hydra import compose, initialize_config_dir
from test_commands import run

from visualchat.cli.config import CONF, folder_name
from visualchat.cli.plan import build_without_weights
from visualchat.cli.scoring import VALIDATION, check_evaluation
from visualchat.plan.shapes import sizes_of
from visualchat.training.accumulation import batches_to_accumulate

MILLION = 1_000_000


def composed(*overrides, command="train"):
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose(command, list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("experiment", "trained", "language", "epochs", "blend"),
    [
        ("paper_4_2_1", 148, "llama2_7b", 5, "single_image"),
        ("paper_4_2_2", 185, "llama2_13b", 10, "single_image"),
        ("paper_5_2_1", 185, "llama2_13b", 6, "set1"),
        ("paper_5_2_2", 185, "llama2_13b", 6, "set2"),
        ("paper_5_2_3", 296, "llama2_70b", 6, "set2"),
    ],
)
def test_an_experiment_of_the_paper_builds_and_trains_what_the_paper_says(experiment, trained, language, epochs, blend):
    """Projector and embedding: 148, 185 and 296 million at 7B, 13B and 70B, beside Qwen-VL's encoder of width 4096."""
    config = composed(f"experiment={experiment}", "attention=mmca")
    sizes = sizes_of(build_without_weights(config))
    parts = {part.part: part.trainable for part in sizes.parts}
    width = sizes.hidden
    assert parts["projector"] == 4096 * width + width
    assert parts["token embedding"] == 32000 * width
    assert sizes.trained == parts["projector"] + parts["token embedding"]
    assert round(sizes.trained / MILLION) == trained
    choices = config.hydra.runtime.choices
    assert (choices["model/language"], choices["data/blend"]) == (language, blend)
    assert config.trainer.max_epochs == epochs


def test_the_recipe_is_the_papers():
    config = composed("experiment=paper", "trainer.devices=8")
    settings = config.optimizer
    assert [*settings.betas] == [0.0, 0.95]
    assert (settings.learning_rate, settings.warmup_fraction, settings.weight_decay) == (1e-3, 0.1, 0.0)
    assert config.trainer.gradient_clip_val == 1.0
    assert config.data.batch_size * 8 * config.trainer.accumulate_grad_batches == 128
    assert (config.data.max_length, config.data.packing, config.blend.validation) == (4096, False, 0.1)


@pytest.mark.parametrize(("devices", "count"), [(2, 2), ("2", 2), ([0, 3], 2), (1, 1)])
def test_batches_of_a_step(devices, count):
    assert batches_to_accumulate(128, 4, devices, 2) == 128 // (4 * count * 2)


def test_all_devices_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert batches_to_accumulate(128, 4, "auto", 1) == 32
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert batches_to_accumulate(128, 4, -1, 1) == 4


def test_a_step_that_cannot_be_dealt_out_is_refused():
    with pytest.raises(ValueError, match=r"data.batch_size=4 rows on each of 3 devices: 4 x 3 must divide 128"):
        batches_to_accumulate(128, 4, 3, 1)


def test_a_long_list_of_overrides_makes_a_short_name():
    assert folder_name("attention=mmca,model/vision=tiny,seed=1", 3) == "attention-mmca+model.vision-tiny+seed-1"
    assert folder_name("data.x=[1,2]", 3) == "data.x-_1+2_...3"
    long = ",".join(f"data.train.size{n}=16" for n in range(20))
    assert len(folder_name(long, 3)) < 100
    assert folder_name(long, 3) != folder_name(long, 4)


def test_captioning_on_real_data_is_configuration_alone():
    """Karpathy's split by its name; the paper's own held-out captions by the metrics' names."""
    coco = composed("experiment=paper_4_2_1", "attention=mmca", "evaluation=coco_karpathy").evaluation
    assert coco.dialogues.coco_karpathy._target_.endswith("CocoKarpathy")
    own = composed("experiment=paper_4_2_1", "attention=mmca", "evaluation=default", "evaluation.metrics=[cider_d]")
    assert own.evaluation.dialogues == VALIDATION
    for settings in (coco, own.evaluation):
        check_evaluation(settings)
        assert settings.metrics[0] == "cider_d"


def test_an_unknown_metric_is_refused_before_anything_trains():
    config = composed("experiment=smoke", "evaluation.metrics=[cider]")
    with pytest.raises(ValueError, match=r"unknown metric cider in evaluation\.metrics"):
        check_evaluation(config.evaluation)


@pytest.mark.slow
def test_the_twin_of_4_2_1_is_one_command(tmp_path):
    """Shortened; attention by the experiment's own sweep, epochs beside it; two of its runs are compared."""
    small = ["data.train.size=16", "data.validation.size=2", "evaluation.dialogues.seen.size=4", "threads=1"]
    small += ["evaluation.dialogues.unseen.size=2", "evaluation.samples=1", "data.batch_size=8"]
    said = run(tmp_path, "train", "-m", "experiment=paper_4_2_1", "scale=tiny", "trainer.max_epochs=1,2", *small)
    assert "sweep (exact match in %; cider_d, rouge_l, bleu_4 x 100, with 95% intervals)" in said
    (table,) = tmp_path.glob("outputs/sweeps/*/*/sweep.csv")
    with table.open() as file:
        rows = list(csv.DictReader(file))
    swept = composed("experiment=paper_4_2_1", "scale=tiny").hydra.sweeper.params.attention.split(",")
    assert [(row["attention"], row["trainer.max_epochs"]) for row in rows] == [(a, e) for a in swept for e in "12"]
    assert [float(row["train/steps"]) for row in rows] == [1, 2] * len(swept)
    for row in rows:
        low, value, high = (float(row[f"cider_d/all{end}"]) for end in (" low", "", " high"))
        assert low <= value <= high
        assert f"{100 * value:.1f} ({100 * low:.1f}-{100 * high:.1f})" in said
        assert float(row["blind/cider_d/all"]) >= 0
    runs = sorted(path.parent for path in table.parent.rglob("metrics.json"))
    assert len(runs) == len(rows)
    assert table.with_name("sweep.png").stat().st_size > 1000
    named = ",".join(f"'{path}'" for path in runs[:2])
    said = run(tmp_path, "evaluate", f"predictions=[{named}]", "evaluation.metrics=[cider_d]", "hydra.run.dir=both")
    assert "6 of 6 questions are the same" in said
    page = (tmp_path / "both/comparison.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 6
    assert all((tmp_path / "both" / source).is_file() for source in sources)

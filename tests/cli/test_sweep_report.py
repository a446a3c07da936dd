"""What a multirun leaves, from made-up folders of runs."""

import csv
import json
from itertools import pairwise

import numpy as np
import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image
from rich.console import Console

from visualchat.cli.sweep_report import Run, SweepReport, draw_sweep, read_runs, sweep_table, varied, write_csv


def metrics(score, **more):
    names = ("exact_match/all", "seen/exact_match/all", "unseen/exact_match/all")
    return {**dict(zip(names, (score, score + 0.1, score - 0.1), strict=True)), "train/seconds": 61.7, **more}


def make_run(folder, number, overrides, figures=None, failed=False):
    """A run as Hydra leaves it; failed or unfinished without figures."""
    (folder / ".hydra").mkdir(parents=True)
    hydra = {"hydra": {"job": {"num": number}, "overrides": {"task": overrides}}}
    OmegaConf.save(hydra, folder / ".hydra" / "hydra.yaml")
    if figures is not None:
        (folder / "metrics.json").write_text(json.dumps(figures))
    if failed:
        (folder / "failed.txt").write_text("ValueError: no")


def make_sweep(folder):
    """Four runs, of which the second failed; the last started tenth."""
    make_run(folder / "attention=mmca,seed=1", 0, ["experiment=smoke", "attention=mmca", "seed=1"], metrics(0.5))
    make_run(folder / "attention=mmca,seed=2", 1, ["experiment=smoke", "attention=mmca", "seed=2"], failed=True)
    make_run(folder / "attention=causal,seed=1", 10, ["experiment=smoke", "attention=causal", "seed=1"], metrics(0.25))
    make_run(folder / "attention=causal,seed=2", 2, ["experiment=smoke", "attention=causal", "seed=2"], metrics(0.75))


def run(score, **overrides):
    return Run(overrides, metrics(score))


def rows_of(table):
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_runs_in_the_order_of_their_jobs(tmp_path):
    make_sweep(tmp_path)
    assert read_runs(tmp_path) == [
        Run({"experiment": "smoke", "attention": "mmca", "seed": "1"}, metrics(0.5)),
        Run({"experiment": "smoke", "attention": "mmca", "seed": "2"}, {}, "failed"),
        Run({"experiment": "smoke", "attention": "causal", "seed": "2"}, metrics(0.75)),
        Run({"experiment": "smoke", "attention": "causal", "seed": "1"}, metrics(0.25)),
    ]


def test_overrides_of_any_form(tmp_path):
    """Hydra names the run's folder after them, slashes included."""
    overrides = ["model/language=tiny", "+data.names=[a=b,c]", "++seed=1"]
    make_run(tmp_path / "++seed=1,+data.names=[a=b,c],model" / "language=tiny", 0, overrides, metrics(0.5))
    assert read_runs(tmp_path) == [
        Run({"model/language": "tiny", "data.names": "[a=b,c]", "seed": "1"}, metrics(0.5)),
    ]


def test_what_was_set_is_read_once_until_it_changes(tmp_path, monkeypatch):
    """A sweep asks after every run for all so far: a hundred runs would be read five thousand times."""
    make_sweep(tmp_path)
    first = read_runs(tmp_path)
    read, load = [], OmegaConf.load
    monkeypatch.setattr(OmegaConf, "load", lambda path: (read.append(path), load(path))[1])
    (tmp_path / "attention=mmca,seed=2" / "metrics.json").write_text(json.dumps(metrics(0.125)))
    again = read_runs(tmp_path)
    assert read == []
    assert [again[0], *again[2:]] == [first[0], *first[2:]]
    assert again[1].metrics == metrics(0.125)
    record = tmp_path / "attention=mmca,seed=1" / ".hydra" / "hydra.yaml"
    OmegaConf.save({"hydra": {"job": {"num": 0}, "overrides": {"task": ["seed=3"]}}}, record)
    assert read_runs(tmp_path)[0].overrides == {"seed": "3"}
    assert read == [record]


def test_no_runs(tmp_path):
    assert read_runs(tmp_path) == []


def test_only_overrides_that_differ_are_shown():
    runs = [run(0.5, experiment="smoke", attention=a, seed=s) for a in ("mmca", "causal") for s in ("1", "2")]
    assert varied(runs) == ["attention", "seed"]
    assert varied(runs[:2]) == ["seed"]
    assert varied(runs[:1]) == ["experiment", "attention", "seed"]
    assert varied([run(0.5)]) == []


def test_one_row_a_run():
    table = sweep_table([run(0.5, attention="mmca", seed="1"), run(0.25, attention="causal", seed="1")])
    shown = ["all", "seen", "unseen", "seconds"]
    assert [column.header for column in table.columns] == ["attention", *shown]
    assert rows_of(table) == [("mmca", "50.0", "60.0", "40.0", "62"), ("causal", "25.0", "35.0", "15.0", "62")]


def test_the_answer_loss_is_shown_where_runs_have_it():
    table = sweep_table([Run({"seed": "1"}, {"exact_match/all": 0.0, "answer_loss/all": 1.23456})])
    assert [column.header for column in table.columns] == ["seed", "all", "answer loss"]
    assert rows_of(table) == [("1", "0.0", "1.235")]


def test_metrics_stand_beside_exact_match_with_their_intervals(tmp_path):
    """A run whose evaluation names metrics leaves scores.json; those of other columns and groups are not shown."""
    make_run(tmp_path / "1", 0, ["seed=1"], metrics(0.5, **{"cider_d/all": 2.5, "bleu_4/all": 0.25}))
    rows = [("tuned", "exact_match/all", 0.4), ("tuned", "cider_d/all", 2.0), ("tuned", "bleu_4/all", None)]
    rows += [("tuned", "cider_d/images_1", 2.0), ("blind", "rouge_l/all", 0.1), ("tuned", "token_accuracy/all", None)]
    scores = [{"column": c, "name": n, "low": low, "high": None if low is None else low + 1} for c, n, low in rows]
    (tmp_path / "1/scores.json").write_text(json.dumps(scores))
    make_run(tmp_path / "2", 1, ["seed=2"], failed=True)
    table = sweep_table(runs := read_runs(tmp_path))
    assert [column.header for column in table.columns] == ["seed", "all", "cider_d", "bleu_4"]
    assert rows_of(table) == [("1", "50.0", "250.0 (200.0-300.0)", "25.0"), ("2", "failed", "-", "-")]
    write_csv(runs, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert [first[f"cider_d/all{end}"] for end in ("", " low", " high")] == ["2.5", "2.0", "3.0"]
    assert second["cider_d/all low"] == ""


def test_a_figure_that_a_run_lacks_is_a_dash():
    runs = [Run({"seed": "1"}, {"exact_match/all": 0.5}), Run({"seed": "2"}, metrics(0.5))]
    assert rows_of(sweep_table(runs)) == [("1", "50.0", "-", "-", "-"), ("2", "50.0", "60.0", "40.0", "62")]


def test_runs_that_did_not_finish_are_named(tmp_path, figures):
    """In table and file; the picture shows the others."""
    runs = [run(0.5, seed="1"), Run({"seed": "2"}, {}, "failed"), Run({"seed": "3"}, {}, "unfinished")]
    assert [row[:3] for row in rows_of(sweep_table(runs))] == [
        ("1", "50.0", "60.0"),
        ("2", "failed", "-"),
        ("3", "unfinished", "-"),
    ]
    write_csv(runs, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert [(row["seed"], row["state"]) for row in csv.DictReader(file)] == [
            ("1", "finished"),
            ("2", "failed"),
            ("3", "unfinished"),
        ]
    draw_sweep(runs[:2], tmp_path / "sweep.png")
    (axes,) = figures[0].axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 50.0]]]


def test_all_figures_go_into_the_file(tmp_path):
    runs = [
        Run({"seed": "1", "note": "a, b"}, metrics(0.5)),
        Run({"seed": "2", "note": 'say "hi"'}, metrics(0.25, **{"exact_match/colour": 0.125})),
    ]
    write_csv(runs, tmp_path / "sweep.csv")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["seed", "note", "state"]
    assert list(rows[0])[3:] == sorted([*metrics(0), "exact_match/colour"])
    assert [(row["seed"], row["note"]) for row in rows] == [("1", "a, b"), ("2", 'say "hi"')]
    assert [row["exact_match/colour"] for row in rows] == ["", "0.125"]
    for row, made in zip(rows, runs, strict=True):
        assert {name: float(row[name]) for name in made.metrics} == made.metrics


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (saved.append(self), save(self, *a, **k)))
    return saved


def test_a_numeric_override_is_the_horizontal_axis(tmp_path, figures):
    scores = {("mmca", "10"): 0.5, ("mmca", "9"): 0.25, ("causal", "1e1"): 0.75, ("causal", "9"): 0.125}
    draw_sweep([run(score, attention=a, epochs=e) for (a, e), score in scores.items()], tmp_path / "sweep.png")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "epochs"
    assert {line.get_label(): line.get_xydata().tolist() for line in axes.lines} == {
        "attention=mmca": [[9, 25.0], [10, 50.0]],
        "attention=causal": [[9, 12.5], [10, 75.0]],
    }
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["attention=mmca", "attention=causal"]


def test_of_two_numeric_overrides_the_last_is_the_axis(tmp_path, figures):
    draw_sweep([run(0.5, lr=lr, seed=s) for lr in ("1", "2") for s in ("3", "4")], tmp_path / "sweep.png")
    (axes,) = figures[0].axes
    assert axes.get_xlabel() == "seed"
    assert [line.get_label() for line in axes.lines] == ["lr=1", "lr=2"]


def test_one_override_needs_no_legend(tmp_path, figures):
    draw_sweep([run(0.5, epochs="1"), run(0.75, epochs="2")], tmp_path / "sweep.png")
    (axes,) = figures[0].axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 50.0], [2, 75.0]]]
    assert axes.get_legend() is None


def test_bars_where_nothing_is_numeric(tmp_path, figures):
    runs = [run(0.5, attention="mmca", blend="1,2"), run(0.25, attention="causal", blend="2")]
    draw_sweep(runs, tmp_path / "sweep.png")
    (axes,) = figures[0].axes
    assert [bar.get_width() for bar in axes.patches] == [50.0, 25.0]
    assert axes.get_ylabel() == "attention, blend"
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["mmca, 1,2", "causal, 2"]
    kinds = [run(0.5, attention=f"a_rather_long_kind_{number}") for number in range(13)]
    draw_sweep(kinds, tmp_path / "kinds.png")
    figure = figures[1]
    figure.draw_without_rendering()
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


def report(folder):
    SweepReport().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))


def test_the_report_of_a_sweep(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    make_sweep(tmp_path)
    report(tmp_path)
    printed = capsys.readouterr().out
    console = Console(width=300)
    with console.capture() as expected:
        console.print(sweep_table(read_runs(tmp_path)))
    assert expected.get() in printed
    assert f"all figures are in {tmp_path}/sweep.csv, the figure in {tmp_path}/sweep.png" in printed
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 5
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 0


def test_a_sweep_of_which_nothing_finished(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    make_run(tmp_path / "seed=1", 0, ["seed=1"])
    report(tmp_path)
    assert f"no run of the sweep finished: {tmp_path}/ holds no metrics.json" in capsys.readouterr().out
    assert "unfinished" in (tmp_path / "sweep.csv").read_text()
    assert not (tmp_path / "sweep.png").exists()


def test_a_sweep_without_any_exact_match_is_compared(tmp_path, capsys):
    """Runs that end before their first validation have a loss and a time alone."""
    make_run(tmp_path / "seed=1", 0, ["seed=1"], {"train/seconds": 3.0})
    make_run(tmp_path / "seed=2", 1, ["seed=2"], {"train/seconds": 4.0})
    report(tmp_path)
    printed = capsys.readouterr().out
    assert "no figure: no exact match was measured" in printed
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 3
    assert not (tmp_path / "sweep.png").exists()


def end_of_job(folder, run, result, mode=RunMode.MULTIRUN):
    job = JobReturn(status=JobStatus.FAILED if isinstance(result, Exception) else JobStatus.COMPLETED)
    job.return_value = result
    hydra = {"mode": mode, "sweep": {"dir": str(folder)}, "runtime": {"output_dir": str(run)}}
    SweepReport().on_job_end(OmegaConf.create({"hydra": hydra}), job)


def test_each_finished_run_is_in_the_file_at_once(tmp_path, capsys):
    make_run(tmp_path / "seed=1", 0, ["seed=1"], metrics(0.5))
    end_of_job(tmp_path, tmp_path / "seed=1", 0.5)
    assert "finished" in (tmp_path / "sweep.csv").read_text()
    assert (tmp_path / "sweep.png").exists()
    assert not capsys.readouterr().out


def test_a_failed_run_leaves_its_error_and_its_row(tmp_path, capsys):
    make_run(tmp_path / "seed=1", 0, ["seed=1"])
    end_of_job(tmp_path, tmp_path / "seed=1", ValueError("no [such] thing"))
    assert "ValueError: no [such] thing" in (tmp_path / "seed=1" / "failed.txt").read_text()
    assert "this run failed: no [such] thing" in capsys.readouterr().out
    make_run(tmp_path / "seed=2", 1, ["seed=2"], metrics(0.5))
    end_of_job(tmp_path, tmp_path / "seed=2", 0.5)
    assert "failed" in capsys.readouterr().out  # Hydra ends such a sweep with the error, so the table comes here
    assert [run.state for run in read_runs(tmp_path)] == ["failed", "finished"]


def test_a_single_run_is_no_sweep(tmp_path):
    make_run(tmp_path, 0, ["seed=1"], metrics(0.5))
    end_of_job(tmp_path, tmp_path, 0.5, RunMode.RUN)
    assert not (tmp_path / "sweep.csv").exists()

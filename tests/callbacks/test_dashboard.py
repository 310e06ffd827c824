"""What TensorBoard shows of runs, read back from their event files, by its own readers where it decides."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from tensorboard.plugins.hparams.backend_context import Context
from torch import nn

import lab
from lab.callbacks.charts import CHARTS, SECTIONS, layout, logged
from lab.callbacks.dashboard import Board, show_figure, show_layout, show_settings, shown, shown_figure
from lab.curvature.phase import Phase
from lab.probes.batch_sharpness import BatchSharpness
from lab.probes.fisher import Fisher
from lab.probes.linear_stability import LinearStability
from lab.probes.noise import Noise
from lab.probes.sharpness import Sharpness
from lab.probes.spectrum import Spectrum
from lab.run.figures import blank

TICKED = 5
"""Columns of settings, and of metrics, that the table of hyper-parameters shows at once."""
GROUPS = (
    "batch_sharpness",
    "cost",
    "critical_point",
    "error",
    "final",
    "noise",
    "sharpness",
    "spectrum",
    "test",
    "train",
)


def by_number(tag: str) -> list[Any]:
    """The order of the charts: runs of digits by their number, before letters."""
    parts = [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", tag) if part]
    return [(kind, part) if kind == 0 else (1, 0, part) for kind, part in parts]


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0, "images": 0}).Reload()


def board(folder: Path, settings: dict[str, Any], summary: dict[str, Any], *typed: str) -> None:
    """What a run leaves in `folder`, without the run."""
    logger = Board(folder)
    logger.log_metrics({"train/loss": 1.0, "sharpness/lambda_max": 2.0, "cost/sharpness/seconds": 0.1}, step=0)
    show_settings([logger], settings, summary, typed)
    logger.finalize("success")


def table(folder: Path) -> tuple[list[str], list[str]]:
    """The columns of the table of hyper-parameters over all runs in `folder`, in the order of TensorBoard's own code."""
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(folder))
    runs.Reload()
    context, here = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder)))), RequestContext()
    rows = context.hparams_metadata(here, "")
    infos = context.experiment_from_metadata(here, "", True, rows, None)
    return [info.name for info in infos.hparam_infos], [info.name.tag for info in infos.metric_infos]


SETTINGS = {
    "data": "digits",
    "data.batch_size": 32,
    "data.examples": "all",
    "model": "mlp",
    "model.widths": "[32, 32]",
    "loss": "cross_entropy",
    "optimizer": "sgd",
    "optimizer.lr": 0.1,
    "optimizer.nesterov": False,
    "trainer.threads": "auto",
    "probe.sharpness.every": 13,
    "steps": 100,
    "epochs": "None",
    "seed": 0,
}
SUMMARY = {
    "phase": "edge of stability",
    "level": 1.04,
    "last_loss": 0.5,
    "test_loss": 0.7,
    "test_accuracy": 0.9,
    "first_loss": 2.3,
    "entry_step": 60,
    "steps": 100,
    "reason": "",
}


def test_the_charts_begin_with_train_and_sharpness_and_end_with_costs_and_errors() -> None:
    in_order = sorted((shown(f"{group}/x") for group in GROUPS), key=by_number)
    names = [tag.partition("_")[2].removesuffix("/x") for tag in in_order]
    assert names[:3] == ["train", "sharpness", "test"]
    assert names[-3:] == ["final", "cost", "error"]
    assert set(names) == set(GROUPS)
    figures = [shown_figure("figures/edge"), shown_figure("batch_landscape/planes")]
    assert figures == sorted(figures) and shown("spectrum/trace") < figures[0]


def test_tags_keep_their_names_behind_the_number_and_no_two_become_one() -> None:
    tags = [f"{group}/{name}" for group in GROUPS for name in ("loss", "converged", "trace_converged", "lambda_2")]
    numbered = [shown(tag) for tag in tags]
    assert len(set(numbered)) == len(tags)
    assert all(name.endswith(tag) for name, tag in zip(numbered, tags, strict=True))
    assert shown("spectrum/trace_converged") == "12_error/spectrum/trace_converged"


def test_a_run_leaves_one_event_file_in_its_own_folder_which_names_it(tmp_path: Path) -> None:
    for name in ("optimizer.lr=0.1", "optimizer.lr=$HOME,~"):  # nothing in it is a variable
        board(tmp_path / "sweep" / name, SETTINGS, SUMMARY)
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(tmp_path / "sweep"))
    assert set(runs.Runs()) == {"optimizer.lr=0.1", "optimizer.lr=$HOME,~"}
    for folder in (tmp_path / "sweep").iterdir():
        assert [file.name.partition(".tfevents")[0] for file in folder.iterdir()] == ["events.out"]


def test_what_was_logged_from_the_step_of_a_resumption_on_is_taken_back(tmp_path: Path) -> None:
    for begin, end, value in ((0, 9, 1.0), (5, 12, 2.0)):
        logger = Board(tmp_path, begin=begin)
        for step in range(begin, end):
            logger.log_metrics({"train/loss": value, "epoch": 0.0}, step=step)
        logger.finalize("failed")
        first = next(tmp_path.glob("events.*"))
        if begin == 0:  # event files are read in the order of the second in their names
            first.rename(first.with_name(re.sub(r"tfevents\.\d+", "tfevents.1", first.name)))
    events = read(tmp_path)
    assert events.Tags()["scalars"] == ["1_train/loss"]
    assert [(e.step, e.value) for e in events.Scalars("1_train/loss")] == [
        (step, 1.0 if step < 5 else 2.0) for step in range(12)
    ]


def test_a_run_that_is_made_longer_has_one_row_with_what_it_came_to_last(tmp_path: Path) -> None:
    for begin, end, phase in ((0, 30, "progressive sharpening"), (30, 60, "edge of stability")):
        logger = Board(tmp_path / "run", begin=begin)
        for step in range(begin, end):
            logger.log_metrics({"train/loss": 1.0 / (1 + step)}, step=step)
        summary = SUMMARY | {"phase": phase, "steps": end, "last_loss": 1.0 / end}
        show_settings([logger], SETTINGS | {"steps": end}, summary)
        logger.finalize("success")
        [first] = (tmp_path / "run").glob("events.*") if begin == 0 else [None]
        if first is not None:  # event files are read in the order of the second in their names
            with first.open("ab") as file:
                file.write(b"\x09\0\0_hparams_/")  # cut off
            before = first.rename(first.with_name(re.sub(r"tfevents\.\d+", "tfevents.1", first.name))).stat().st_size
    events = read(tmp_path / "run")
    start = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = metadata.parse_session_start_info_plugin_data(start).hparams
    assert (row["phase at the end"].string_value, row["steps"].number_value) == ("edge of stability", 60)
    assert [(e.step, e.value) for e in events.Scalars("10_final/loss")] == [(60, np.float32(1 / 60))]
    assert [event.step for event in events.Scalars("1_train/loss")] == list(range(60))
    old = next((tmp_path / "run").glob("*tfevents.1.*")).read_bytes()
    assert 0 < len(old) < before and old.count(b"_hparams_/") == 1 and old.endswith(b"\x09\0\0_hparams_/")


def test_the_writer_stays_open_over_the_end_of_a_fit_until_the_run_is_over(tmp_path: Path) -> None:
    logger = Board(tmp_path)
    logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finalize("success")  # Lightning, as the fit ends
    show_figure(logger, "figures/edge", blank(1, 1), 1)
    show_figure(logger, "spectrum/density", blank(1, 1), 1)
    show_settings([logger], SETTINGS, SUMMARY)
    logger.finalize("success")
    assert len(list(tmp_path.iterdir())) == 1
    events = read(tmp_path)
    assert events.Tags()["images"] == ["5_figures/edge", "6_figures_of_probes/spectrum_density"]
    assert [event.step for event in events.Scalars("10_final/loss")] == [100]


@pytest.mark.parametrize("swept", [["optimizer.lr"], ["model.widths", "optimizer"], ["seed", "optimizer/noise"]])
def test_the_table_ticks_what_differs_then_batch_size_and_learning_rate(swept: list[str], tmp_path: Path) -> None:
    """Also for a choice of cards of which one has no settings at all."""
    for i in range(3):
        values = {name: f"choice{i}" if isinstance(SETTINGS.get(name, ""), str) else 0.1 * i for name in swept}
        kept = {name: value for name, value in values.items() if name in SETTINGS}
        board(tmp_path / str(i), SETTINGS | kept, SUMMARY, *(f"{name}={value}" for name, value in values.items()))
    settings, metrics = table(tmp_path)
    names = {"optimizer.lr": "Learning rate", "optimizer": "Optimizer"}
    assert set(settings[: len(swept)]) == {names.get(name, name) for name in swept}
    assert {"Batch size", "Learning rate"} <= set(settings[:TICKED])
    assert metrics[:TICKED] == [f"10_final/{name}" for name in ("accuracy_test", "level", "loss", "loss_test", "phase")]
    assert not [name for name in settings if name.startswith(("probe", "trainer", "epochs"))]  # says nothing of the run


def test_the_table_has_what_differs_between_runs_of_several_commands_and_of_cards_with_other_settings(
    tmp_path: Path,
) -> None:
    board(tmp_path / "sgd", SETTINGS, SUMMARY)
    board(tmp_path / "adam", SETTINGS | {"optimizer": "adam", "optimizer.beta2": 0.99}, SUMMARY)
    board(tmp_path / "wide", SETTINGS | {"model.widths": "[64]"}, SUMMARY | {"phase": None}, "trainer.threads=1")
    settings, _ = table(tmp_path)
    assert settings[:2] == ["Optimizer", "model.widths"]
    assert {"optimizer.beta2", "trainer.threads"} <= set(settings)


def test_a_run_has_its_phase_in_words_and_as_a_number_and_a_diverged_one_has_failed(tmp_path: Path) -> None:
    states = {}
    for phase in ("edge of stability", "diverged"):
        board(tmp_path / phase, SETTINGS, SUMMARY | {"phase": phase, "level": None})
        events = read(tmp_path / phase)
        content = {tag: events.SummaryMetadata(tag).plugin_data.content for tag in events.summary_metadata}
        begin = metadata.parse_session_start_info_plugin_data(content["_hparams_/session_start_info"])
        assert begin.hparams["phase at the end"].string_value == phase
        assert begin.hparams["Learning rate"].number_value == 0.1
        assert begin.hparams["optimizer.nesterov"].string_value == "false"
        assert "_hparams_/experiment" not in content  # with it TensorBoard shows the columns of one run for all
        end = metadata.parse_session_end_info_plugin_data(content["_hparams_/session_end_info"])
        states[phase] = end.status
        assert [event.value for event in events.Scalars("10_final/phase")] == [Phase(phase).code]
        assert "10_final/level" not in events.Tags()["scalars"]  # what was not measured
    assert states == {"edge of stability": api_pb2.STATUS_SUCCESS, "diverged": api_pb2.STATUS_FAILURE}
    assert plugin_data_pb2.HParamsPluginData.FromString(content["_hparams_/session_end_info"]).version == 0


def test_every_chart_draws_something_in_a_run_with_its_probe_and_three_curves_at_most(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 4), torch.arange(60) % 3
    model = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), nn.Linear(2, 3))
    bench = lab.Bench(
        model, nn.functional.cross_entropy, (x, y), torch.optim.Adam(model.parameters(), lr=0.1), batch_size=10
    )
    probes = [
        Sharpness(k=3, bottom=True),
        BatchSharpness(batches=4),
        Spectrum(k=2, bottom=2, steps=5, vectors=2),
        Noise(k=2, pairs=1),
        Fisher(k=1, vectors=5),
        LinearStability(steps=4, replicas=2),
    ]
    nn.functional.cross_entropy(model(x), y).backward()
    [optimizer] = bench.optimizers
    optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of so few products and batches
        measured, failures = bench.measure(probes, bench.snapshot(step=1, batch=torch.arange(10)))
    assert not failures
    numbers = {tag: value for tag, value in measured.items() if not isinstance(value, Figure | torch.Tensor)}
    logger = Board(tmp_path)
    show_layout([logger], probes, preconditioned=True, tested=True)
    logger.log_metrics({f"{group}/{name}": 0.5 for group in ("train", "test") for name in ("loss", "accuracy")}, 1)
    logger.log_metrics(numbers, 1)
    logger.finalize("failed")
    events = read(tmp_path)
    page = layout_pb2.Layout()
    page.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [section.title for section in page.category] == list(SECTIONS)
    titles = [chart.title for section in page.category for chart in section.chart]
    assert titles == [title for names in SECTIONS.values() for name in names for title in CHARTS[name]]
    for section in page.category:
        for chart in section.chart:
            drawn = {t for t in events.Tags()["scalars"] for tag in chart.multiline.tag if re.match(tag, t)}
            assert 1 <= len(drawn) <= 3, chart.title
            assert all(tag.startswith("^") and tag.endswith("$") for tag in chart.multiline.tag)
    ratio = events.Scalars("2_sharpness/ratio")[0].value
    assert events.Scalars("13_lines/log10_ratio")[0].value == pytest.approx(math.log10(ratio), rel=1e-5)
    assert events.Scalars("13_lines/edge")[0].value == 1.0


def test_charts_that_would_stay_empty_are_left_out() -> None:
    page = layout(logged([Sharpness()], preconditioned=False, tested=False), shown)
    assert list(page) == ["Edge of stability", "Loss"]
    assert not [title for charts in page.values() for title in charts if "test" in title or "precond" in title]
    assert layout(logged([], preconditioned=True, tested=True), shown).keys() == {"Loss"}


@pytest.mark.parametrize("count", [1, 2, 9, 60, 400])
def test_the_line_at_the_edge_is_whole_in_sight_and_takes_no_spike_out_of_it(count: int, tmp_path: Path) -> None:
    """By what TensorBoard leaves out of a chart: values beyond the quantiles of 5 and 95 %."""
    logger = Board(tmp_path)
    for step in range(count):
        logger.log_metrics({"sharpness/ratio": 0.1 + 1e-4 * step}, step=step)
    show_settings([logger], SETTINGS, SUMMARY | {"last_ratio": 0.1, "steps": count})
    logger.finalize("success")
    events = read(tmp_path)
    line = events.Scalars("13_lines/edge")
    assert (line[0].step, line[-1].step) == (0, count)
    values = [event.value for event in [*line, *events.Scalars("2_sharpness/ratio")]]
    assert np.quantile(values, 0.95) == 1 or count == 1
    assert len(line) <= 2 + count / 8


def test_a_ratio_that_has_no_logarithm_has_no_point(tmp_path: Path) -> None:
    logger = Board(tmp_path)
    logger.log_metrics({"sharpness/ratio": -0.5}, step=3)
    logger.finalize("failed")
    assert set(read(tmp_path).Tags()["scalars"]) == {"2_sharpness/ratio", "13_lines/edge"}


def test_a_logger_of_somebody_else_keeps_the_names_of_the_tags(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="", default_hp_metric=False)
    show_figure(logger, "spectrum/density", blank(1, 1), 1)
    show_layout([logger], [Sharpness()], preconditioned=False, tested=False)
    show_settings([logger], SETTINGS, SUMMARY)
    logger.finalize("success")
    events = read(tmp_path)
    assert events.Tags()["images"] == ["spectrum/density"]
    assert "final/loss" in events.Tags()["scalars"]
    page = layout_pb2.Layout()
    page.ParseFromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert "^sharpness/ratio$" in page.category[0].chart[0].multiline.tag

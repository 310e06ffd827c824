"""A table of many runs: what is found, how it stands, what is chosen, and what becomes of folders of strangers."""

import csv
import fcntl
import json
import math
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import made_run, many_runs, write

import lab
from lab.compare import Run, Runs, runs
from lab.compare.metrics import LONGEST
from lab.compare.strangers import MAX_JSON, MAX_METRICS, Unreadable, shown
from lab.settings import SettingError


def rates(root: Path) -> Runs:
    """Three rates, two seeds of the last one."""
    for lr, seed, ratio in ((0.1, 0, 0.5), (0.2, 0, 0.9), (0.4, 0, 1.0), (0.4, 1, 1.2)):
        series = {"sharpness/ratio": [0.0] * 6 + [ratio] * 2, "train/loss": [2.0, 1.0], "error/x": 0.1}
        made_run(root / f"lr={lr},seed={seed}", {"optimizer.lr": lr, "seed": seed}, series, summary={"entry_step": 7})
    return runs(root)


def test_a_run_is_its_settings_its_results_and_its_origin(tmp_path: Path) -> None:
    run = rates(tmp_path)[0]
    assert (run.name, run.status, run.step) == ("lr=0.1,seed=0", "finished", 100)
    assert {"optimizer": "sgd", "optimizer.lr": 0.1, "data.batch_size": 32}.items() <= run.settings.items()
    assert {"phase": "below the edge", "entry_step": 7, "train/loss": 1.0, "late/sharpness/ratio": 0.5}.items() <= (
        run.results.items()
    )
    assert "late/error/x" not in run.results
    assert run.origin["kind"] == "train" and run.origin["git"] == "fb2dfe81fad2" and run.origin["seconds"] == 1.5
    assert run.get("machine") == "Linux-x86_64, 2 cores" and run.get("data") == "65e5b4619795efb4"
    assert [*run.series["train/loss"][0]] == [0, 50]


def test_runs_are_found_below_folders_and_by_globs_once_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates(tmp_path / "a" / "sweep")
    made_run(tmp_path / "b" / "lr=[1]", {"optimizer.lr": 1.0})
    made_run(tmp_path / "a" / "sweep" / "lr=0.1,seed=0" / "measure" / "last")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for places in (["**"], ["a", "b"], [tmp_path], ["a/**", "b/**", "b/lr=[1]"], ["*/*"], ["a/sweep/*", "**/lr=[[]1]"]):
        assert len(found := runs(*places)) == 5, places
        assert not found.left_out
    assert [run.name for run in runs("**/*seed=1")] == ["lr=0.4,seed=1"]
    assert [run.name for run in runs("a/**/lr=0.2*")] == ["lr=0.2,seed=0"]


def test_conditions_choose_runs_by_fields_settings_and_results(tmp_path: Path) -> None:
    made = rates(tmp_path)
    made_run(tmp_path / "lost", {"optimizer.lr": 9.0}, status="diverged")
    made = runs(tmp_path)
    choose: list[tuple[int, Runs]] = [
        (4, made.where("status=finished")),
        (2, made.where("lr<=0.2")),
        (2, made.where("optimizer.lr = 0.40")),
        (1, made.where(lr=0.4, seed=1)),
        (3, made.where("lr!=0.4")),
        (2, made.where("sharpness/ratio>=1")),
        (2, made.where("late/sharpness/ratio>.95")),
        (1, made.where(lambda run: run.diverged)),
        (5, made.where(optimizer="sgd")),
        (5, made.where(widths=[8, 8])),
        (0, made.where(widths=(8,))),
        (1, made.where("entry_step=null")),
    ]
    assert [len(found) for _, found in choose] == [count for count, _ in choose]
    assert len(Runs().where("anything=1").sort("x")) == 0


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ("rate=1", "no run has rate; "),
        ("optimizer.lrr=1", "no run has optimizer.lrr; did you mean optimizer.lr?"),
        ("optimizer.l=1", "no run has optimizer.l; did you mean optimizer.lr?"),
        ("lr<small", "lr<small: expected a number after <"),
        ("finished", "finished: expected a condition such as optimizer.lr<=0.1 or status=finished"),
        ("size=1", "size may be data.size, model.size; give one of them"),
        ("x\x1b[31m", "x\\x1b[31m: expected a condition"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused_in_one_line(tmp_path: Path, condition: str, says: str) -> None:
    made_run(tmp_path / "a", {"data.size": 1, "model.size": 2})
    with pytest.raises(SettingError) as refused:
        runs(tmp_path).where(condition)
    assert str(refused.value).startswith(says)


def test_rows_are_sorted_by_numbers_then_texts_and_what_is_missing_comes_last(tmp_path: Path) -> None:
    for name, size in (("a", 100), ("b", 20), ("c", "full"), ("d", "other"), ("e", None)):
        made_run(tmp_path / name, {"data.batch_size": size})
    made = runs(tmp_path)
    assert [run.name for run in made.sort("batch_size")] == ["b", "a", "c", "d", "e"]  # full: 300 examples
    assert [run.name for run in made.sort("-batch_size")][-1] == "e"


def test_means_over_seeds_are_of_runs_that_have_all_else_in_common(tmp_path: Path) -> None:
    made = rates(tmp_path)
    assert made.varying == ["optimizer.lr", "seed"]
    groups = made.over_seeds()
    assert [len(group) for group in groups] == [1, 1, 2]
    mean = groups[2].mean("late/sharpness/ratio")
    assert (mean.value, mean.n) == (pytest.approx(1.1), 2) and mean.error == pytest.approx(0.1)


def test_settings_of_a_card_that_only_some_runs_have_do_not_count_as_varying(tmp_path: Path) -> None:
    for name, values in (
        ("a", {"optimizer.momentum": 0.9}),
        ("b", {"optimizer._target_": "lab.optim.optimizers.Adam"}),
    ):
        made_run(tmp_path / name, values)
    assert runs(tmp_path).varying == ["optimizer"]


def test_the_csv_file_has_every_column_and_no_formula(tmp_path: Path) -> None:
    made_run(tmp_path / "runs" / "=HYPERLINK(1)", {"model.activation": "=1+1"}, {"train/loss": -0.5})
    file = runs(tmp_path / "runs").to_csv(tmp_path / "out" / "table.csv")
    [row] = csv.DictReader(file.open())
    assert row["name"] == "'=HYPERLINK(1)" and row["model.activation"] == "'=1+1"
    assert row["train/loss"] == "-0.5" and row["entry_step"] == "" and row["status"] == "finished"
    with pytest.raises(SettingError, match="cannot be written"):
        runs(tmp_path / "runs").to_csv(file / "below")


def test_a_frame_has_the_rows_where_pandas_is_there_and_one_line_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rates(tmp_path)

    class Pandas:
        DataFrame = staticmethod(lambda rows: rows)

    monkeypatch.setitem(sys.modules, "pandas", Pandas)
    assert made.frame(["name", "lr"])[0] == {"name": "lr=0.1,seed=0", "optimizer.lr": 0.1}
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingError, match=r"^runs\.frame\(\) needs pandas: pip install pandas; "):
        made.frame()


def test_a_notebook_is_shown_a_table_in_which_names_are_text(tmp_path: Path) -> None:
    made_run(tmp_path / "<script>", {"model.activation": "\x1b[31m"})
    made_run(tmp_path / "b", {"model.activation": "tanh"})
    (tmp_path / "<b>").mkdir()
    made = lab.runs(tmp_path)
    assert "<script>" not in made._repr_html_() and "&lt;b&gt; holds no run" in made._repr_html_()
    assert "\x1b" not in str(made) and "\\x1b[31m" in str(made)
    assert str(Runs()) == "no runs"


def test_what_lab_measure_found_in_a_checkpoint_belongs_to_its_run(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", {}, {"sharpness/ratio": 0.5, "train/loss": 1.0})
    for step in (60, 100):
        place = made_run(
            run / "measure" / f"{step}", {}, {"noise/trace": [float(step)], "train/loss": [9.0]}, step=step
        )
        write(place, "provenance", {"checkpoint": "last.ckpt", "settings": {}})
    (run / "measure" / "damaged").mkdir()
    write(run / "measure" / "damaged", "status", [])
    [made] = runs(tmp_path)
    assert [one.origin["kind"] for one in made.measured] == ["measure"] * 2
    assert made.results["noise/trace"] == 100.0 and made.results["train/loss"] == 1.0


def test_how_a_run_stands(tmp_path: Path) -> None:
    mine = {"pid": os.getpid(), "host": socket.gethostname()}
    made_run(tmp_path / "gone", status="running")
    made_run(tmp_path / "elsewhere", status="running", host="node7")
    made_run(tmp_path / "stopped", status="failed", reason="interrupted")
    made_run(tmp_path / "broken", status="failed", reason="ValueError: no")
    here = made_run(tmp_path / "here", status="running", step=42, **mine)
    with (here / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        stands = {run.name: (run.status, run.reason) for run in runs(tmp_path)}
        with pytest.raises(OSError):
            fcntl.flock((here / ".lock").open("a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert stands == {
        "gone": ("interrupted", "its process is gone"),
        "elsewhere": ("running", "on node7"),
        "stopped": ("interrupted", "interrupted"),
        "broken": ("failed", "ValueError: no"),
        "here": ("running", ""),
    }
    assert Run.read(here).status == "interrupted", "the lock is free"
    (here / "status.json").unlink()
    assert (Run.read(here).status, Run.read(here).reason) == ("interrupted", "it has no status.json")
    assert repr(Run.read(here)) == f"Run({here}: interrupted, step 0)"
    assert Run.read(tmp_path / "not there", ["a=1"]).status == "missing"
    (tmp_path / "new" / ".hydra").mkdir(parents=True)
    (tmp_path / "new" / ".hydra" / "overrides.yaml").write_text("- optimizer.lr=0.1\n- 'probe=[noise]'\n")
    [new] = runs(tmp_path / "new")
    assert (new.status, new.settings) == ("missing", {"optimizer.lr": "0.1", "probe": "[noise]"})


def test_a_half_written_line_is_passed_over_and_the_rest_is_read(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a", {}, {"train/loss": [2.0, 1.0]}, status="running")
    bad = ["5", "[]", "null", "{}", '{"step": 1, "tag": 3, "value": 1}', '{"step": 1.5, "tag": "x", "value": 1}', "",
           '{"step": 3, "tag": "x", "value": NaN}', '{"step": 3, "tag": "x", "value": 1' + "0" * 500 + "}",
           '{"step": 3, "tag": "x", "value": true}', '{"step": -1, "tag": "x", "value": 1}', "[" * 100_000,
           '{"step": 3, "tag": "' + "x" * LONGEST + '", "value": 1}', "\x1b[2J\xff"]  # fmt: skip
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n".join([*bad, '{"step": 7, "tag": "train/loss", "value": 0.5}', '{"step": 8, "ta']))
    read = Run.read(run)
    assert {tag: [*values] for tag, (_, values) in read.series.items()} == {"train/loss": [2.0, 1.0, 0.5]}
    assert read.passed_over == len(bad) + 1


def fifo(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")


def link(name: str, target: str | Path) -> Callable[[Path], None]:
    def make(run: Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)

    return make


def text(name: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(content if isinstance(content, bytes) else content.encode()) and None


def large(name: str, size: int) -> Callable[[Path], None]:
    return lambda run: os.truncate(run / name, size)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a device": (link("metrics.jsonl", "/dev/zero"), "metrics.jsonl is a link that leads out of the folder"),
    "a link outside": (link("summary.json", "/etc/hostname"), "summary.json is a link that leads out of the folder"),
    "a link to nothing": (link("status.json", "nothing"), "status.json cannot be read (No such file or directory)"),
    "a link to itself": (link("status.json", "status.json"), "status.json cannot be read ("),
    "a pipe": (fifo, "metrics.jsonl is no regular file"),
    "a folder for a file": (
        lambda run: ((run / "status.json").unlink(), (run / "status.json").mkdir()),
        "status.json is no regular file",
    ),
    "huge metrics": (large("metrics.jsonl", MAX_METRICS + 1), "metrics.jsonl is too large: 1.07e+09 bytes"),
    "a huge summary": (large("summary.json", MAX_JSON + 1), "summary.json is too large: 8.39e+06 bytes"),
    "binary metrics": (text("metrics.jsonl", b"\x7fELF\0\0\0"), "metrics.jsonl is binary"),
    "a summary that is a list": (text("summary.json", "[1, 2]"), "summary.json holds a list, not an object"),
    "a status that is a number": (text("status.json", "5"), "status.json holds a int, not an object"),
    "no JSON": (text("provenance.json", "{"), "provenance.json is no JSON"),
    "no text": (text("provenance.json", b"\xff\xfe{"), "provenance.json is no JSON"),
    "deep JSON": (text("summary.json", '{"a":' * 100_000), "summary.json is nested too deep"),
    "a number of many digits": (text("summary.json", '{"a": 1' + "0" * 10_000 + "}"), "summary.json is no JSON"),
    "very many settings": (
        text("provenance.json", json.dumps({"settings": {str(i): i for i in range(6000)}})),
        "has more than 5000 settings or results",
    ),
}
"""What may be wrong with a folder, and the one line that is said of it."""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_or_hostile_folder_is_left_out_and_named(tmp_path: Path, name: str) -> None:
    make, reason = HOSTILE[name]
    made_run(tmp_path / "sound", {}, {"train/loss": 1.0})
    make(made_run(tmp_path / "hostile", {}, {"train/loss": 1.0}))
    found = runs(tmp_path)
    assert [run.name for run in found] == ["sound"]
    [(path, why)] = found.left_out
    assert path == tmp_path / "hostile" and why.startswith(reason) and "\n" not in why


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to("gone")
    found = runs(tmp_path / "empty", tmp_path / "foreign", tmp_path / "file", tmp_path / "nowhere", tmp_path / "typo/*")
    assert not found
    assert [(path.name, why) for path, why in found.left_out] == [
        ("empty", "holds no run"),
        ("foreign", "holds no run"),
        ("file", "is a file, not a run folder"),
        ("nowhere", "is a link that leads nowhere"),
        ("*", "there is no such folder"),
    ]


def test_names_that_no_file_has_are_named() -> None:
    for name in ("x" * 5000, "a\0b", "~nobody-at-all/runs"):
        found = runs(name)
        assert not found and len(found.left_out) == 1 and "\n" not in str(found)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_rights_is_named(tmp_path: Path) -> None:
    run = made_run(tmp_path / "a")
    run.chmod(0)
    try:
        assert runs(tmp_path).left_out[0][1].startswith("cannot be read")
    finally:
        run.chmod(0o700)


def test_odd_values_stay_values_and_nothing_is_resolved_or_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    values = {
        "model._target_": "os.system",
        "name": "${oc.env:SECRET}",
        "x": math.inf,
        "y": 10**300,
        "z": "a\x1bb\nc\u202e",
    }
    run = made_run(tmp_path / "a\x1b[31m", values)
    write(run, "summary", {"phase": ["a"], "big": 10**400, "nan": math.nan, "values": {"found": 1}, "t": "<b>" * 9000})
    read = Run.read(run)
    assert read.name == "a\\x1b[31m"
    assert read.settings["model"] == "os.system" and read.settings["name"] == "${oc.env:SECRET}"
    assert read.settings["z"] == "a\\x1bb\\nc\\u202e" and math.isnan(read.number("x"))
    assert read.results["big"] == math.inf and read.results["found"] == 1 and "phase" not in read.results
    assert len(str(read.results["t"])) < 5000
    assert "\x1b" not in str(runs(tmp_path).rows())


def test_the_path_of_a_file_that_changes_is_no_way_out(tmp_path: Path) -> None:
    """What lies behind a link within the folder is read; the folder itself may be reached by one."""
    run = made_run(tmp_path / "run", {}, {"train/loss": 1.0})
    (run / "metrics.jsonl").rename(run / "kept.jsonl")
    (run / "metrics.jsonl").symlink_to("kept.jsonl")
    (tmp_path / "link").symlink_to(run)
    assert Run.read(tmp_path / "link").results["train/loss"] == 1.0
    (run / "arrays").mkdir()
    with pytest.raises(Unreadable):
        Run.read(run / "metrics.jsonl")


def test_many_runs_are_the_same_for_the_same_seed_and_are_all_read(tmp_path: Path) -> None:
    for place in ("a", "b"):
        many_runs(tmp_path / place, runs=20, lines=200)
    one, other = runs(tmp_path / "a"), runs(tmp_path / "b")
    assert len(one) == 20 and not one.left_out
    assert [run.results for run in one] == [run.results for run in other]
    assert {len(run.series) for run in one} == {20}


def test_texts_are_shown_on_one_line() -> None:
    assert shown("a\ud800b") == "a\\ud800b" and shown("\x9b31m") == "\\x9b31m"
    assert len(shown("x" * 10**6)) < 5000

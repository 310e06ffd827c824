"""`python -m lab.report`: one page out of many runs, the same as Markdown, a table; slips in one line; names as text."""

import csv
import json
import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_runs import made_run, write

from lab.report import main
from lab.report.build import gather
from lab.report.content import Report
from lab.report.settings import ReportSettings, ReportWords, split
from lab.settings import knobs

ATTACK = "<script>alert(1)</script>"
VOID = ("meta", "br", "input", "link", "img")
"""Elements of HTML without an end."""
SERIES = {
    "train/loss": [2.0, 1.0, 0.5, 0.4],
    "test/accuracy": [0.1, 0.5, 0.8, 0.9],
    "sharpness/lambda_max": [4.0, 8.0, 9.0, 9.0],
}


TAGS = "tags=[sharpness/ratio,phase]"
"""Few figures, which take most of the time."""


def sweep(root: Path) -> Path:
    """Two rates, three batch sizes, two seeds; the larger rate is at the edge, with batches of 8 it diverges; one run is
    under way elsewhere, and one failed.
    """
    for lr in (0.1, 0.4):
        for size in (8, 32, 128):
            for seed in (0, 1):
                lost = (lr, size) == (0.4, 8)
                ratio = [0.2, lr * 2, lr * 2.6, lr * 2.6 + 0.01 * seed]
                words = {"optimizer.lr": lr, "data.batch_size": size, "seed": seed}
                made_run(
                    root / ",".join(f"{name}={value}" for name, value in words.items()),
                    words,
                    SERIES | {"sharpness/ratio": ratio},
                    status="diverged" if lost else "finished",
                    step=30 if lost else 100,
                    summary={} if lost else {"phase": "edge of stability" if lr > 0.3 else "below the edge"},
                )
    for name, size, status, more in (
        ("going", 512, "running", {"host": "elsewhere"}),
        ("broken", 1024, "failed", {"reason": "no memory"}),
    ):
        made_run(root / name, {"optimizer.lr": 0.1, "data.batch_size": size}, SERIES, status=status, step=40, **more)
    return root


def report(*words: object, capsys: pytest.CaptureFixture[str] | None = None) -> int:
    """The exit code of the command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lab.report", *map(str, words)])
        try:
            main()
        except SystemExit as stopped:
            return int(str(stopped.code))
    return 0


class Read(HTMLParser):
    """A page as its elements, with what was not closed, or closed without being open."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.wrong = list[str](), list[str]()
        self.elements, self.texts = list[tuple[str, dict[str, str | None]]](), list[str]()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        self.wrong += [f"{tag} has {name} twice" for name in names if names.count(name) > 1]
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, name: str) -> list[str]:
        """The values of an attribute."""
        return [attributes[name] or "" for _, attributes in self.elements if name in attributes]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with its report."""
    root = sweep(tmp_path_factory.mktemp("outputs") / "sweep")
    assert report(root, TAGS) == 0
    return root


@pytest.fixture(scope="module")
def page(made: Path) -> Read:
    return Read((made / "report/index.html").read_text())


def require_sound(page: Read, folder: Path) -> None:
    """A page that is well formed, fetches nothing, runs one script only, and leads to rows of its own and files below."""
    assert not page.wrong and not page.open
    ids = page.all("id")
    assert len(ids) == len(set(ids))
    assert not page.all("src") and not page.of("link") and not page.of("iframe") and not page.of("base")
    for address in page.all("href"):
        assert address.startswith(("#", "./", "../", "table.csv", "data:image/png;base64,")), address[:99]
        if not address.startswith("data:"):
            assert (
                address[1:] in ids
                if address.startswith("#")
                else (folder / unquote(address, errors="surrogateescape")).exists()
            ), address
    for value in [*page.all("style"), *page.all("clip-path"), *page.all("fill")]:
        assert all(name.strip("#)") in ids for name in re.findall(r"url\((#[^)]*\))", value))
        assert "url(" not in re.sub(r"url\(#[^)]*\)", "", value)
    assert len(page.of("script")) == 1
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]


def test_a_page_is_well_formed_fetches_nothing_and_leads_nowhere_but_to_its_runs(made: Path, page: Read) -> None:
    require_sound(page, made / "report")
    [policy] = [a["content"] for a in page.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy
    script = re.findall(r"<script>(.*?)</script>", (made / "report/index.html").read_text(), re.S)
    assert f"'sha256-{b64encode(sha256(script[0].encode()).digest()).decode()}'" in policy
    style = re.findall(r"<style>(.*?)</style>", (made / "report/index.html").read_text(), re.S)
    assert "url(" not in style[0] and "@import" not in style[0]
    assert "://" not in page.text


def test_the_answer_comes_first(page: Read) -> None:
    for text in (
        "14 runs: mlp on digits by sgd, for 100 steps.",
        "They differ in optimizer.lr (0.1 and 0.4), data.batch_size (8, 32, 128, 512 and 1024) and seed (2 of them).",
        "2 of 14 diverged, at step 30: lr=0.4, batch_size=8.",
        "1 of 14 is running, at step 40 (on elsewhere)",
        "1 of 14 is failed, at step 40 (no memory)",
        "4 of the 10 runs that did not diverge ended at the edge of stability or past it (lambda_max at least 0.95 of its "
        "threshold, mean over the last quarter): all with optimizer.lr >= 0.4.",
        "Phases at the end: 6 below the edge, 4 edge of stability and 2 diverged.",
    ):
        assert text in page.text


def test_every_cell_of_a_diagram_leads_to_the_rows_of_its_runs(made: Path, page: Read) -> None:
    links = [a for a in page.of("a") if (a["href"] or "").startswith("#")]
    assert {len((a["data-runs"] or "").split()) for a in links} == {1, 2}
    rows = [attributes["id"] for attributes in page.of("tr") if "id" in attributes]
    assert {name for a in links for name in (a["data-runs"] or "").split()} == {*rows}
    assert "batch_size=8, lr=0.4: diverged (seed 0, 1)" in page.text
    folders = {unquote(address) for address in page.all("href") if address.startswith("../")}
    assert folders == {f"../{run.name}" for run in made.iterdir() if run.name != "report"}


def test_what_runs_come_from_is_told(page: Read) -> None:
    for text in (
        "65e5b4619795efb4",
        "fb2dfe81fad2",
        "Linux-x86_64, 2 cores",
        "(8 of 14 runs)",
        "21 in all, 2 of the longest",
    ):
        assert text in page.text
    assert "python -m lab.train optimizer.lr=0.4 data.batch_size=128 seed=1" in page.text


def test_greys_follow_light_and_dark_and_what_lies_on_colour_does_not(made: Path, page: Read) -> None:
    text = (made / "report/index.html").read_text()
    figures = re.findall(r"<svg.*?</svg>", text, re.S)
    assert figures and all("--c000000:color-mix" in figure for figure in figures)
    fixed = re.findall(r'<g id="figure1-fixed-\d+" fill="#000000">(.*?)</g>', figures[0], re.S)
    assert fixed and not any("var(--" in inner for inner in fixed)


def test_the_same_runs_make_the_same_bytes_from_wherever_they_are_reported(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files() -> dict[Path, bytes]:
        return {f: f.read_bytes() for f in (made / "report").rglob("*") if f.is_file() and f.suffix != ".csv"}

    monkeypatch.chdir(made.parent)
    before = files()
    (made / "report/figures/report-diagram-99.png").write_bytes(b"of an earlier report")
    assert report("sweep", TAGS) == 0
    assert files() == before


def test_markdown_is_the_same_with_its_figures_beside_it(made: Path, page: Read) -> None:
    text = (made / "report/report.md").read_text()
    figures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(figures) == len(page.of("svg"))
    assert all((made / "report" / figure).read_bytes().startswith(b"\x89PNG") for figure in figures)
    for address in re.findall(r"\]\(<(.*?)>\)", text):
        assert (made / "report" / unquote(address)).is_dir()
    assert "- 14 runs: mlp on digits by sgd, for 100 steps." in text
    assert text.count("\n| [") == 14 and "<script" not in text


def test_the_table_has_every_run(made: Path) -> None:
    rows = list(csv.DictReader((made / "report/table.csv").open()))
    assert len(rows) == 14
    assert {row["status"] for row in rows} == {"finished", "diverged", "running", "failed"}
    assert rows[0]["optimizer.lr"] == "0.1"


def test_the_state_of_a_sweep_is_printed(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(made, f"out={tmp_path / 'r'}", "tags=[train/loss]") == 0
    printed = capsys.readouterr()
    assert "10 finished, 2 diverged, 1 running, 1 failed." in printed.out
    assert re.search(r"batch_size=512.* running +40 +0.4", printed.out)
    assert f"{tmp_path / 'r'}/index.html" in printed.out and not printed.err


CHANGES: dict[str, tuple[str, Callable[[Report], object]]] = {
    "where": ("where=[optimizer.lr>0.2,status=finished]", lambda made: [row.status for row in made.rows]),
    "sort": ("sort=-data.batch_size", lambda made: [row.name for row in made.rows]),
    "x": ("x=seed", lambda made: made.chapters[0].heading),
    "y": ("y=seed", lambda made: made.chapters[0].heading),
    "tags": ("tags=[sharpness/lambda_max]", lambda made: [p.heading for c in made.chapters for p in c.pictures]),
}
"""A value of every setting but `out`, and what it changes in a report."""


def test_every_setting_is_read(made: Path) -> None:
    assert {*CHANGES, "out"} == {*knobs(ReportSettings)}
    usual = gather(ReportWords.of([str(made)]), made / "report")[1]
    for word, seen in CHANGES.values():
        assert seen(gather(ReportWords.of([str(made), word]), made / "report")[1]) != seen(usual), word
    assert CHANGES["sort"][1](gather(ReportWords.of([str(made), "sort=-lr"]), made)[1])[0].startswith(
        "optimizer.lr=0.4,data.batch_size=8,"
    )  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["empty"], "no run is there: empty holds no run"),
        (["file"], "no run is there: file is a file, not a run folder"),
        (["empty", "nowhere/*"], "no run is there: "),
        (
            ["optimizer.lr=0.1"],
            "optimizer.lr=0.1: there is no such folder; to show only such runs: where=[optimizer.lr=0.1]",
        ),
        (["runs", "srt=x"], "unknown setting srt; did you mean sort=?"),
        (["runs", "lr=0.1"], "unknown setting lr; expected where= sort= x= y= tags= out=, or a folder"),
        (["runs", "--out", "x"], "--out: settings are typed without dashes; write out=VALUE, or see --help"),
        (["runs", "out=a", "out=b"], "out=b: out stands there twice; leave one out"),
        (["out=a"], "no folder is named"),
        (["runs", "where=lr"], "lr: expected a condition such as optimizer.lr<=0.1"),
        (["runs", "where=lr>5"], "where=[lr>5]: none of the 1 runs meets it"),
        (["runs", "sort=zebra"], "sort=zebra: no run has zebra"),
        (["runs", "tags=[zebra]"], "tags=zebra: no run has zebra"),
        (["runs", "x=zebra"], "x=zebra: no run has zebra"),
        (["runs", "x=lr", "y=optimizer.lr"], "x=lr y=optimizer.lr: expected two different settings"),
        (["runs", "out=file"], "file is a file; choose another out="),
        (["runs", "out=file/below"], "file is a file; choose another out="),
        (["runs", "out=foreign"], "foreign/index.html is there already and is no report's; choose another out="),
        (["runs", "out=leading"], "leading/report.md is there already and is no report's; choose another out="),
    ],
)
def test_a_slip_is_one_line_and_nothing_is_written(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made_run(tmp_path / "runs/a", {"optimizer.lr": 0.1}, {"train/loss": 1.0})
    for folder in ("empty", "foreign", "leading"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign/index.html").write_text("<p>mine</p>")
    (tmp_path / "leading/report.md").symlink_to(tmp_path / "file")
    before = sorted(tmp_path.rglob("*"))
    assert report(*words) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ") and told.err.count("\n") == 1 and says in told.err
    assert not told.out and sorted(tmp_path.rglob("*")) == before


def hostile_settings(run: Path) -> None:
    """Settings, tags, command, machine and reason that want to be more than text."""
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["settings"] |= {"name": '"><img src=x onerror=alert(1)>', "tags": ["`|`", "]]></svg>" + ATTACK]}
    provenance["settings"]["optimizer"] |= {"lr": f"$x_{{$ {ATTACK}", "momentum": "${oc.env:HOME}"}
    provenance |= {
        "command": f"python -m lab.train '</script>{ATTACK}'",
        "hardware": {"machine": "javascript:alert(1)"},
    }
    write(run, "provenance", provenance)
    line = {"step": 3, "tag": f"]]></svg>{ATTACK}/x", "value": 1.0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n" + json.dumps(line | {"tag": "\x1b[2J\u202e"}) + "\n")


HOSTILE: dict[str, Callable[[Path], object]] = {
    f"{ATTACK.replace('/', chr(0x2215))}": lambda run: None,
    "a\x1b[31mred\x07\u202e": lambda run: None,
    "javascript:alert(1)": lambda run: None,
    "#run0?x=%2e%2e": lambda run: None,
    os.fsdecode(b"\xff"): lambda run: None,
    "settings": hostile_settings,
}


def test_whatever_a_stranger_wrote_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, (name, make) in enumerate(HOSTILE.items()):
        make(made_run(tmp_path / "runs" / name, {"optimizer.lr": 0.1 + number}, SERIES))
    (tmp_path / "runs/left\x1b[2J<b>").mkdir()
    (tmp_path / "runs/left\x1b[2J<b>/status.json").symlink_to("/dev/zero")
    (tmp_path / "runs/home").symlink_to(Path.home())
    words = ["tags=[train/loss,x]", "y=data.batch_size", "x=optimizer.lr"]
    assert report(tmp_path / "runs", *words) == 0
    text = (tmp_path / "runs/report/index.html").read_text()
    page = Read(text)
    require_sound(page, tmp_path / "runs/report")
    assert not page.of("img") and not page.of("b") and str(Path.home()) not in page.text.replace(str(tmp_path), "")
    assert "${oc.env:HOME}" in page.text and "'</script><script>alert(1)</script>'" in page.text
    told = capsys.readouterr()
    assert "status.json is a link that leads out of the folder" in told.err
    for shown in (text, told.out, told.err, (tmp_path / "runs/report/report.md").read_text()):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800-\udfff]", shown)
    assert "<script>alert" not in re.sub(
        r"```sh.*?```", "", (tmp_path / "runs/report/report.md").read_text(), flags=re.S
    )


def test_a_folder_that_is_a_link_in_the_place_of_the_report_is_not_written_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(tmp_path / "runs/a", {}, SERIES)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs/report").symlink_to(tmp_path / "elsewhere")
    assert report(tmp_path / "runs") == 2
    assert "say where the report goes" in capsys.readouterr().err
    assert not [*(tmp_path / "elsewhere").iterdir()]


def test_runs_from_several_places_are_one_report_and_a_report_is_no_run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_run(tmp_path / "one/a", {"optimizer.lr": 0.1}, {"train/loss": 1.0})
    made_run(tmp_path / "two/a", {"optimizer.lr": 0.2}, {"train/loss": 1.0})
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert report("one", "t*") == 0
        assert not capsys.readouterr().err
    page = Read((tmp_path / "report/index.html").read_text())
    assert "2 runs: mlp" in page.text and {"../one/a", "../two/a"} <= {*page.all("href")}
    assert {"one/a", "two/a"} <= {*page.texts}


def test_one_run_that_has_measured_nothing_is_reported(tmp_path: Path) -> None:
    made_run(tmp_path / "a", {}, {}, status="failed", step=0)
    assert report(tmp_path / "a") == 0
    page = Read((tmp_path / "a/report/index.html").read_text())
    require_sound(page, tmp_path / "a/report")
    assert "One run: mlp on digits" in page.text


def test_the_help_page_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert report("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}= " in shown for name in knobs(ReportSettings))
    assert max(map(len, shown.splitlines())) <= 120
    assert report() == 0 and capsys.readouterr().out == shown


def test_the_door_answers_without_torch(tmp_path: Path) -> None:
    made_run(tmp_path / "a", {}, {})
    code = (
        "import sys; from lab.report import main; main()\n"
        "print([name for name in ('torch', 'pytorch_lightning', 'pandas', 'scipy.stats') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


def test_entries_of_a_list_are_parted_by_commas_outside_of_brackets() -> None:
    assert split("[a>1, model.widths=[32,32]]") == ["a>1", "model.widths=[32,32]"]
    assert split("a/b,c/d") == ["a/b", "c/d"] and split("[]") == []

"""The reference of settings, written from the cards in conf/ before every build: nobody types a default twice.

docs/generated/settings.md holds all cards. choices.md, the groups, and card_<group>_<name>.md, one card, are for the pages
that include them.
"""

import re
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

CONF = Path(__file__).parents[2] / "conf"
GENERATED = Path(__file__).parents[1] / "generated"
GROUPS = {
    "data": "Data",
    "model": "Models",
    "loss": "Losses",
    "optimizer": "Optimisers",
    "optimizer/noise": "Noise you choose",
    "optimizer/escape": "Steps off saddles",
    "schedule": "Schedules of the learning rate",
    "scaling": "Scaling with the batch size",
    "probe": "Probes",
    "trainer": "Trainer",
    "compare": "Comparisons of runs",
    "hydra/launcher": "Launchers: who makes the cells of a grid",
    "simulation": "Experiments of the theory gallery",
    "landscape": "Landscapes",
}
"""Groups of cards in the order of the page, and their headings."""
SETTING = re.compile(r"^(?P<indent> *)(?P<name>[\w.]+): *(?P<value>.*?)(?: +# (?P<meaning>.*))?$")


def rows(card: str) -> list[list[str]]:
    """[name, default, meaning] of every setting of a card, a YAML text; a comment that is long stands above its setting.

    >>> rows("# A card.\\n_target_: x.X\\n# steps\\n# between measurements\\nevery: 13\\nk: 1  # number")
    [['every', '13', 'steps between measurements'], ['k', '1', 'number']]
    """
    table, above = list[list[str]](), list[str]()
    for line in card.splitlines():
        if line.startswith("#"):
            above.append(line.removeprefix("# "))
        elif setting := SETTING.match(line):
            if setting["name"] not in ("defaults", "_target_"):
                table.append([setting["name"], setting["value"], setting["meaning"] or " ".join(above)])
            above = []
    return table


def opening(card: str) -> str:
    """The comment that a card opens with, less its package and its command."""
    lines = list(takewhile(lambda line: line.startswith("#"), card.splitlines()))
    said = [line.lstrip("# ") for line in lines if not re.match(r"# (@package|python -m)", line)]
    return " ".join(line for line in said if line)


def cell(text: str, code: bool = False) -> str:
    """`text` for a cell of a Markdown table; the mathematics of a comment stays as it is typed."""
    if not text:
        return ""
    if code:
        return "`" + text.replace("|", "\\|") + "`"
    return re.sub(r"([|*_<>$\\`\[\]])", r"\\\1", text)


def table(card: str) -> str:
    """The settings of a card as a Markdown table; "" where it has none."""
    lines = [f"| `{name}` | {cell(value, code=True)} | {cell(meaning)} |" for name, value, meaning in rows(card)]
    return "\n".join(["| setting | default | |", "|---|---|---|", *lines]) + "\n" if lines else ""


def page() -> str:
    """All cards, group by group."""
    parts = [
        "# Reference of settings",
        "Every card in `conf/`, as the code reads it. A setting is typed as `group.setting=value`, those of a probe as "
        "`probe.NAME.setting=value`, those of noise and of steps off saddles as `noise.setting=value` and "
        "`escape.setting=value`, those of an experiment of the theory gallery as `setting=value`.",
    ]
    for group, heading in GROUPS.items():
        parts.append(f"## {heading}")
        for file in sorted((CONF / group).glob("*.yaml")):
            card = file.read_text()
            parts.append(f"### `{group.removeprefix('hydra/')}={file.stem}`")
            parts += [text for text in (cell(opening(card)), table(card)) if text]
    return "\n\n".join(parts) + "\n"


def choices() -> str:
    """A table of all groups that are typed at the command line, and the names of their cards."""
    lines = ["| group | choices |", "|---|---|"]
    for group in [group for group in GROUPS if group not in ("simulation", "landscape")]:
        names = " ".join(f"`{file.stem}`" for file in sorted((CONF / group).glob("*.yaml")))
        lines.append(f"| `{group.removeprefix('hydra/')}` | {names} |")
    return "\n".join(lines) + "\n"


def write(_: "Sphinx | None" = None) -> None:
    """Write the files that have changed, so that a second build reads nothing anew."""
    GENERATED.mkdir(exist_ok=True)
    texts = {"settings.md": page(), "choices.md": choices()}
    for file in sorted((CONF / "probe").glob("*.yaml")):
        texts[f"card_probe_{file.stem}.md"] = table(file.read_text())
    for name, text in texts.items():
        if not (target := GENERATED / name).exists() or target.read_text() != text:
            target.write_text(text)


def setup(app: "Sphinx") -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

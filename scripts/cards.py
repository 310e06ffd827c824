"""Writes the cards of conf/ from the dataclasses they name: `python scripts/cards.py`, or `make cards`.

A card is the header its group wants, the first paragraph of the docstring of the class (of an experiment: all of it),
`_target_`, and every knob with its default, its text and its range. For a new card begin with a file that holds nothing
but `_target_: lab.data.mine.Mine`. A card of a class with a knob that has no description stays as it is, and so do cards
without `_target_`.
"""

import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class

from lab.run.cards import config_dir
from lab.settings import KNOBS, Knob, knobs

WIDTH = 125
LONG = 30
"""Characters of name and value beyond which a line does not push the comments of the others to the right."""
PACKAGES = {
    "probe": "probe.{name}",
    "simulation": "_global_",
    "optimizer/noise": "noise",
    "optimizer/escape": "escape",
}
"""Where Hydra puts the settings of a card, if not at the name of its folder."""


def main() -> None:
    """Write all cards in place, and say which are left as they are."""
    for file in sorted(Path(config_dir()).rglob("*.yaml")):
        text = card_text(file)
        if text is not None and text != file.read_text():
            file.write_text(text)
            print(f"written: {file}")


def card_text(file: Path) -> str | None:
    """What the card should be; None where it is written by hand."""
    content = yaml.safe_load(file.read_text())
    if not isinstance(content, dict) or "_target_" not in content:
        return None
    kind = get_class(content["_target_"])
    listed = knobs(kind)
    if not all(knob.text for knob in listed.values()):
        return None
    lines = [*_header(file, kind), f"_target_: {content['_target_']}"]
    if file.parent.name == "simulation":
        lines.append("")
    return "\n".join([*lines, *_settings(listed)]) + "\n"


def _header(file: Path, kind: type) -> list[str]:
    """The comments above the settings: the package, of an experiment the command that runs it, and the docstring."""
    group = file.parent.relative_to(config_dir()).as_posix()
    paragraphs = inspect.cleandoc(kind.__doc__ or "").partition(KNOBS)[0].split("\n\n")
    lines = [f"@package {PACKAGES[group].format(name=file.stem)}"] if group in PACKAGES else []
    if group == "simulation":
        lines += [f"python -m lab.simulate experiment={file.stem}"]
    for i, paragraph in enumerate(paragraphs if group == "simulation" else paragraphs[:1]):
        lines += [""] * (i > 0) + textwrap.wrap(" ".join(paragraph.split()), WIDTH - 2, break_on_hyphens=False)
    return [f"# {line}".strip() for line in lines]


def _settings(listed: dict[str, Knob]) -> list[str]:
    """`name: value  # text` a line, the comments in one column; above the value where they do not fit beside it."""
    values = {name: f"{name}: {as_yaml(knob.default)}" for name, knob in listed.items()}
    column = max((len(text) for text in values.values() if len(text) <= LONG), default=0)
    lines = []
    for name, knob in listed.items():
        line = f"{values[name]:<{column}}  # {knob}"
        if len(line) > WIDTH:
            lines += [f"# {part}" for part in textwrap.wrap(str(knob), WIDTH - 2)]
            line = values[name]
        lines.append(line)
    return lines


def as_yaml(default: Any) -> str:
    """A default as YAML, e.g. null, 1.0e-8, [32, 32].

    >>> as_yaml((0.9, 1e-5, 1e6, 3)), as_yaml(None), as_yaml("*"), as_yaml("auto")
    ('[0.9, 1.0e-5, 1.0e+6, 3]', 'null', '"*"', 'auto')
    """
    if isinstance(default, list | tuple):
        return f"[{', '.join(map(as_yaml, default))}]"
    if isinstance(default, float):
        short = f"{default:g}" if float(f"{default:g}") == default else repr(default)
        digits, _, exponent = short.partition("e")
        return digits + ("" if "." in digits else ".0") + (f"e{int(exponent):+d}" if exponent else "")
    if isinstance(default, str):
        return default if default and _reads_back(default) else json.dumps(default)
    return json.dumps(default)


def _reads_back(text: str) -> bool:
    """Whether YAML takes a word without quotes for itself, in a list too."""
    try:
        return yaml.safe_load(f"[{text}]") == [text]
    except yaml.YAMLError:
        return False


if __name__ == "__main__":
    main()

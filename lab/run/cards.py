"""The cards of `conf/`: where they lie, and which of them stands for a class. Read without Hydra."""

import re
from functools import cache
from pathlib import Path


def config_dir() -> str:
    """The folder of the cards: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parents[1]
    return str(next((c for c in (package.parent / "conf", package / "conf") if c.is_dir()), package / "conf"))


@cache
def card_names() -> dict[str, str]:
    """The card that stands for a class, e.g. {"lab.optim.optimizers.Sgd": "sgd", ...}."""
    named = dict[str, str]()
    for file in Path(config_dir()).glob("**/*.yaml"):
        if target := re.search(r"^_target_: *(\S+)", file.read_text(), flags=re.M):
            named[target[1]] = file.stem
    return named

"""What the doors share: from Hydra's configuration to validated cards, and every slip of a user told in one line."""

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lab.settings import SettingError

LONGEST_NAME = 200
"""Characters of a folder name; a longer one is cut and ends in a hash of the whole."""


def config_dir() -> str:
    """The folder of the cards: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parent
    return str(next((c for c in (package.parent / "conf", package / "conf") if c.is_dir()), package / "conf"))


def register_resolvers() -> None:
    """The names that conf/*.yaml uses for run folders."""
    OmegaConf.register_new_resolver("lab.folder", lambda experiment: f"outputs/{experiment or 'train'}", replace=True)
    OmegaConf.register_new_resolver("lab.cell", cell_name, replace=True)


def cell_name(overrides: str) -> str:
    """The folder name of a run from its overrides, e.g. "data.batch_size=8,optimizer.lr=0.1"; "default" without any."""
    name = re.sub(r"[^\w.,=+\-\[\]]", "-", overrides or "default")
    if len(name) > LONGEST_NAME:
        name = f"{name[: LONGEST_NAME - 9]}-{sha256(overrides.encode()).hexdigest()[:8]}"
    return name


def card(config: DictConfig | dict[str, Any] | None, where: str) -> Any:
    """The dataclass that a card names by `_target_`, with its settings. Raises SettingError in one line."""
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config or {})
    if not isinstance(plain, dict) or "_target_" not in plain:
        raise SettingError(f"{where}: expected a card of conf/{where}/, e.g. {where}={_choices(where)[0]}")
    values = {str(name): value for name, value in plain.items()}
    try:
        return get_class(values.pop("_target_"))(**values)
    except ValidationError as error:
        raise SettingError(validation_line(error, where)) from None


def validation_line(error: ValidationError, where: str) -> str:
    """The first refused setting of a card: what came and what was expected."""
    first = str(error.errors()[0]["loc"][0])
    mine = [e for e in error.errors() if e["loc"] and str(e["loc"][0]) == first]
    expected = list(dict.fromkeys(_expected(e["msg"]) for e in mine))
    if mine[0]["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}.{first} is not a setting of this card"
    came = mine[0]["input"] if len(mine[0]["loc"]) == 1 else next((e["input"] for e in mine), None)
    return f"{where}.{first}={came}: {' or '.join(expected)}"


def _expected(message: str) -> str:
    message = message.split(", unable to parse")[0].replace("Input should be", "expected")
    return message[0].lower() + message[1:]


@contextmanager
def one_line_errors() -> Iterator[None]:
    """A user's slip ends the program with one line on stderr and exit code 2, never with a traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let Hydra raise, so that we can say it in one line
    try:
        yield
    except (SettingError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes the run from its last checkpoint", file=sys.stderr)
        sys.exit(130)


def explain(error: Exception) -> str:
    """One line for an error of ours, of Hydra or of OmegaConf."""
    text = str(error)
    if isinstance(error, SettingError):
        return " ".join(text.split())
    if unknown := re.search(r"Could not override '([^']+)'", text):
        return _unknown_setting(unknown[1])
    if choice := re.search(r"Could not find '(?:(.+)/)?([^'/]+)'", text):
        group = choice[1] or ""
        return f"{group}={choice[2]} does not exist; expected one of {', '.join(_choices(group))}"
    if group := re.search(r"Could not override '?([\w/]+)'?.*No match in the defaults list", text, re.S):
        return _unknown_setting(group[1])
    if key := re.search(r"Key '([^']+)' is not in struct", text):
        return _unknown_setting(key[1])
    return " ".join(text.splitlines()[0].split())


def _unknown_setting(name: str) -> str:
    probe = re.match(r"probe\.(\w+)", name)
    known = _known_settings()
    if probe and name not in known and probe[1] in _choices("probe"):
        return f"probe.{probe[1]} has no such setting: {name}"
    if probe and probe[1] in _choices("probe"):
        return f"{name} is for a probe that is not selected; add it: probe=[{probe[1]}]"
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if name in known:
        return f"{name} is not a setting of the chosen {name.split('.')[0]}; see python -m lab.train --cfg job"
    return f"unknown setting {name}" + (f"; did you mean {near[0]}?" if near else "; see python -m lab.train --help")


def _known_settings() -> list[str]:
    """Every setting that some card offers."""
    names = ["steps", "epochs", "seed"]
    for file in sorted(Path(config_dir()).glob("*/*.yaml")):
        group = file.parent.name if file.parent.name != "probe" else f"probe.{file.stem}"
        if file.parent.name != "experiment":
            keys = [str(key) for key in OmegaConf.load(file)]  # type: ignore[union-attr]
            names += [f"{group}.{key}" for key in keys if key != "_target_"] + [file.parent.name]
    return list(dict.fromkeys(names))


def _choices(group: str) -> list[str]:
    return sorted(file.stem for file in (Path(config_dir()) / group).glob("*.yaml"))


def remove_if_empty(folder: Path) -> None:
    """Take away the folder that Hydra made for a run that was refused, and its parents as far as they are empty."""
    here = Path.cwd()
    for path in (folder, *folder.parents):
        if path == here or path in here.parents or not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()


def quiet() -> None:
    """Silence the hints of Lightning that do not apply here: the data are tensors in memory, steps are ours."""
    import logging

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`training_step` returned `None`.*",
        ".*GPU available but not.*",
    ):
        warnings.filterwarnings("ignore", message=message)

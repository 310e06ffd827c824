"""What the doors share: from Hydra's configuration to validated cards, and every slip of a user told in one line."""

import difflib
import logging
import math
import os
import re
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from functools import cache
from hashlib import sha256
from pathlib import Path
from time import time
from typing import Any, TextIO, cast

from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from lab.run.cards import config_dir
from lab.run.signals import TERMINATED, ended
from lab.settings import SettingError

AROUND = ("noise", "escape")
"""Groups of cards around the optimiser: conf/optimizer/<group>, whose settings stand at <group>."""
LONGEST_NAME = 200
"""Characters of a folder name; a longer one is cut and ends in a hash of the whole."""
PAGE_WIDTH = 112
"""Characters of a line of the help page."""
PIPE = 141
"""The exit code of a program whose reader has gone: 128 + SIGPIPE."""


def choices(group: str) -> list[str]:
    """The names of the cards of a group."""
    return sorted(file.stem for file in (Path(config_dir()) / group).glob("*.yaml"))


def cell_name(overrides: str) -> str:
    """The folder name of a run from its overrides, e.g. "data.batch_size=8,optimizer.lr=0.1"; "default" without any.

    A name that had to be changed (a slash, or too long) ends in a hash of the whole, so that no two runs share a folder.

    >>> cell_name("data.classes=[0,1],optimizer.lr=0.1"), cell_name("")
    ('data.classes=[0,1],optimizer.lr=0.1', 'default')
    >>> cell_name("data.root=/a/b") == cell_name("data.root=-a-b")
    False
    """
    name = re.sub(r"[^\w.,=+\-\[\]]", "-", overrides or "default")
    if len(name) > LONGEST_NAME or name != (overrides or "default"):
        name = f"{name[: LONGEST_NAME - 9]}-{sha256(overrides.encode()).hexdigest()[:8]}"
    return name


def listed(group: str, indent: int) -> str:
    """The cards of a group for a help page; lines after the first are indented."""
    lines = textwrap.wrap(" | ".join(choices(group)), PAGE_WIDTH - indent)
    return ("\n" + " " * indent).join(lines)


def settings_listed(group: str, indent: int) -> str:
    """The settings of all cards of a group (of `probe`: of each card in its own lines) for a help page; lines after the
    first of each are indented.

    >>> settings_listed("scaling", 6)
    'scaling.batch_size= .lr= .budget='
    """
    told = []
    for prefix in [f"probe.{name}." for name in choices("probe")] if group == "probe" else [f"{group}."]:
        names = [name.removeprefix(prefix) for name in _known_settings() if name.startswith(prefix)]
        words = f"{prefix}{names[0]}= {' '.join(f'.{name}=' for name in names[1:])}".strip()
        told.append(("\n" + " " * indent).join(textwrap.wrap(words, PAGE_WIDTH - indent)))
    return ("\n" + " " * (indent - 4)).join(told)


# At import, not in a door: a worker process of a sweep imports this module and nothing else of ours before it resolves.
OmegaConf.register_new_resolver("lab.folder", lambda experiment: f"outputs/{experiment or 'train'}", replace=True)
OmegaConf.register_new_resolver("lab.cell", cell_name, replace=True)
OmegaConf.register_new_resolver("lab.choices", listed, replace=True)
OmegaConf.register_new_resolver("lab.settings", settings_listed, replace=True)


def card(config: DictConfig | dict[str, Any] | None, where: str) -> Any:
    """The dataclass that a card names by `_target_`, with its settings. Raises SettingError in one line."""
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else config
    if not isinstance(plain, dict) or "_target_" not in plain:
        group, _, name = where.partition(".")
        example = f"{group}=[{name}]" if name else f"{group}={choices(group)[0]}"
        raise SettingError(f"{where}={typed(plain)} is not a card with its settings; choose one, e.g. {example}")
    values = {str(name): value for name, value in plain.items()}
    target = str(values.pop("_target_"))
    try:
        kind = get_class(target)
    except Exception:  # Hydra raises several kinds
        raise SettingError(f"{where}._target_={target} names no class that can be imported") from None
    try:
        made = kind(**values)
    except ValidationError as error:
        raise SettingError(validation_line(error, where)) from None
    for name, value in values.items():
        require_kept(f"{where}.{name}", value, getattr(made, name))
    return made


def require_kept(setting: str, came: Any, became: Any) -> None:
    """Raise SettingError where pydantic has turned a value into another kind: true into 1.0, 1 into true, "3" into 3."""
    if isinstance(came, list):
        for i, (one, other) in enumerate(zip(came, became, strict=True)):
            require_kept(f"{setting}[{i}]", one, other)
    elif type(came) is not type(became) and (type(came), type(became)) != (int, float):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[type(became)]
        shown, hint = (f'"{came}"', ", without quotes") if isinstance(came, str) else (typed(came), "")
        raise SettingError(f"{setting}={shown}: expected {expected}{hint}")


def validation_line(error: ValidationError, where: str) -> str:
    """The first refused setting of a card: what came and what was expected."""
    errors = [e for e in error.errors() if e["loc"]]
    if not errors:  # settings that contradict each other: the message begins with the name of one of them
        return f"{where}.{_expected(error.errors()[0])}"
    first = str(errors[0]["loc"][0])
    mine = [e for e in errors if str(e["loc"][0]) == first]
    if mine[0]["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{where}.{first} is not a setting of this card"
    # A union reports each of its types; an entry of a list, e.g. widths=[32,x], says more than that a list is no word.
    inner = [e for e in mine if any(isinstance(part, int) for part in e["loc"]) and e["type"] != "missing"]
    came = (inner or mine)[0]["input"]
    no_number = ", which is not a number" if isinstance(came, float) and math.isnan(came) else ""
    entry = f" (entry {came}{no_number})" if inner else ""
    told = mine[-1:] if mine[-1]["type"] == "missing" else mine  # of several missing entries the last counts them
    expected = list(dict.fromkeys(_expected(e) for e in (inner or told)))
    expected[1:] = [text.removeprefix("expected ") for text in expected[1:]]
    whole = "" if inner else f"={typed(came)}{no_number}"
    return f"{where}.{first}{whole}{entry}: {' or '.join(expected)}"


def _expected(error: Any) -> str:
    if error["type"] == "value_error":
        return error["msg"].removeprefix("Value error, ")
    if error["type"] == "too_long":
        return f"expected a list of at most {error['ctx']['max_length']}"
    if error["type"] == "too_short":
        return f"expected a list of at least {error['ctx']['min_length']}"
    if error["type"] == "missing" and isinstance(error["loc"][-1], int):  # an entry of a list of fixed length
        return f"expected a list of at least {error['loc'][-1] + 1}"
    message = error["msg"].split(", unable to")[0]
    message = re.sub(r"Input should be (a valid )?", "", message)
    message = {"tuple": "a list, e.g. [1,2]", "integer": "a whole number", "boolean": "true or false"}.get(
        message, message
    )
    message = re.sub(r"^(greater|less|finite|number)", r"a number \1", message).replace("a number number", "a number")
    return f"expected {message[0].lower() + message[1:]}"


def typed(value: Any) -> str:
    """A value as one types it: null, true, [1,2]."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[" + ",".join(map(typed, value)) + "]" if isinstance(value, list | tuple) else str(value)


@contextmanager
def one_line_errors(door: str) -> Iterator[None]:
    """A user's slip ends the program with one line on stderr and exit code 2, never with a traceback."""
    begin = time()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let Hydra raise, so that we can say it in one line
    try:
        with redirect_stderr(cast(TextIO, _OneLine(sys.stderr))), ended():
            yield
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `| head`; what is left is not written again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE)
    except (SettingError, HydraException, OmegaConfBaseException, ValueError, OSError) as error:
        if type(error) is ValueError and "Config group override" not in str(error):  # Hydra's, for optimizer=null
            raise
        if type(error).__module__ == "builtins" and isinstance(error, OSError) and Path(error.filename or ".").exists():
            raise  # not a run folder that cannot be made
        _clear(begin)
        print(f"error: {explain(error, door)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        _clear(begin)
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as error:
        if error.code == TERMINATED:
            _clear(begin)
        raise


def explain(error: Exception, door: str) -> str:
    """One line for an error of ours, of Hydra or of OmegaConf."""
    text = " ".join(str(error).split())
    if isinstance(error, SettingError):
        return text
    for pattern, say in (
        (r"Could not override '([^']+)'", _unknown_setting),
        (r"Key '([^']+)' is not in struct", _unknown_setting),
        (r"Could not find '([^']+)'", _unknown_card),
        (r"Could not load '([^']+)'", _unknown_card),
    ):
        if found := re.search(pattern, text):
            return say(found[1], door)
    if "Config group override" in text:
        return _no_card_name()
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be written ({error.strerror}); choose another hydra.run.dir"
    if "override_grammar" in text:
        return f"{_malformed(text)}; expected setting=value, e.g. optimizer.lr=0.1 model.widths=[32,32]"
    return text


def _malformed(text: str) -> str:
    """What Hydra's parser could not read; it names the override in some cases and only the position in others."""
    text = text.partition(" See https://hydra.cc")[0]
    if whole := re.search(r"Error parsing override '([^']*)'", text):
        return f"{whole[1]} cannot be read"
    told = [argument for argument in sys.argv[1:] if re.search(r"[\[({'\"]|^[^=]*$", argument)]
    return f"{' '.join(told) or 'an override'} cannot be read ({text})"


def _no_card_name() -> str:
    """Which group was given something that is no name; Hydra does not say."""
    for word in sys.argv[1:]:
        group, _, value = word.lstrip("+").partition("=")
        if group and choices(group) and value not in choices(group) and not value.startswith("["):
            known = "a list, e.g. probe=[]" if group == "probe" else f"one of {', '.join(choices(group))}"
            return f"{group}={value} is not the name of a card; expected {known}"
    return "a group was not given the name of a card; expected e.g. optimizer=sgd, or for probes a list, e.g. probe=[]"


def _unknown_card(path: str, door: str) -> str:
    group, _, name = path.rpartition("/")
    known = choices(group)
    if not known:
        return f"{path} does not exist; see python -m lab.{door} --help"
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {group}={near[0]}?" if near else ""
    return f"{group}={name} does not exist; expected one of {', '.join(known)}{hint}"


def _unknown_setting(name: str, door: str) -> str:
    group, _, rest = name.partition(".")
    known, help_page = _known_settings(), f"see python -m lab.{door} --help"
    if door == "measure" and group.removeprefix("optimizer/") in ("scaling", "noise", "escape", "compare"):
        return f"{name} says how a run is trained; lab.measure has no such setting: leave it out"
    if group == "probe" and rest:
        probe = rest.partition(".")[0]
        if probe not in choices("probe"):
            return f"there is no probe {probe}; expected one of {', '.join(choices('probe'))}"
        if name in known:
            return f"{name} is for a probe that is not selected; add it: probe=[{probe}]"
    elif group in AROUND and name in known:
        folder = Path(config_dir()) / "optimizer" / group
        cards = [card for card in choices(f"optimizer/{group}") if rest in OmegaConf.load(folder / f"{card}.yaml")]
        return f"{name} is not a setting of the chosen {group}; choose optimizer/{group}= one of {', '.join(cards)}"
    elif name in known:
        return f"{name} is not a setting of the chosen {group}; see python -m lab.{door} --cfg job"
    near = [one for one in difflib.get_close_matches(name, known, n=1, cutoff=0.6) if one != group]
    if rest and not near and (offered := [one for one in known if one.startswith(f"{group}.")]):
        return f"unknown setting {name}; expected one of {', '.join(offered)}"
    return f"unknown setting {name}; " + (f"did you mean {near[0]}?" if near else help_page)


@cache
def _known_settings() -> tuple[str, ...]:
    """Every setting that some card offers."""
    names = ["steps", "epochs", "seed", "audit", *(f"optimizer/{group}" for group in AROUND)]
    around = [file for group in AROUND for file in Path(config_dir()).glob(f"optimizer/{group}/*.yaml")]
    for file in sorted([*Path(config_dir()).glob("*/*.yaml"), *around]):
        group = file.parent.name if file.parent.name != "probe" else f"probe.{file.stem}"
        if file.parent.name not in ("experiment", "simulation", "landscape"):
            loaded = OmegaConf.load(file)
            keys = [str(key) for key in loaded.get(group, loaded)]  # type: ignore[union-attr,arg-type]
            names += [f"{group}.{key}" for key in keys if key != "_target_"] + [file.parent.name]
    return tuple(dict.fromkeys(names))


def remove_if_empty(folder: Path) -> None:
    """Take away the folder that Hydra made for a run that was refused, and its parents as far as they are empty.

    A `multirun.yaml` without a single run beside it is what Hydra leaves of a refused sweep, and goes too.
    """
    here = Path.cwd()
    for path in (folder.absolute(), *folder.absolute().parents):
        if path == here or path in here.parents or not path.is_dir():
            return
        content = [file.name for file in path.iterdir()]
        if content == ["multirun.yaml"]:
            (path / "multirun.yaml").unlink()
        elif content:
            return
        path.rmdir()


def _clear(begin: float) -> None:
    """Take away what Hydra made, since `begin`, for runs of which none was made."""
    chosen = [word.partition("=")[2] for word in sys.argv if word.startswith("hydra.sweep.dir=")]
    for folder in [*Path("outputs").glob("*"), *map(Path, chosen)]:
        _forget_sweep(folder, begin)
        remove_if_empty(folder)


def _forget_sweep(folder: Path, begin: float) -> None:
    """Take away the `multirun.yaml` of a sweep that was refused, begun at `begin`, before any of its runs was made."""
    file = folder / "multirun.yaml"
    mine = file.is_file() and file.stat().st_mtime >= begin
    if mine and not any(status.stat().st_mtime >= begin for status in folder.glob("*/status.json")):
        file.unlink()


class _OneLine:
    """A stream without the line by which Hydra announces a failed run and the usage that argparse puts before errors."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        if text.startswith(("Error executing job with overrides", "usage: ")):
            return len(text)
        return self.stream.write(re.sub(r"^.*: error: (.*)\n$", r"error: \1; see --help\n", text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def quiet() -> None:
    """Silence the hints of Lightning that do not apply here (the data are tensors in memory, steps are ours), and say what
    is left in one line, without the place in the code that Python puts before it.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`training_step` returned `None`.*",
        ".*GPU available but not.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message=message)

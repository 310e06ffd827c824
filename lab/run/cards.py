"""The cards of `conf/`: where they lie, which of them stands for a class, and the dataclass that a card makes.

A card comes as plain values with `_target_`, the path of its class. Whatever it is refused for is told in one line.
"""

import math
import re
import textwrap
from functools import cache
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from typing import Any

from pydantic import ValidationError

from lab.settings import SettingError, UnknownSetting

CURES = {"tuple": "a list, e.g. [1,2]", "integer": "a whole number", "boolean": "true or false"}
"""What pydantic calls a type, in the words of who types a value."""
UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
"""What pydantic calls a setting that the card does not have."""

METHODS = {"data": "load", "model": "build", "loss": "build", "optimizer": "of", "schedule": "factor"}
"""What the class of a card does in a group, by the name of its method."""
FORMER = {"lab.optim.noise.Fisher": "fisher"}
"""Cards of classes that had another name when runs that are still there were made."""


def config_dir() -> str:
    """The folder of the cards: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).parents[1]
    return str(next((c for c in (package.parent / "conf", package / "conf") if c.is_dir()), package / "conf"))


def card_names(more: str | None = None) -> dict[str, str]:
    """The card that stands for a class, e.g. {"lab.optim.optimizers.Sgd": "sgd"}; `more`: a folder with further ones."""
    others = _named_in(str(Path(more).absolute())) if more else {}
    return FORMER | others | _named_in(config_dir())


@cache
def _named_in(folder: str) -> dict[str, str]:
    """The cards of a folder by their class."""
    named = {}
    for file in sorted(Path(folder).glob("**/*.yaml")):
        if target := re.search(r"^_target_: *(\S+)", file.read_text(), flags=re.M):
            named[target[1]] = file.stem
    return named


def choices(group: str, more: str | None = None) -> list[str]:
    """The names of the cards of a group, also of a folder with `more` cards."""
    folders = [config_dir(), more] if more else [config_dir()]
    return sorted(file.stem for folder in folders for file in (Path(folder) / group).glob("*.yaml"))


def listed(group: str, *, width: int, indent: int) -> str:
    """The cards of a group in lines of `width` letters; lines after the first are indented."""
    return ("\n" + " " * indent).join(textwrap.wrap(" | ".join(choices(group)), width - indent))


def card(plain: Any, where: str) -> Any:
    """The dataclass that a card names by `_target_`, with its settings. Raises SettingError in one line."""
    if not isinstance(plain, dict) or "_target_" not in plain:
        group, _, name = where.partition(".")
        example = f"{group}=[{name}]" if name else f"{group}={choices(group)[0]}"
        raise SettingError(f"{where}={typed(plain)} is not a card with its settings; choose one, e.g. {example}")
    values = {str(name): value for name, value in plain.items()}
    target = str(values.pop("_target_"))
    kind = _class_of(target, where)
    try:
        made = kind(**values)
    except ValidationError as error:
        if unknown := [e["loc"][0] for e in error.errors()[:1] if e["type"] in UNKNOWN]:
            raise UnknownSetting(f"{where}.{unknown[0]}", refusal(error, where)) from None
        raise SettingError(refusal(error, where)) from None
    except TypeError as error:  # a card of somebody's own that is no card of pydantic
        raise SettingError(f"{where}: {' '.join(str(error).split())}") from None
    for name, value in values.items():
        require_kept(f"{where}.{name}", value, getattr(made, name, value))
    return made


def _class_of(target: str, where: str) -> type:
    """The class of a card. Raises SettingError where there is none, and for a class that is no card."""
    own = f"{where}=own {where}.path={target.rpartition('.')[0]}:{target.rpartition('.')[2]}"
    cure = f"; code of your own is {own}" if where in METHODS and target.rpartition(".")[0] else ""
    try:
        kind = locate(target)
    except ErrorDuringImport as error:
        raise SettingError(f"{where}._target_={target} cannot be imported: {' '.join(str(error).split())}") from None
    if not isinstance(kind, type):
        raise SettingError(f"{where}._target_={target} names no class that can be imported{cure}")
    if where in METHODS and not hasattr(kind, METHODS[where]):
        raise SettingError(
            f"{where}._target_={target} is no card of the lab: it has no method {METHODS[where]}(){cure}"
        )
    return kind


def require_kept(setting: str, came: Any, became: Any) -> None:
    """Raise SettingError where pydantic has turned a value into another kind: true into 1.0, 1 into true, "3" into 3."""
    if isinstance(came, list):
        for i, (one, other) in enumerate(zip(came, became, strict=True)):
            require_kept(f"{setting}[{i}]", one, other)
    elif type(came) is not type(became) and (type(came), type(became)) != (int, float):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[type(became)]
        shown, hint = (f'"{came}"', ", without quotes") if isinstance(came, str) else (typed(came), "")
        raise SettingError(f"{setting}={shown}: expected {expected}{hint}")


def require_whole(setting: str, value: Any, least: int) -> None:
    """Raise SettingError for what is no whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SettingError(f"{setting}={typed(value)}: expected a whole number of at least {least}")


def refusal(error: ValidationError, where: str) -> str:
    """The first refused setting of a card: what came and what was expected."""
    errors = [e for e in error.errors() if e["loc"]]
    if not errors:  # settings that contradict each other: the message begins with the name of one of them
        return f"{where}.{_expected(error.errors()[0])}"
    first = str(errors[0]["loc"][0])
    mine = [e for e in errors if str(e["loc"][0]) == first]
    if mine[0]["type"] in UNKNOWN:
        return f"{where}.{first} is not a setting of this card"
    # A union reports each of its types; an entry of a list, e.g. widths=[32,x], says more than that a list is no word.
    inner = [e for e in mine if any(isinstance(part, int) for part in e["loc"]) and e["type"] != "missing"]
    came = (inner or mine)[0]["input"]
    no_number = ", which is not a number" if isinstance(came, float) and math.isnan(came) else ""
    entry = f" (entry {came}{no_number})" if inner else ""
    outer = mine[-1:] if mine[-1]["type"] == "missing" else mine  # of several missing entries the last counts them
    expected = list(dict.fromkeys(_expected(e) for e in (inner or outer)))
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
    message = re.sub(r"Input should be (a valid )?", "", error["msg"].split(", unable to")[0])
    message = re.sub(r"^(greater|less|finite|number)", r"a number \1", CURES.get(message, message))
    message = message.replace("a number number", "a number")
    return f"expected {message[0].lower() + message[1:]}"


def typed(value: Any) -> str:
    """A value as one types it.

    >>> typed(None), typed([True, 0.5, "x"])
    ('null', '[true,0.5,x]')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "[" + ",".join(map(typed, value)) + "]" if isinstance(value, list | tuple) else str(value)

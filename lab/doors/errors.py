"""Every slip of a user is told in one line on stderr, with exit code 2; what a door does not know is explained here."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from lab.doors.arguments import LAUNCHER, short
from lab.doors.pages import AROUND, card_settings, known_settings, takes_list
from lab.doors.slips import card_answer, listing, meant, setting_answer
from lab.run.cards import choices
from lab.run.signals import ended
from lab.settings import SettingError, UnknownSetting

PIPE = 141
"""The exit code of a program whose reader has gone: 128 + SIGPIPE."""
OF_HYDRA = (HydraException, OmegaConfBaseException)
"""What is raised where settings are composed; `explain` has a line for it."""
Unknown = Callable[[str], str | None]
"""What a door says of the name of a setting that is not there; None: what all doors say."""


@contextmanager
def one_line_errors(door: str, unknown: Unknown = lambda name: None) -> Iterator[None]:
    """A user's slip ends the program with one line on stderr and exit code 2, never with a traceback."""
    try:
        with ended():
            yield
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `| head`; what is left is not written again when Python ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE)
    except (SettingError, *OF_HYDRA, OSError) as error:
        if type(error).__module__ == "builtins" and isinstance(error, OSError) and Path(error.filename or ".").exists():
            raise  # not a run folder that cannot be made
        print(f"error: {short(explain(error, door, unknown, sys.argv[1:]))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(130)


def explain(error: Exception, door: str, unknown: Unknown, words: Sequence[str]) -> str:
    """One line for an error of ours, of Hydra or of OmegaConf, after `words` were typed."""
    text = " ".join(str(error).split())
    if isinstance(error, UnknownSetting):
        return _unknown_setting(_as_typed(error.name, words), door, unknown, words, otherwise=text)
    if isinstance(error, SettingError):
        return text
    if match := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        return _unknown_setting(match[1] or match[2], door, unknown, words)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _unknown_card(match[1], door, words)
    if match := re.search(r"Ambiguous value for argument '(.+?)' 1\.", text):
        return _several_values(match[1])
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be written ({error.strerror}); choose another hydra.run.dir"
    return text


def near(word: str, known: list[str], *, prefix: str = "") -> str:
    """A question after the known word that is nearest, as the end of a line; "" where none is near.

    >>> near("sdg", ["adam", "sgd"], prefix="optimizer=")
    '; did you mean optimizer=sgd?'
    """
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def _as_typed(name: str, words: Sequence[str]) -> str:
    """The name that was typed where a part of it was refused, as foo of +foo.bar=1."""
    typed = [word.lstrip("+").partition("=")[0] for word in words]
    return next((one for one in typed if one == name or one.startswith(f"{name}.")), name)


def _several_values(word: str) -> str:
    """One line for values with commas between them and no -m: a list where the setting takes one, or a grid."""
    name, _, value = word.partition("=")
    if name == LAUNCHER["="]:
        return f"{word}: one launcher makes all cells of a grid; expected one of {', '.join(choices(name))}"
    listed = f", or write {name}=[{value}] for a list of them" if takes_list(name) else ""
    return f"{word} is several values; add -m for a run with each{listed}"


def _unknown_card(path: str, door: str, words: Sequence[str]) -> str:
    group, _, name = path.rpartition("/")
    if answer := card_answer(group, name, words, door):
        return answer
    if not (known := choices(group)):
        return f"{path} does not exist; see python -m lab.{door} --help"
    return f"{group}={name} does not exist; expected one of {', '.join(known)}{near(name, known, prefix=f'{group}=')}"


def _unknown_setting(name: str, door: str, unknown: Unknown, words: Sequence[str], otherwise: str = "") -> str:
    """What the door says of a setting, or of the one that is meant by it; else what it is called here; else what is near;
    `otherwise`: what is said in the place of that.
    """
    if name.startswith(f"{LAUNCHER['.']}."):
        return _of_a_launcher(name.removeprefix(f"{LAUNCHER['.']}."), words)
    if refused := unknown(name):
        return refused
    if (goal := meant(name, words, door)) and (refused := unknown(goal)):
        return f"{name}: {refused}"
    if answer := setting_answer(name, words, door) or otherwise:
        return answer
    group, _, rest = name.partition(".")
    known = known_settings()
    if group == "probe" and rest:
        probe = rest.partition(".")[0]
        if name == "probe.budget":
            return (
                f"{name} limits what is measured in a run of lab.train; lab.{door} measures once, all that is asked for"
            )
        if probe not in choices("probe"):
            return f"there is no probe {probe}; expected one of {', '.join(choices('probe'))}"
        if name in known:
            return f"{name} is for a probe that is not selected; add it: probe=[{probe}]"
    elif group in AROUND and name in known:
        cards = [card for card in choices(f"optimizer/{group}") if rest in card_settings(f"optimizer/{group}", card)]
        return f"{name} is not a setting of the chosen {group}; choose optimizer/{group}= one of {', '.join(cards)}"
    elif name in known:
        return _of_another_card(name, door)
    close = difflib.get_close_matches(name, known, n=1)
    if close and (refused := unknown(close[0])):
        return f"{name}: {refused}"
    hint = f"; did you mean {close[0]}?" if close and close[0] != group else ""
    if rest and not hint and (offered := [one for one in known if one.startswith(f"{group}.") and not unknown(one)]):
        return f"unknown setting {name}; expected one of {', '.join(offered)}"
    return f"unknown setting {name}" + (hint or f"; see python -m lab.{door} --help")


def _of_a_launcher(setting: str, words: Sequence[str]) -> str:
    """One line for a setting that the chosen launcher does not have."""
    typed = [word.partition("=")[2] for word in words if short(word).startswith("launcher=")]
    card, group = (typed or ["local"])[-1], LAUNCHER["="]
    owners = [f"launcher={one}" for one in choices(group) if setting in card_settings(group, one)]
    known = card_settings(group, card) if card in choices(group) else []
    cure = f"expected {', '.join(f'launcher.{one}' for one in known)}" if known else "leave it out"
    cure = f"add {owners[0]}, which has it" if owners else cure
    return f"launcher.{setting} is not a setting of launcher={card}; {cure}"


def _of_another_card(name: str, door: str) -> str:
    """One line for a setting of a card that is not the chosen one."""
    group, _, rest = name.partition(".")
    owners = [f"{group}={card}" for card in choices(group) if rest in card_settings(group, card)]
    cure = f"{listing(owners)} it" if owners else f"see python -m lab.{door} --cfg job"
    return f"{name} is not a setting of the chosen {group}; {cure}"

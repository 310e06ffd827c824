"""Slips of names: what was typed as other programs call it, and what is to be typed here, in one line.

    optimizer.learning_rate=0.1: the setting is optimizer.lr; write optimizer.lr=0.1

The names are in `synonyms.py`. They are looked up only after Hydra or a card has refused a name, so that they are in
nobody's way: a card of your own may have a setting of any name.
"""

import re
from collections.abc import Iterable, Sequence

from lab.doors import synonyms, synonyms_of_cards
from lab.doors.cures import CommandLine, Cure, instead_of_card, names, normal
from lab.doors.pages import card_settings, known_settings
from lab.run.cards import choices

FILES = (".npz", ".npy", ".pt", ".pth", ".safetensors")
"""How files of tensors end."""
YES, NO = ("true", "auto", "last", "1", "best", "yes"), ("false", "null", "none", "0", "no", "")
CHECKPOINT = f"{synonyms.RESUMED} run file folder path from"
"""What lab.measure's checkpoint= may be called."""


def setting_answer(name: str, words: Sequence[str], door: str) -> str | None:
    """One line for a setting that does not exist, with the cures of other slips behind it; None: nothing is known."""
    line = CommandLine(words)
    value = line.typed(name)
    found = cure(name, value or "", line, door)
    return None if found is None else f"{name}={value or ''}: {found}{_likewise(name, line, door)}"


def card_answer(group: str, name: str, words: Sequence[str], door: str) -> str | None:
    """One line for a card that does not exist, likewise."""
    line = CommandLine(words)
    value = line.typed(group) or name
    found = instead_of_card(group, value)
    return None if found is None else f"{group}={value} does not exist; {found}{_likewise(group, line, door)}"


def flag_answer(words: Sequence[str], flags: Iterable[str], door: str) -> str | None:
    """One line for a setting that was typed as a flag, as in --lr 0.1 or --trainer.max_epochs=10; None: there is none."""
    for word, after in zip(words, [*words[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        bare = name.lstrip("-")
        if not re.match(r"--?[a-zA-Z]", word) or any(flag == name or flag.startswith(f"{name}") for flag in flags):
            continue
        shown = word
        if not equals:
            apart = after and "=" not in after and not re.match(r"-\D", after)
            shown, value = (f"{word} {after}", after) if apart else (word, "true")
        own = door == "simulate" or bare in known_settings()
        found = Cure(f"{bare}={value}") if own else cure(bare, value, CommandLine(words), door)
        if found:
            cured = found.sentence or f"settings are typed without dashes; write {found.write}"
            return f"{shown}: {cured}"
    return None


def checkpoint_answer(words: Sequence[str]) -> str | None:
    """One line for the checkpoint= of lab.measure under another name, where there is one."""
    called = [(word, value) for word, name, value in CommandLine(words).settings if normal(name) in names(CHECKPOINT)]
    return f"{called[0][0]}: {Cure.of('checkpoint', called[0][1])}" if called else None


def simulated_answer(name: str, words: Sequence[str], known: Sequence[str]) -> str | None:
    """One line for a setting that an experiment of lab.simulate does not have, which has those that are `known`."""
    value, last = CommandLine(words).typed(name) or "", normal(name).rpartition(".")[2]
    own = [one for one in known if normal(one) == last]
    own += [one for one, called in synonyms.SIMULATED.items() if one in known and last in names(called)]
    return f"{name}={value}: {Cure.of(own[0], value)}" if own else None


def meant(name: str, words: Sequence[str], door: str) -> str | None:
    """The setting that a name means; None: nothing is known, or it is no single one."""
    line = CommandLine(words)
    found = cure(name, line.typed(name) or "", line, door)
    return found.setting or None if found else None


def cure(name: str, value: str, line: CommandLine, door: str) -> Cure | None:
    """What is to be typed in the place of a setting of that name; None: nothing is known."""
    key, last = normal(name), normal(name).rpartition(".")[2]
    if door == "measure" and key in names(CHECKPOINT):
        return Cure.of("checkpoint", value)
    if key in names(synonyms.PLACES) and (place := _place(value, line)).setting != name:
        return place
    if name in known_settings():
        return None
    if key in names(synonyms.RESUMED) or (key.startswith("trainer.") and last in names(synonyms.RESUMED)):
        return _resumed(value)
    group, _, rest = name.partition(".")
    group = _group(group)
    if rest and (group == "probe" or _probe(group)):
        return _of_a_probe(group, rest, value, line)
    if not rest and group in synonyms.GROUPS and group != name:
        return _of_a_group(group, value)
    if own := _same(f"{group}.{rest}" if rest else name) or _same(".".join(name.split(".")[-2:])):
        return _fitting(own, value, line)
    for one in dict.fromkeys((key, normal(f"{group}.{rest}"), last)):
        if found := _in_tables(one, value, line):
            return found
    ends = [known for known in known_settings() if "." in known and normal(known).rpartition(".")[2] == last]
    if len(ends) == 1:
        return _fitting(ends[0], value, line)
    return (
        Cure.of(f"probe.{_selected(line)}.{name}", value) if name in card_settings("probe", _selected(line)) else None
    )


def _in_tables(key: str, value: str, line: CommandLine) -> Cure | None:
    for called, targets in synonyms.BY_VALUE.items():
        if key in names(called):
            for values, target in targets.items():
                if value.lower() in values.split():
                    return Cure(target)
    for target, called in synonyms.SETTINGS.items():
        if key in names(called):
            grid = target == "hydra.run.dir" and line.several
            return _fitting("hydra.sweep.dir" if grid else target, value, line)
    return next((Cure(sentence=text) for text, called in synonyms.ABSENT.items() if key in names(called)), None)


def _group(name: str) -> str:
    """The group that a name means, or the name."""
    return next(
        (group for group, called in synonyms.GROUPS.items() if normal(name) in names(f"{called} {group}")), name
    )


def _probe(name: str) -> str | None:
    """The probe that a name means."""
    return next(
        (probe for probe, called in synonyms_of_cards.PROBES.items() if normal(name) in names(f"{called} {probe}")),
        None,
    )


def _same(name: str) -> str | None:
    """The setting whose name differs in case or underscores only."""
    return next((known for known in known_settings() if normal(known) == normal(name)), None)


def _of_a_group(group: str, value: str) -> Cure:
    """A group under another name, with its card."""
    found = instead_of_card(group, value) if choices(group) else None
    if found is None or found.sentence:
        return found or Cure.of(group, value)
    return Cure(found.write, setting="" if " " in found.write else group)


def _selected(line: CommandLine) -> str:
    """The first of the selected probes."""
    first = (line.typed("probe") or "").strip("[]").partition(",")[0].strip()
    return first if first in choices("probe") else "sharpness"


def _of_a_probe(group: str, rest: str, value: str, line: CommandLine) -> Cure | None:
    """A setting of a probe: probe.sharpness.freq, sharpness.every, or probe.every, of no probe in particular."""
    typed, _, name = rest.partition(".") if group == "probe" else (group, "", rest)
    probe = _probe(typed)
    if not name:
        probe, name = (_selected(line), rest) if probe is None else (probe, "")
    if probe is None:
        return None
    if not name:
        return Cure(sentence=f"probes are chosen in a list; write probe=[{probe}]")
    settings = card_settings("probe", probe)
    own = [one for one in settings if normal(one) == normal(name)]
    own += [one for one, called in synonyms.PROBE_SETTINGS.items() if one in settings and normal(name) in names(called)]
    return Cure.of(f"probe.{probe}.{own[0]}", value) if own else None


def _place(value: str, line: CommandLine) -> Cure:
    """Where the data are: data.root, data.file or data.path, by the card that is chosen, else by the value."""
    typed = line.typed("data")
    rooted = [card for card in choices("data") if "root" in card_settings("data", card)]
    kinds = dict.fromkeys(rooted, "data.root") | {"tensors": "data.file", "own": "data.path"}
    if typed in kinds:
        return Cure.of(kinds[str(typed)], value)
    card = "own" if ".py:" in value else "tensors" if value.lower().endswith(FILES) else "image_folder"
    return Cure(f"data={card} {kinds[card]}={value}")


def _resumed(value: str) -> Cure:
    if value.lower() in YES:
        return Cure(sentence="the same command goes on from where a run was stopped; leave it out")
    if value.lower() in NO:
        return Cure(sentence="a run begins anew in another folder, hydra.run.dir=DIR; leave it out")
    return Cure.of("from", value)


def _fitting(target: str, value: str, line: CommandLine) -> Cure:
    """The cure for an entry of the tables where the chosen card has that setting; else how it is to be had."""
    found = Cure.of(target, value, several=line.several)
    group, _, rest = found.setting.partition(".")
    card = line.card(group)
    if not rest or group == "probe" or card not in choices(group):
        return found
    if other := synonyms.FITTING.get(f"{target} {card}"):
        return Cure(sentence=other) if " " in other else Cure.of(other, value)
    settings = card_settings(group, str(card))
    if rest not in settings and "args" in settings:
        return Cure.of(f"{group}.args.{rest}", value)
    owners = [one for one in choices(group) if rest in card_settings(group, one)]
    if rest in settings or not owners:
        return found
    if len(owners) == 1 and line.typed(group) is None:
        return Cure(f"{group}={owners[0]} {found.write}")
    return Cure(sentence=f"the setting is {group}.{rest}; {group}={card} has none, {listing(owners)}")


def listing(cards: Sequence[str]) -> str:
    """Who has a setting, in a sentence.

    >>> listing(["adam"]), listing(["adam", "adamw", "rmsprop"])
    ('adam has', 'adam, adamw and rmsprop have')
    """
    together = " and ".join(filter(None, [", ".join(cards[:-1]), cards[-1]]))
    return f"{together} {'has' if len(cards) == 1 else 'have'}"


def _likewise(name: str, line: CommandLine, door: str) -> str:
    """The other slips of a line, each with what is to be typed; nothing where there are cards of the user's own."""
    cures = []
    own = any(word.startswith(("--config-dir", "-cd")) for word in line.words)
    for word, other, value in [] if own else line.settings:
        if other == name or other.startswith("hydra"):
            continue
        if other in known_settings():
            found = instead_of_card(other, value) if choices(other) else None
        else:
            found = cure(other, value, line, door)
        if found and found.write:
            cures.append(f"{found.write} for {word}")
    return f"; likewise {', '.join(cures)}" if cures else ""

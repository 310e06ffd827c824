"""What is to be typed in the place of a slip: the parts that slips of settings and of cards share, and those of cards."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from lab.doors import synonyms_of_cards
from lab.doors.pages import default_cards
from lab.run.cards import choices


@dataclass(frozen=True)
class Cure:
    """What is to be typed (`write`), or a sentence in the place of it; `setting`: the one that is meant, if it is one."""

    write: str = ""
    sentence: str = ""
    setting: str = ""

    @staticmethod
    def of(target: str, value: str, *, several: bool = False) -> "Cure":
        """From an entry of the tables and the value that was typed; several: a list of values is an axis of a grid.

        >>> Cure.of("optimizer.lr", "0.1").write, Cure.of("model.widths=[{}]", "64").write
        ('optimizer.lr=0.1', 'model.widths=[64]')
        >>> Cure.of("model.widths=[{}]", "32,64", several=True).write
        'model.widths=[32],[64]'
        """
        if "=" not in target:
            return Cure(f"{target}={value}", setting=target)
        if "[{}]" in target:
            target = target.replace("[{}]", "{}")
            parts = value.split(",") if several and not value.startswith("[") else [value]
            value = ",".join(part if part.startswith("[") else f"[{part}]" for part in parts)
        return Cure(target.replace("{}", value), setting="" if " " in target else target.partition("=")[0])

    def __str__(self) -> str:
        if self.sentence:
            return self.sentence
        return f"the setting is {self.setting}; write {self.write}" if self.setting else f"write {self.write}"


@dataclass(frozen=True)
class CommandLine:
    """The words that were typed."""

    words: Sequence[str]

    @property
    def settings(self) -> Iterator[tuple[str, str, str]]:
        """Every setting: the word, the name and the value."""
        for word in self.words:
            name, equals, value = word.partition("=")
            if equals and not word.startswith("-"):
                yield word, name.lstrip("+"), value

    @property
    def several(self) -> bool:
        """Whether a grid is asked for."""
        return bool({"-m", "--multirun"} & {*self.words})

    def typed(self, name: str) -> str | None:
        """The value of a setting, the last one; None: it was not typed."""
        return next((value for _, other, value in reversed([*self.settings]) if other == name), None)

    def card(self, group: str) -> str | None:
        """The card of a group as far as it is known: typed, or the default where no experiment says otherwise."""
        return self.typed(group) or (None if self.typed("experiment") else default_cards().get(group))


def normal(name: str) -> str:
    """A name as names are compared.

    >>> normal("optimizer.learningRate") == normal("optimizer.learning_rate")
    True
    """
    return re.sub("[_-]", "", name.lower())


@cache
def names(listed: str) -> frozenset[str]:
    """The names in an entry of the tables, as they are compared."""
    return frozenset(map(normal, listed.split()))


def instead_of_card(group: str, value: str) -> Cure | None:
    """What is to be typed in the place of a card, or of a list of cards, of which some are called otherwise; None: nothing
    is known.

    >>> instead_of_card("optimizer", "SGD,adam").write, instead_of_card("model", "resnet20").write
    ('optimizer=sgd,adam', 'model=resnet model.depth=20')
    """
    if group == "probe" and value.strip("[]").lower() == "all":
        return Cure(sentence=f"name those you want in a list, of {', '.join(choices('probe'))}")
    values = [one.strip(" '\"") for one in value.strip("[]").split(",")]
    cures = [None if one in choices(group) else _instead_of_one(group, one) for one in values]
    known = [one for one in cures if one is not None]
    if not known or len(values) == 1:
        return known[0] if known else None
    if any(one.sentence or " " in one.write for one in known):
        return next(one for one in known if one.sentence or " " in one.write)
    cards = [one.write.partition("=")[2].strip("[]") if one else old for one, old in zip(cures, values, strict=True)]
    inner = ",".join(dict.fromkeys(filter(None, cards)))
    return Cure(f"{group}=[{inner}]" if group == "probe" else f"{group}={inner}")


def _instead_of_one(group: str, value: str) -> Cure | None:
    key = _squeezed(value)
    for card in choices(group):
        if _squeezed(card) == key:
            return Cure(f"probe=[{card}]" if group == "probe" else f"{group}={card}")
    for write, called in _cards(group).items():
        if key in map(_squeezed, called.split()):
            return Cure(write)
    if group == "model" and key.startswith(tuple(map(_squeezed, synonyms_of_cards.TORCHVISION.split()))):
        return Cure(f"model=torchvision model.name={value.lower()}")
    if group == "data" and key in map(_squeezed, synonyms_of_cards.NO_DATA.split()):
        there = ", ".join(choices("data"))
        return Cure(sentence=f"expected one of {there}; images in folders are data=image_folder data.root=DIR")
    return None


def _cards(group: str) -> dict[str, str]:
    probes = {f"probe=[{probe}]": called for probe, called in synonyms_of_cards.PROBES.items()}
    return (probes if group == "probe" else {}) | synonyms_of_cards.CARDS.get(group, {})


def _squeezed(name: str) -> str:
    """A name of a card as they are compared: letters and digits."""
    return re.sub(r"[^a-z0-9]", "", name.lower())

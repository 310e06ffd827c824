"""The knobs of a card: text, range and default stand once, in the class."""

import os
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from cards import as_yaml, card_text
from pydantic import Field
from pydantic.dataclasses import dataclass

from lab.settings import CARD, knobs, settings, usable_cpus


@settings()
class Parent:
    """Waits.

    For long.
    """

    every: Annotated[int, Field(gt=0, description="steps between measurements")] = 1


@settings()
class Child(Parent):
    """Waits longer."""

    every: int = 5
    tol: Annotated[float | None, Field(description="wanted error; null: none")] = None
    memory: int = field(default=0, init=False)


@dataclass(config=CARD)
class Silent:
    """A card without a word on its knob."""

    k: int = 1


def test_a_knob_whose_default_changes_inherits_its_text_and_state_is_no_knob() -> None:
    assert {name: (str(knob), knob.default) for name, knob in knobs(Child).items()} == {
        "every": ("steps between measurements", 5),
        "tol": ("wanted error; null: none", None),
    }


def test_a_docstring_ends_in_the_knobs_and_keeps_its_own_words() -> None:
    words = "Waits.\n\nFor long.\n\nSettings:\nevery  steps between measurements (default 1)"
    assert Parent.__doc__ == words  # at least 1 is plain for a count


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[float, Field(ge=0, lt=1)], "x; in [0, 1)"),
        (Annotated[float, Field(gt=0, le=1e30)], "x; > 0"),
        (Annotated[int, Field(ge=1, le=50)], "x; 1 to 50"),
        (Annotated[int, Field(gt=1)], "x; >= 2"),
        (Annotated[int, Field(ge=0)] | None, "x"),
        (Annotated[float, Field(le=2)] | None, "x; <= 2"),
        (tuple[Annotated[float, Field(gt=0, le=2)], ...], "x; each in (0, 2]"),
        (Literal["a", "b"], "x; a | b"),
        (Annotated[int, Field(ge=2)] | tuple[int, ...], "x"),  # a range of one of several kinds would mislead
        (bool, "x"),
    ],
)
def test_a_range_follows_the_text_where_it_says_something(annotation: Any, words: str) -> None:
    kind = settings()(
        type("Kind", (), {"__annotations__": {"k": Annotated[annotation, Field(description="x")]}, "k": None})
    )
    assert str(knobs(kind)["k"]) == words


def test_a_card_of_a_class_without_texts_stays_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "silent.yaml"
    file.write_text(f"_target_: {__name__}.Silent\nk: 1  # by hand\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cards.get_class", lambda name: Silent)
        assert card_text(file) is None


@pytest.mark.parametrize(
    "default", [0.1, 1e-8, 1e6, 150.0, 1 / 3, 7, True, None, "", "*", "auto", "null", (0.9, 0.999), ()]
)
def test_a_default_reads_back(default: Any) -> None:
    back = yaml.safe_load(f"k: {as_yaml(default)}")["k"]
    assert (tuple(back) if isinstance(default, tuple) else back) == default
    assert type(back) is (list if isinstance(default, tuple) else type(default))


@pytest.mark.parametrize(("granted", "usable"), [("2", 2), ("16", 4), ("", 4), ("0", 4), ("two", 4)])
def test_a_job_of_slurm_has_the_cpus_that_it_was_granted(
    granted: str, usable: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert usable_cpus() == usable

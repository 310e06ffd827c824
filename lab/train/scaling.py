"""Settings made for batches of one size carried to another: the learning rate and the number of updates.

    lr    x (B / B0)^p      p = 0 (none), 1/2 (sqrt: Krizhevsky 2014, arXiv 1404.5997), 1 (linear: Goyal et al. 2017,
                            arXiv 1706.02677)
    steps x B0 / B          where the budget is epochs: as many passes over the examples; else as many updates
                            (Hoffer et al. 2017, arXiv 1705.08741)

Where the number of updates is multiplied, so are those that the schedule counts; a warm-up that is a share of the run is one
by itself. Done to the settings before anything else looks at them: a run records the rate and the steps it really has.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from lab.run.cards import card, typed
from lab.settings import SettingError, settings

POWERS = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@settings()
class Scaling:
    """Learning rate and length made for one batch size B0, carried to data.batch_size (which must be a number then)."""

    batch_size: Annotated[
        int, Field(gt=0, strict=True, description="B0, the batch size that optimizer.lr and steps are meant for")
    ] = 32
    lr: Annotated[
        Literal["none", "sqrt", "linear"],
        Field(description="none | sqrt | linear: optimizer.lr x (data.batch_size / B0)^(0 | 1/2 | 1)"),
    ] = "none"
    budget: Annotated[
        Literal["steps", "epochs"],
        Field(description="steps: as many updates | epochs: as many passes, steps x B0 / data.batch_size updates"),
    ] = "steps"
    epochs: Annotated[
        Annotated[int, Field(gt=0, strict=True)] | None,  # lab.data would load torch, which help does not wait for
        Field(
            description="in place of steps: those of so many passes over data.examples in batches of B0; null: steps"
        ),
    ] = None

    @property
    def plain(self) -> bool:
        """Whether nothing is carried anywhere."""
        return self.lr == "none" and self.budget == "steps" and self.epochs is None

    def factors(self, batch_size: int) -> tuple[float, float]:
        """What the learning rate and the number of updates are multiplied by.

        >>> Scaling(lr="sqrt", budget="epochs").factors(128)
        (2.0, 0.25)
        """
        ratio = batch_size / self.batch_size
        return ratio ** POWERS[self.lr], 1 / ratio if self.budget == "epochs" else 1.0

    def updates(self, steps: int | None, examples: int, batch_size: int) -> int:
        """How many updates a run has: those of `epochs` where these are given, over so many examples, else of `steps`.

        >>> [Scaling(epochs=3, budget=budget).updates(None, 100, 64) for budget in ("steps", "epochs")]
        [12, 6]
        """
        if self.epochs is None:
            return max(1, round((steps or 0) * self.factors(batch_size)[1]))
        return self.epochs * -(-examples // (batch_size if self.budget == "epochs" else self.batch_size))


def scaled(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with their `scaling` carried out and taken away. Raises SettingError in one line."""
    scaling = card(settings.get("scaling"), "scaling")
    rest = {name: value for name, value in settings.items() if name != "scaling"}
    if scaling.plain:
        return rest
    place, rates = "optimizer.lr", rest["optimizer"]
    if "args" in rates:  # code of one's own, which is called with its learning rate
        place, rates = "optimizer.args.lr", rates["args"]
    data, steps, lr = rest["data"], rest.get("steps"), rates.get("lr")
    length = ("steps", steps, int) if scaling.epochs is None else _passes(scaling, rest)
    wanted: list[tuple[str, Any, type[int] | type[float]]] = [
        ("data.batch_size", data.get("batch_size"), int),
        length,
        (place, lr, float),
    ]
    for name, value, kind in wanted:
        if isinstance(value, bool) or not isinstance(value, kind | int) or value <= 0:
            raise SettingError(
                f"{name}={typed(value)}, but scaling.lr={scaling.lr} scaling.budget={scaling.budget} "
                f"{'count in' if name == 'data.examples' else 'multiply'} it: give {name} as a positive number"
            )
    times_lr, times_steps = scaling.factors(data["batch_size"])
    rate = {"lr": lr * times_lr}
    return rest | {
        "optimizer": rest["optimizer"] | ({"args": rates | rate} if "args" in rest["optimizer"] else rate),
        "schedule": _carried(rest.get("schedule") or {}, times_steps, data["batch_size"]),
        "steps": scaling.updates(steps, data.get("examples") or 0, data["batch_size"]),
    }


def _passes(scaling: Scaling, rest: Mapping[str, Any]) -> tuple[str, Any, type[int]]:
    """What passes are counted in. Raises SettingError where another length is given too."""
    for name, cure in (("steps", "scaling.epochs=null"), ("epochs", f"scaling.epochs={rest.get('epochs')} alone")):
        if rest.get(name) is not None:
            raise SettingError(
                f"{name}={typed(rest[name])} and scaling.epochs={scaling.epochs} contradict each other; write {cure}"
            )
    return "data.examples", rest["data"].get("examples"), int


def _carried(schedule: dict[str, Any], times: float, batch_size: int) -> dict[str, Any]:
    """The settings of a schedule with the updates it counts multiplied; a share of the run stays one.

    >>> _carried({"steps": 100}, 0.125, 256), _carried({"steps": 0.1}, 0.125, 256)
    ({'steps': 12}, {'steps': 0.1})
    """
    if times == 1:
        return schedule
    carried = dict(schedule)
    if isinstance(steps := schedule.get("steps"), int) and not isinstance(steps, bool):
        carried["steps"] = max(1, round(steps * times)) if steps > 0 else steps
    if isinstance(milestones := schedule.get("milestones"), list) and all(isinstance(m, int) for m in milestones):
        carried["milestones"] = moved = [max(1, round(m * times)) if m > 0 else m for m in milestones]
        if len({*moved}) < len({*milestones}):
            raise SettingError(
                f"schedule.milestones={typed(milestones)} fall together at data.batch_size={batch_size}, where "
                f"scaling.budget=epochs makes them {typed(moved)}; give fewer, or more steps"
            )
    return carried

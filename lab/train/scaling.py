"""Settings made for batches of one size carried to another: the learning rate and the number of updates.

    lr    x (B / B0)^p      p = 0 (none), 1/2 (sqrt: Krizhevsky 2014, arXiv 1404.5997), 1 (linear: Goyal et al. 2017,
                            arXiv 1706.02677)
    steps x B0 / B          where the budget is epochs: as many passes over the examples; else as many updates
                            (Hoffer et al. 2017, arXiv 1705.08741)

Done to the settings before anything else looks at them: a run records the learning rate and the steps it really has.
"""

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

    def factors(self, batch_size: int) -> tuple[float, float]:
        """What the learning rate and the number of updates are multiplied by.

        >>> Scaling(lr="sqrt", budget="epochs").factors(128)
        (2.0, 0.25)
        """
        ratio = batch_size / self.batch_size
        return ratio ** POWERS[self.lr], 1 / ratio if self.budget == "epochs" else 1.0


def scaled(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with their `scaling` carried out and taken away. Raises SettingError in one line."""
    scaling = card(settings.get("scaling"), "scaling")
    rest = {name: value for name, value in settings.items() if name != "scaling"}
    if scaling.lr == "none" and scaling.budget == "steps":
        return rest
    place, rates = "optimizer.lr", rest["optimizer"]
    if "args" in rates:  # code of one's own, which is called with its learning rate
        place, rates = "optimizer.args.lr", rates["args"]
    batch_size, steps, lr = rest["data"].get("batch_size"), rest.get("steps"), rates.get("lr")
    for name, value, kind in (("data.batch_size", batch_size, int), ("steps", steps, int), (place, lr, float)):
        if isinstance(value, bool) or not isinstance(value, kind | int) or value <= 0:
            raise SettingError(
                f"{name}={typed(value)}, but scaling.lr={scaling.lr} scaling.budget={scaling.budget} multiply it: "
                f"give {name} as a positive number"
            )
    times_lr, times_steps = scaling.factors(batch_size)
    rate = {"lr": lr * times_lr}
    return rest | {
        "optimizer": rest["optimizer"] | ({"args": rates | rate} if "args" in rest["optimizer"] else rate),
        "steps": max(1, round(steps * times_steps)),
    }

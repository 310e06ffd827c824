"""A loss of one's own: a function of (outputs, targets), or a class that makes one, named by its path.

    loss=own loss.path=losses.py:focal loss.args.gamma=2            focal(outputs, targets, gamma=2)
    loss=own loss.path=torch.nn:HuberLoss loss.args.delta=0.5       HuberLoss(delta=0.5)(outputs, targets)

Its value is a scalar, the MEAN over the examples it is given: chunks of a batch are added up by that.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from torch import nn

from lab.models.losses import Criterion
from lab.named import NamedCode, require_fit, running
from lab.params import trainable
from lab.settings import SettingError, settings


@settings()
class OwnLoss(NamedCode):
    """A loss of your own: a function of (outputs, targets), or a class that makes one; the mean over examples, a scalar."""

    group: ClassVar[str] = "loss"
    example: ClassVar[str] = "losses.py:focal"

    @property
    def unit(self) -> str:
        """What its numbers are, for the axis of a figure."""
        return self.path.rpartition(":")[2]

    def require_fit(self, code: Callable[..., Any]) -> None:
        takes = () if inspect.isclass(code) else ("outputs", "targets")
        require_fit(code, self.args, self.group, self.path, takes)

    def build(self, num_classes: int | None) -> Criterion:
        """The criterion. Raises SettingError where the code raises, and for a loss with weights: nobody would train them."""
        self.check()
        code = self.loaded()
        if not inspect.isclass(code):
            return partial(code, **self.args) if self.args else code
        with running(self.path, self.setting):
            criterion = code(**self.args)
        if not callable(criterion):
            raise SettingError(f"{self.setting} makes a {type(criterion).__name__} that cannot be called")
        if isinstance(criterion, nn.Module) and trainable(criterion):
            raise SettingError(
                f"{self.setting} has trainable weights, which would not be trained; put them in the model"
            )
        return criterion

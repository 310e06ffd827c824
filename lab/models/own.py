"""A model of one's own: a class or a function that makes a torch module, named by its path.

    model=own model.path=nets.py:TinyNet model.args.width=64        TinyNet(width=64) of the file nets.py

It is made within the seed of the run, so that `torch.nn` initialises it as any other. The module maps inputs (B, ...) of the
data to one tensor of outputs, as many for each example as the loss wants.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from lab.named import NamedCode, running
from lab.params import trainable
from lab.settings import SettingError, settings
from lab.streams import seeded


@settings()
class OwnModel(NamedCode):
    """A torch module of your own: a class, or a function that returns one; made within the seed of the run."""

    group: ClassVar[str] = "model"
    example: ClassVar[str] = "nets.py:TinyNet"

    def check(self) -> None:
        super().check()
        if isinstance(self.loaded(), nn.Module):
            raise SettingError(f"{self.setting} is a module already; name the class, or a function that makes one")

    def build(self, input_shape: Sequence[int], num_outputs: int, seed: int) -> nn.Module:
        """The module. Shapes are its own affair: what does not fit the data shows in a forward pass. The global random
        generators are left untouched. Raises SettingError where the code raises, and for what is no module.
        """
        self.check()
        code = self.loaded()
        with running(self.path, self.setting), seeded(seed), torch.device("cpu"):
            model = code(**self.args)
        if not isinstance(model, nn.Module):
            raise SettingError(f"{self.setting} returned {type(model).__name__}, no torch.nn.Module")
        if not trainable(model):
            raise SettingError(
                f"{self.setting}: the model has no trainable weight (requires_grad); there is nothing to train"
            )
        return model

"""The convolutional classifiers of torchvision by name, untrained: what its state dictionaries fit into.

Built as `torchvision.models.get_model(name, weights=None, num_classes=K)`, drawn from the seed of the run; activations
that torchvision computes in place are computed beside, so that the network can be differentiated twice. Left out are
networks of attention, whose fused kernels have no second derivative, and those that return more than the logits.
"""

import difflib
from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, field_validator
from torch import nn

from lab.models.mlp import InitScale, initialised
from lab.settings import SettingError, settings

LEFT_OUT = ("vit_", "swin_", "maxvit", "googlenet", "inception")


def names() -> list[str]:
    """The networks that can be chosen."""
    from torchvision import models

    return [name for name in models.list_models(module=models) if not name.startswith(LEFT_OUT)]


@settings()
class TorchVision:
    """Convolutional classifiers of torchvision, untrained, drawn from the run's seed: their state dicts fit. RGB images."""

    name: Annotated[
        str, Field(description="resnet18 | resnet50 | vgg11_bn | densenet121 | mobilenet_v2 | ... (torchvision.models)")
    ] = "resnet18"
    init_scale: InitScale = 1.0

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in (known := names()):
            near = difflib.get_close_matches(name, known, n=3) or ["resnet18"]
            raise ValueError(f"expected a convolutional classifier of torchvision, e.g. {' or '.join(near)}")
        return name

    def build(self, input_shape: Sequence[int], num_classes: int, seed: int) -> nn.Module:
        """RGB images (B, 3, H, W) -> logits (B, num_classes). The global random generator is left untouched.

        Raises SettingError when examples are not such images.
        """
        from torchvision import models

        if len(input_shape) != 3 or input_shape[0] != 3:
            raise SettingError(
                f"model=torchvision needs images of 3 channels, but examples have shape {tuple(input_shape)}; "
                "use data=image_folder or data=cifar10"
            )
        model = initialised(
            lambda: models.get_model(self.name, weights=None, num_classes=num_classes),
            seed=seed,
            init_scale=self.init_scale,
        )
        for module in model.modules():
            if getattr(module, "inplace", False) is True:
                module.inplace = False
        return model

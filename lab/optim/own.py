"""An optimiser of one's own, or any of torch: a class or a function of the weights, named by its path.

    optimizer=own optimizer.path=torch.optim:NAdam optimizer.args.lr=0.002       NAdam(params, lr=0.002)
    optimizer=own optimizer.path=mine.py:make optimizer.args.lr=0.1              make(params, lr=0.1)

A function whose first argument is called `model` is given the model; it returns one optimiser, or a list of them. Sharpness
is held against a threshold where the rule is one that is known (`lab.optim.rules`); else it is measured.
"""

import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from torch import Tensor, nn, optim

from lab.named import NamedCode, require_fit, running
from lab.optim.direction import evaluates_the_loss
from lab.optim.joint import Joint, Updater
from lab.optim.optimizers import OptimizerCard
from lab.params import trainable
from lab.settings import SettingError, settings


@settings()
class OwnOptimizer(NamedCode, OptimizerCard):
    """An optimiser of your own, or any of torch: code that takes (params, ...) or (model, ...); args.lr is its rate."""

    group: ClassVar[str] = "optimizer"
    example: ClassVar[str] = "torch.optim:NAdam optimizer.args.lr=0.002"

    def require_fit(self, code: Callable[..., Any]) -> None:
        require_fit(code, self.args, self.group, self.path, ("model" if _of_model(code) else "params",))

    def build(self, params: Iterable[Tensor]) -> optim.Optimizer:
        """As `OptimizerCard.build`, for code that makes one optimiser of the weights."""
        made = self._made(list(params))
        if isinstance(made, Joint):
            raise SettingError(f"{self.setting} returned several optimisers; expected one")
        return made

    def of(self, model: nn.Module) -> Updater:
        """What moves the weights of `model`. Raises SettingError where the code raises, for what is no optimiser, for one
        without a learning rate, and for one that evaluates the loss by itself.
        """
        self.check()
        code = self.loaded()
        if inspect.isclass(code) and issubclass(code, optim.Muon):
            return self._muon(code, model)
        return self._made(model if _of_model(code) else list(model.parameters()))

    def _made(self, of: Any) -> Updater:
        with running(self.path, self.setting):
            made = self.loaded()(of, **self.args)
        several = isinstance(made, list | tuple)
        members = list(made) if several else [made]
        for one in members:
            self._require(one)
        held = [id(p) for one in members for group in one.param_groups for p in group["params"]]
        if not held or len(set(held)) < len(held):
            what = "twice the same weights" if held else "no weights"
            raise SettingError(f"{self.setting}: its optimisers hold {what}; give each weight to one of them")
        return Joint(members) if len(members) > 1 else members[0]

    def _require(self, one: Any) -> None:
        if not isinstance(one, optim.Optimizer):
            raise SettingError(
                f"{self.setting} returned {type(one).__name__}; expected a torch.optim.Optimizer, or a list of them"
            )
        if any("lr" not in group for group in one.param_groups):
            raise SettingError(
                f"{self.setting}: the groups of {type(one).__name__} have no lr, which a run steers and tells"
            )
        if evaluates_the_loss(one):
            raise SettingError(
                f"{self.setting}: {type(one).__name__} evaluates the loss by itself (its step needs a closure), which is no "
                "step on one gradient; choose another optimizer"
            )

    def _muon(self, code: type[optim.Optimizer], model: nn.Module) -> Updater:
        """Muon takes matrices only: the other weights go to AdamW at the same learning rate, which is said."""
        weights = trainable(model)
        matrices, others = ([p for p in weights if (p.dim() == 2) == flat] for flat in (True, False))
        if not matrices:
            raise SettingError(f"{self.setting} takes matrices only, and the model has none; choose another optimizer")
        first = self._made(matrices)
        if not others:
            return first
        lr = first.param_groups[0]["lr"]
        names = {id(p): name for name, p in model.named_parameters()}
        some = ", ".join(names[id(p)] for p in others[:3]) + (", ..." if len(others) > 3 else "")
        counts = [sum(p.numel() for p in those) for those in (matrices, others)]
        print(
            f"{code.__name__} takes matrices only: it moves {counts[0]} weights, and the other {counts[1]} ({some}) are "
            f"moved by AdamW at the same learning rate, {lr:g}",
            file=sys.stderr,
            flush=True,
        )
        return Joint([first, optim.AdamW(others, lr=lr)])  # type: ignore[list-item]


def _of_model(code: Callable[..., Any]) -> bool:
    """Whether the first argument is called `model`."""
    try:
        return next(iter(inspect.signature(code).parameters), "") == "model"
    except (TypeError, ValueError):
        return False

"""Several optimisers of one model, stepped together as if they were one: matrices by one rule, the rest by another."""

from collections.abc import Sequence
from typing import Any

from torch import optim


class Joint:
    """Optimisers that hold different weights. Their groups are those of the members, in order: a schedule, and whoever reads
    a learning rate, finds them as in one.
    """

    def __init__(self, members: Sequence[optim.Optimizer]):
        self.members = list(members)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for member in self.members for group in member.param_groups]

    def zero_grad(self) -> None:
        for member in self.members:
            member.zero_grad()

    def step(self) -> None:
        for member in self.members:
            member.step()

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self.members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back. Raises KeyError or ValueError for the state of other optimisers."""
        for member, kept in zip(self.members, state["members"], strict=True):
            member.load_state_dict(kept)


Updater = optim.Optimizer | Joint
"""What moves the weights of a run."""


def members_of(updater: Updater) -> list[optim.Optimizer]:
    """The optimisers themselves."""
    return updater.members if isinstance(updater, Joint) else [updater]

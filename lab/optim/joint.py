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
        return {str(i): member.state_dict() for i, member in enumerate(self.members)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back. Raises KeyError or ValueError for the state of other optimisers."""
        if len(state) != len(self.members):
            raise ValueError(f"the state of {len(state)} optimisers for {len(self.members)}")
        for i, member in enumerate(self.members):
            member.load_state_dict(state[str(i)])


Updater = optim.Optimizer | Joint
"""What moves the weights of a run."""


def members_of(updater: Updater) -> list[optim.Optimizer]:
    """The optimisers themselves."""
    return updater.members if isinstance(updater, Joint) else [updater]

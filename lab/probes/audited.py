"""The audit of a loss before its first number, once a run: what stands between a snapshot and its losses."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from lab.objective import Audit, Law, Objective, audit

Loss = TypeVar("Loss", bound=Objective)


class Audited:
    """Hands losses on; the first is audited before (`lab.objective.audit`), unless `wanted` is False.

    found: what the audit found, None as long as there was none. Raises what the audit raises, at the first loss and, as long
    as that is refused, at every later one.
    """

    def __init__(self, *, wanted: bool, seed: int):
        self.wanted, self.seed = wanted, seed
        self.found: Audit | None = None
        self._untold = False

    def __call__(self, loss: Loss) -> Loss:
        if self.wanted:
            self.found, self.wanted, self._untold = audit(loss, seed=self.seed), False, True
        return loss

    def told(self) -> Audit | None:
        """What was found since this was asked last."""
        self._untold, told = False, self._untold
        return self.found if told else None

    def state_dict(self) -> dict[str, Any]:
        """What was found, as plain values, less what the clock says: a run that goes on is not audited again."""
        return {} if self.found is None else asdict(self.found) | {"seconds": 0.0}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        if state:
            laws = tuple(Law(**{**law, "where": tuple(law["where"])}) for law in state["laws"])
            self.found, self.wanted = Audit(**{**state, "laws": laws, "notes": tuple(state["notes"])}), False

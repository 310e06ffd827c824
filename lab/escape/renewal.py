"""Replicas in one well as a renewal process: whoever leaves is put back at the minimum and starts again.

Every stay begins at the minimum; its clock starts after the burn-in, when the replica has forgotten where it began (stays
that end before are not counted). Stays are independent, and their number does not run out: a fast exit is seen as often as
one likes, a slow one in as many replicas as there are. What is still inside at the end is censored.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lab.escape.exits import Exit
from lab.escape.replicas import Replicas
from lab.progress import Tick, silent
from lab.results import EscapeTimes


@dataclass(frozen=True)
class Stays:
    """times: of the stays, in steps; left (k, P): where those were that were found outside; inside (R, P): the others at
    the end; steps that were made.
    """

    times: EscapeTimes
    left: Tensor
    inside: Tensor
    steps: int


def renewals(
    replicas: Replicas,
    rule: Exit,
    home: Tensor,
    *,
    exits: int,
    steps: int,
    inspect_every: int,
    burn_in: int,
    tick: Tick = silent,
) -> Stays:
    """Run `replicas`, put at `home` (P,), until `exits` stays have ended or `steps` updates are made.

    The rule is applied every `inspect_every` steps, the burn-in rounded up to a multiple of them; a replica that is not
    finite has failed, and starts again too. Raises ValueError where the burn-in leaves nothing to watch.
    """
    burn_in = -(-burn_in // inspect_every) * inspect_every
    if burn_in >= steps:
        raise ValueError(f"steps={steps}: expected more than the burn-in of {burn_in}")
    replicas.W[:] = home
    ledger, begun = _Ledger(replicas, burn_in), replicas.step
    while ledger.exits < exits and replicas.step - begun < steps:
        replicas.run(inspect_every)
        ledger.inspect(rule.outside(replicas.W).cpu(), home, inspect_every)
        tick(max(ledger.exits / exits, (replicas.step - begun) / steps))
    return ledger.stays(inspect_every, replicas.step - begun)


class _Ledger:
    """The stays that have ended, and how old those are that have not."""

    def __init__(self, replicas: Replicas, burn_in: int):
        self.replicas, self.burn_in, self.exits, self.replaced = replicas, burn_in, 0, 0
        self.age = torch.zeros(len(replicas.W), dtype=torch.long)
        self.times, self.kinds, self.left = list[Tensor](), list[Tensor](), list[Tensor]()

    def inspect(self, outside: Tensor, home: Tensor, passed: int) -> None:
        """Who is outside (R,), or not finite, goes home; stays that outlasted the burn-in are counted."""
        self.age += passed
        W = self.replicas.W
        failed = ~W.isfinite().all(1).cpu()
        gone = outside & ~failed
        ended = gone | failed
        if bool(ended.any()):
            counted = ended & (self.age > self.burn_in)
            self.replaced += int((ended & ~counted).sum())
            self.times.append(self.age[counted] - self.burn_in)
            self.kinds.append(failed[counted])
            self.left.append(W[gone & counted].clone())
            self.exits += int((gone & counted).sum())
            W[ended.to(W.device)] = home
            self.age[ended] = 0

    def stays(self, inspect_every: int, steps: int) -> Stays:
        """All of them; those still inside are censored."""
        inside, W = self.age > self.burn_in, self.replicas.W
        num_inside = int(inside.sum())
        times = torch.cat([*self.times, self.age[inside] - self.burn_in]).double()
        failed = torch.cat([*self.kinds, torch.zeros(num_inside, dtype=torch.bool)])
        exited = ~failed
        exited[len(exited) - num_inside :] = False
        seen = EscapeTimes(times, exited, failed, float(inspect_every), float(self.burn_in), self.replaced)
        return Stays(seen, torch.cat([W[:0], *self.left]), W.clone(), steps)

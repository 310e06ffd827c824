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
    age = torch.zeros(len(replicas.W), dtype=torch.long)
    times, kinds, left, replaced = list[Tensor](), list[Tensor](), list[Tensor](), 0
    found, begun = 0, replicas.step
    while found < exits and replicas.step - begun < steps:
        replicas.run(inspect_every)
        age += inspect_every
        W = replicas.W
        failed = ~W.isfinite().all(1).cpu()
        gone = rule.outside(W).cpu() & ~failed
        ended = gone | failed
        if bool(ended.any()):
            counted = ended & (age > burn_in)
            replaced += int((ended & ~counted).sum())
            times.append(age[counted] - burn_in)
            kinds.append(failed[counted])
            left.append(W[gone & counted].clone())
            found += int((gone & counted).sum())
            W[ended.to(W.device)] = home
            age[ended] = 0
        tick(max(found / exits, (replicas.step - begun) / steps))
    inside = age > burn_in
    times.append(age[inside] - burn_in)
    failed = torch.cat([*kinds, torch.zeros(int(inside.sum()), dtype=torch.bool)])
    exited = ~failed
    exited[len(exited) - int(inside.sum()) :] = False
    watched = EscapeTimes(torch.cat(times).double(), exited, failed, float(inspect_every), float(burn_in), replaced)
    return Stays(watched, torch.cat([replicas.W[:0], *left]), replicas.W.clone(), replicas.step - begun)

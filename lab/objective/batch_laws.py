"""The laws of a loss on batches, on a few of its examples: what `lab.objective.audit` looks at there."""

import torch
from torch import Tensor

from lab.objective.batches import BatchesObjective
from lab.objective.held import derivatives, held, same_value, silenced, undecided
from lab.objective.laws import VALUE, Law, Place


def laws_of_batches(
    loss: BatchesObjective, w: Tensor | None, generator: torch.Generator, most: int
) -> tuple[list[Law], list[str], float]:
    """The laws, all held or undecided; notes; and what was spent, in gradients of the whole loss. Raises Unsound where one
    is broken.
    """
    few, look = loss.few(most), loss.look
    share = (few.num_examples or 1) / max(few.num_examples or 1, loss.num_examples or 1)
    w = (loss.weights if w is None else w).detach().to(look.w.dtype)
    place = Place.near(few, w, generator, look.eps)
    if not bool(few.value(place.w).isfinite()):
        return [], ["the loss is not finite here: nothing could be looked at"], share
    cuts = (few.num_examples or 1) > 1 and not loss.coupled
    with loss.modes.unrestored():
        laws = [held(same_value(few, loss.few(max(1, most - 1)), place))]
    laws += derivatives(few, loss.few(1) if cuts else None, place)
    notes = [*undecided(laws), *silenced(loss), f"on {len(loss.source)} batches, {loss.weighing}"]
    if loss.coupled and not loss.batch_statistics:  # else it is the known way of BatchNorm
        notes.append(loss.coupled)
    if cuts:
        laws += [held(law) for law in _of_rows(few, place)]
    looked = 6 * VALUE / len(loss.source)  # the first and the last batch, each whole and in parts
    return laws, notes, looked + share * sum(law.spent for law in laws)


def _of_rows(few: BatchesObjective, place: Place) -> list[Law]:
    """The gradients of single examples against plain backward passes, and their mean against the gradient."""
    gradient, fast = few.grad(place.w).double(), few.example_grads(place.w).double()
    weights = few.weighing.of_rows(few.source.first())
    rows = torch.arange(len(weights))
    single = torch.stack([few.restrict(rows[i : i + 1]).grad(place.w) if weights[i] else 0 * place.w for i in rows])
    single = (len(rows) / weights.sum() * weights).to(single)[:, None] * single
    size, allowed = float(single.norm(dim=1).max()), max(1e-6, 10 * place.eps**0.5)
    off = float((fast - single).norm(dim=1).max()) / size if size > 0 else 0.0
    laws = [Law("single examples", off, allowed, off <= allowed, spent=2.0)]
    off = float((single.mean(0) - gradient).norm()) / size if size > 0 else 0.0
    return [*laws, Law("mean of single examples", off, allowed, off <= allowed, spent=1.0)]

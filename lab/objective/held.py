"""Whether a law of a loss is held: what is said where it is broken, and the laws that all networks share."""

from lab.objective.base import Objective, Unsound
from lab.objective.functional import ModuleLoss
from lab.objective.laws import VALUE, Law, Place, derivative_laws, listed

CAUSES = {
    "value": (
        "the network or the criterion keeps a state or draws numbers that torch does not know of",
        "make it a function of its inputs",
    ),
    "gradient": (
        "detach, no_grad or a backward pass of somebody's own that is not that of the value",
        "write the part in differentiable operations of torch",
    ),
    "Hessian": (
        "a backward pass of somebody's own that uses saved intermediates, numpy or no_grad",
        "write it in differentiable operations of torch on the inputs themselves",
    ),
    "single examples": (
        "vmap changes what the network does",
        "report it: plain backward passes should have been used",
    ),
    "mean of single examples": (
        "the loss of a batch is not the mean over its examples",
        "use the mean over examples as criterion",
    ),
    "chunks": (
        "the loss of a batch depends on its size",
        "give the batch size of training as chunk_size",
    ),
}
CAUSES["symmetry"] = CAUSES["Hessian"]
TOLD = {
    "value": "the value at one w differs from call to call",
    "gradient": "the gradient differs from the difference of values",
    "Hessian": "a Hessian product differs from the difference of gradients",
    "symmetry": "u'Hv differs from v'Hu",
    "single examples": "gradients of single examples formed at once differ from those formed one by one",
    "mean of single examples": "the mean of the gradients of single examples differs from the gradient",
    "chunks": "the loss of one chunk differs from that of two",
}
"""What a broken law says."""


def held(law: Law) -> Law:
    """The law, or Unsound where it is broken."""
    if law.held is False:
        cause, cure = CAUSES[law.name]
        where = f" in {listed(law.where)}" if law.where and law.where != ("w",) else ""
        raise Unsound(
            f"the loss breaks a law: {TOLD[law.name]}{where} by {100 * law.error:.2g} % "
            f"(allowed {100 * law.tolerance:.1g} %); likely {cause}; {cure}, or leave the audit out (audit=false) and "
            "trust no number"
        )
    return law


def same_value(objective: Objective, other: Objective, place: Place) -> Law:
    """L(w), the loss of other examples elsewhere, L(w) again."""
    w = place.w
    first = float(objective.value(w))
    other.value(w + 0.1 * place.u)
    again = float(objective.value(w))
    off, allowed = abs(again - first) / max(abs(first), 1e-30), 100 * place.eps
    return Law("value", off, allowed, off <= allowed or first == again, spent=3 * VALUE)


def derivatives(few: ModuleLoss, fewer: ModuleLoss | None, place: Place) -> list[Law]:
    """The laws of derivatives on a few examples; those that stay undecided again on fewer, with fewer kinks on the way."""
    laws = [held(law) for law in derivative_laws(few, place)]
    if fewer is None or all(law.held is not None for law in laws):
        return laws
    again = derivative_laws(fewer, place)
    return [law if law.held else held(other) for law, other in zip(laws, again, strict=True)]


def undecided(laws: list[Law]) -> list[str]:
    """A note on laws that could not be decided, if there are any."""
    if names := [law.name for law in laws if law.held is None]:
        return [
            f"the audit could not decide its {' and its '.join(names)} (kinks, or numbers that are too coarse inside): "
            "trust them as far as you trust its code"
        ]
    return []


def silenced(network: ModuleLoss) -> list[str]:
    """A note on what is off because it draws random numbers, if anything is."""
    kinds = network.modes.silenced
    return [f"off in measurements, for it draws random numbers: {', '.join(kinds)}"] if kinds else []

"""What the measurement of sharpness returns: eigenpairs of what is held against the threshold, its words and picture."""

from dataclasses import dataclass, field

from matplotlib.figure import Figure

from lab.probes.base import Memory
from lab.results import Eigenpairs, Result, ranked
from lab.run.figures import EIGENVALUE


@dataclass(frozen=True)
class SharpnessResult(Result):
    """lambda_max of H and of what is held against the threshold of the optimiser.

    loss         L(w); top, bottom the eigenpairs of H at both ends (bottom None unless asked for).
    directional  g'Hg/|g|^2 along the gradient of the weights that move; NaN at a critical point.
    compared     eigenpairs of what is held against the threshold: those of H (quantity lambda_max), of the block of the
                 weights that move (moved), or of the preconditioned Hessian (preconditioned).
    threshold    beyond which the step is unstable; None without an optimiser whose threshold is known, or where none moves.
    ratio        lambda_max(compared)/threshold; None where it is not known so far, as before the first update of Adam.
    midpoint     eigenpairs of the same at (w[t-2] + 2 w[t-1] + w[t])/4, where these weights are known.
    matvecs      products over the whole probe set, one gradient, and those over a part as its share.
    """

    loss: float
    top: Eigenpairs
    bottom: Eigenpairs | None
    directional: float
    quantity: str
    compared: Eigenpairs
    threshold: float | None
    ratio: float | None
    midpoint: Eigenpairs | None
    matvecs: float
    warm: Memory = field(repr=False)

    @property
    def converged(self) -> bool:
        return all(solve.converged for solve in (self.top, self.compared, self.midpoint) if solve is not None)

    def numbers(self) -> dict[str, float]:
        names = ("lambda_max", *(f"lambda_{i}" for i in range(2, len(self.top.values) + 1)))
        numbers = {"loss": self.loss} | ranked(("lambda_max",), self.top)
        numbers |= dict(zip(names, self.top.values.tolist(), strict=True))
        numbers |= {} if self.bottom is None else ranked(("lambda_min",), self.bottom)
        numbers |= {"directional": self.directional}
        numbers |= {} if self.quantity == "lambda_max" else ranked((self.quantity,), self.compared)
        optional = {"threshold": self.threshold, "ratio": self.ratio}
        optional["midpoint"] = None if self.midpoint is None else float(self.midpoint.values[0])
        numbers |= {name: value for name, value in optional.items() if value is not None}
        return numbers | {"converged": float(self.converged)}

    def sentence(self) -> str:
        value, error = float(self.top.values[0]), float(self.top.errors[0])
        text = f"lambda_max is {value:.4g} +- {error:.1g}"
        if self.ratio is not None:
            what = "" if self.quantity == "lambda_max" else f"{self.quantity} lambda_max is "
            text += f", {what}{self.ratio:.3g} x the threshold {self.threshold:.4g} of the optimiser"
        return text + ("." if self.converged else "; the eigensolve did not converge.")

    def figure(self, when: str = "") -> Figure:
        """The top eigenvalues of what the threshold is about as stems, beside it."""
        what = {"preconditioned": "$P^{-1}(H + c)$", "moved": "H of the weights that move"}.get(self.quantity, "H")
        return stems(self.compared, what, self.threshold, f"top of the spectrum{when}")

    def figures(self, when: str = "") -> dict[str, Figure]:
        return {"spectrum": self.figure(when)} if len(self.compared.values) > 1 else {}

    def costs(self) -> dict[str, float]:
        return {"matvecs": self.matvecs}

    def memory(self) -> Memory:
        return self.warm


def stems(pairs: Eigenpairs, what: str, threshold: float | None, title: str) -> Figure:
    """The eigenvalues of `what` by rank, beside the threshold."""
    figure, count = Figure(figsize=(5, 3.5), layout="constrained"), len(pairs.values)
    axis = figure.subplots()
    axis.stem(range(1, count + 1), pairs.values.tolist(), basefmt=" ", label=f"eigenvalues of {what}")
    if threshold is not None:
        axis.axhline(threshold, color="tab:red", ls="--", label="stability threshold")
    axis.set(xlabel="index", ylabel=EIGENVALUE if what == "H" else "eigenvalue", title=title)
    axis.set_xticks(range(1, count + 1, max(1, count // 10)))
    axis.legend(frameon=False)
    return figure

"""The extreme eigenpairs of an operator that changes a little from one solve to the next: a chain of solves, each warm."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lab.curvature.davidson import Knowledge, carried, davidson, learned
from lab.curvature.eigen import Extremes, lanczos, predicted
from lab.curvature.operators import LinearOperator

EASY = 12
"""Products of the coarse operator, beside one of the operator itself, up to which Lanczos would have done as well ..."""
HARD = 6
"""... and products of a warm Lanczos solve above which it did not."""

Coarse = Callable[[], LinearOperator]
"""Makes the coarse operator that goes with the operator of a solve; not called where none is needed."""


class Chain:
    """Solves one after another. The first, and the one after `forget`, is cold: a search of the operator itself.

    With a coarse operator the solves after it are those of `lab.curvature.davidson`, from what was learned in the cold one,
    until it turns out not to be near enough. Without, and where the operator changes so smoothly that they are easy, block
    Lanczos from where the last two solves point (`predicted`). matvecs: products of coarse operators, in all.

    >>> from lab.curvature.operators import of_matrix
    >>> A, chain = of_matrix(torch.arange(100.0)), Chain()
    >>> cold, warm = chain.solve(A).top, chain.solve(A).top
    >>> round(cold.values.item(), 1), round(warm.values.item(), 1), warm.matvecs < cold.matvecs
    (99.0, 99.0, True)
    """

    def __init__(self) -> None:
        self.matvecs = 0
        self._start: Tensor | None = None
        self._before: Tensor | None = None
        self._known: Knowledge | None = None
        self._useful = True

    def forget(self) -> None:
        """The next solve is cold."""
        self._start = self._before = self._known = None
        self._useful = True

    def solve(
        self,
        operator: LinearOperator,
        *,
        coarse: Coarse | None = None,
        top: int = 1,
        bottom: int = 0,
        tol: float = 1e-3,
        max_matvecs: int = 200,
        generator: torch.Generator | None = None,
    ) -> Extremes:
        """As `lanczos`; `coarse` serves where only the top is wanted. Where nothing finite comes out, nothing is kept."""
        if not self._useful or bottom or carried(operator.size) <= top:
            coarse = None
        if coarse is not None and self._known is not None:
            ends = self._warm(operator, coarse(), top, tol, max_matvecs, generator)
        else:
            ends = lanczos(
                operator,
                top=top,
                bottom=bottom,
                start=self._predicted(),
                tol=tol,
                max_matvecs=max_matvecs,
                keep=0 if coarse is None else carried(operator.size),
                generator=generator,
            )
            if ends.kept is not None and coarse is not None and ends.top.matvecs > HARD:
                self._learn(coarse(), ends.kept, top)
        if bool(ends.start.isfinite().all()):
            self._before, self._start = self._start, ends.start
        return ends

    def _warm(
        self,
        operator: LinearOperator,
        part: LinearOperator,
        top: int,
        tol: float,
        max_matvecs: int,
        generator: torch.Generator | None,
    ) -> Extremes:
        """A solve by the method of Davidson, with the coarse operator `part`."""
        pairs, self._known = davidson(
            operator, part, top=top, known=self._known, tol=tol, max_matvecs=max_matvecs, generator=generator
        )
        self.matvecs += part.matvecs
        self._useful = self._known is not None
        if pairs.matvecs <= top and part.matvecs <= EASY:
            self._known = None
        none = pairs.values[:0]
        return Extremes(pairs, replace(pairs, values=none, vectors=pairs.vectors[:, :0], residuals=none, errors=none))

    def _learn(self, part: LinearOperator, kept: tuple[Tensor, Tensor], top: int) -> None:
        """What the pairs of a search say about the coarse operator `part`, for the next solve."""
        known = learned(part, *kept, top=top)
        self._known = known if bool(known.differences.isfinite().all()) else None
        self.matvecs += part.matvecs

    def _predicted(self) -> Tensor | None:
        if self._start is not None and self._before is not None and self._start.shape == self._before.shape:
            return predicted(self._start, self._before)
        return self._start

    def state_dict(self) -> dict[str, Tensor]:
        """What the next solve builds on."""
        state = {"start": self._start, "before": self._before, "useful": torch.tensor(self._useful)}
        if self._known is not None:
            known = self._known
            state |= {"known/basis": known.basis, "known/differences": known.differences, "known/start": known.start}
            state["known/delta"] = torch.tensor(known.delta, dtype=torch.float64)
        return {name: v for name, v in state.items() if v is not None}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._start, self._before, self._known = state.get("start"), state.get("before"), None
        self._useful = bool(state.get("useful", True))
        if "known/basis" in state:
            basis, differences, start = (state[f"known/{name}"] for name in ("basis", "differences", "start"))
            self._known = Knowledge(basis, differences, start, float(state["known/delta"]))

"""The noise along eigenvectors of the Hessian, as the measurement of the noise returns it."""

from dataclasses import dataclass

from torch import Tensor

from lab.noise.alignment import Alignment
from lab.noise.slope import Along
from lab.results import numbered, with_errors


@dataclass(frozen=True)
class NoiseAlong:
    """The noise along eigenvectors u of H.

    curvature (k,) = u'Hu, those of the top first; variance u'Du of the same u, with the slope fitted to the top; theory the
    slope expected, NaN for none; mean Tr D/P, that of all directions; alignment Tr(HD) and the cosine of H and D; matvecs
    Hessian products spent.
    """

    curvature: Tensor
    variance: Along
    theory: float
    mean: float
    alignment: Alignment
    matvecs: int

    def numbers(self) -> dict[str, float]:
        down, along = int(self.curvature.argmin()), self.variance
        numbers = with_errors({"slope": (along.slope, along.slope_error)}) | {"slope_theory": self.theory}
        if bool(self.curvature[-1] < 0):
            numbers |= with_errors({"downhill": (along.variance[down], along.error[down])})
        return numbers | numbered({"alignment": self.alignment.trace, "cosine": self.alignment.cosine})

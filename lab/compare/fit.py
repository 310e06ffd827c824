"""A straight line through points, on logarithmic axes or not, by least squares, with intervals of Student's t.

    v = intercept + slope u      u = x or log x, v = y or log y
    slope +- t(n - 2) s / sqrt(sum (u - mean u)^2),      s^2 = sum of squared residuals / (n - 2)

power        log y on log x: y = exp(intercept) x^slope
exponential  log y on x: y = exp(intercept) exp(slope x)
logarithmic  y on log x: y = intercept + slope log x
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lab.settings import SettingError

Form = Literal["power", "exponential", "logarithmic"]
FEWEST = 3
"""Points through which a line has an error."""


@dataclass(frozen=True)
class LineFit:
    """slope with the ends of its interval at confidence `level`, and intercept, natural logarithms where there are logs;
    n points that count; scatter: their residual standard deviation s; left_out: points whose log there is not.
    """

    form: Form
    slope: float
    low: float
    high: float
    intercept: float
    scatter: float
    n: int
    left_out: int = 0
    level: float = 0.95

    def at(self, x: Sequence[float]) -> list[float]:
        """The line at some x."""
        u = [value if self.form == "exponential" else math.log(value) for value in x]
        v = [self.intercept + self.slope * value for value in u]
        return [value if self.form == "logarithmic" else math.exp(min(value, 700.0)) for value in v]

    def words(self) -> str:
        """The slope with its interval, and what it is of.

        >>> fit([1, 2, 4], [3.0, 6.0, 12.0]).words()
        'exponent 1 [1, 1], n = 3'
        """
        name = {"power": "exponent", "exponential": "slope of the log", "logarithmic": "slope per factor e"}[self.form]
        rest = f", {self.left_out} left out" if self.left_out else ""
        return f"{name} {self.slope:.3g} [{self.low:.3g}, {self.high:.3g}], n = {self.n}{rest}"


def fit(x: Sequence[float], y: Sequence[float], *, form: Form = "power", level: float = 0.95) -> LineFit:
    """The line through points (x, y). Those that are not finite, or have a log to be taken that there is not, are left out.

    Raises SettingError, in words, for fewer than 3 that are left, and for points at one x.

    >>> made = fit([1, 2, 4, 8], [5.0, 20.0, 80.0, 320.0])  # y = 5 x^2
    >>> round(made.slope, 6), round(math.exp(made.intercept), 6), round(made.high - made.low, 6)
    (2.0, 5.0, 0.0)
    >>> made = fit([0, 1, 2], [1.0, math.e**2, math.e], form="exponential")  # log y = 0, 2, 1: slope 1/2, s^2 = 3/2
    >>> round(made.slope, 6), round(made.high - made.slope, 3)  # t = 12.706 at one degree of freedom, times sqrt(3/2 / 2)
    (0.5, 11.004)
    """
    u, v = np.array(x, float), np.array(y, float)
    if len(u) != len(v):
        raise SettingError(f"{len(u)} values of x and {len(v)} of y: expected as many")
    known = np.isfinite(u) & np.isfinite(v)
    known &= (u > 0) | (form == "exponential")
    known &= (v > 0) | (form == "logarithmic")
    u, v, n = u[known], v[known], int(known.sum())
    if n < FEWEST:
        raise SettingError(f"{_count(n, 'point')}: a line has no error below {FEWEST}")
    u = u if form == "exponential" else np.log(u)
    v = v if form == "logarithmic" else np.log(v)
    middle, height = u.mean(), v.mean()
    spread = float(((u - middle) ** 2).sum())
    if spread <= 1e-24 * n * float((u**2).max()):
        raise SettingError(f"{_count(n, 'point')} at one place: a line needs different ones")
    from scipy.stats import t

    slope = float(((u - middle) * (v - height)).sum()) / spread
    rest = float(((v - height - slope * (u - middle)) ** 2).sum())
    scatter = math.sqrt(rest / (n - 2))
    reach = float(t.ppf((1 + level) / 2, n - 2)) * scatter / math.sqrt(spread)
    left_out = len(known) - n
    return LineFit(
        form, slope, slope - reach, slope + reach, float(height - slope * middle), scatter, n, left_out, level
    )


def _count(n: int, what: str) -> str:
    return f"{n or 'no'} {what}{'' if n == 1 else 's'}"

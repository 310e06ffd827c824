"""Traces: Tr A of any operator, Tr H of a loss, and the generalised Gauss-Newton trace Tr G, each with its error.

Any operator.  E s'As = Tr A for random signs s (Hutchinson 1990). Hutch++ (Meyer, Musco, Musco, Woodruff 2021, algorithm
1) takes the trace on the range of A S exactly and samples the rest; XTrace (Epperly, Tropp, Webber 2024, section 2.2)
does so with every probe left out in turn, which uses each product twice and tells the error.

A network.  A layer a = W h + b whose input h does not depend on W has, for one example, Tr_W H = |h|^2 Tr(d2L/da2) and
Tr_b H = Tr(d2L/da2). So perturb the outputs of ALL layers at once by z = sqrt(|h|^2 + 1) s, with signs s that are
independent for each example, layer and unit. Then

    sum over examples of E z'(d2L_n/da2) z = Tr H,

since the terms between layers and units vanish in expectation and those between examples never arise: one double
backward pass through the activations alone stands for as many independent probes as there are examples. A convolution
takes a random sign kernel for each example, so that z has the covariance U U' of its patches U; a normalisation takes
signs times its normalised input. The examples' variances over repeated draws add up to the standard error.

Gauss-Newton.  With d2 loss/df2 = sum_k lambda_k v_k v_k' for each example, Tr G = sum_n sum_k lambda_k |J_n' v_k|^2: one
backward pass for each k, whose per-example norms come from layer inputs and output gradients without the per-example
gradients (Goodfellow 2015 for linear layers; Bu, Mao, Xu 2022 for convolutions). Where the outputs are piecewise linear
in the pre-activations (ReLU, pooling, BatchNorm in eval mode) the rest of H has no diagonal and Tr H = Tr G exactly.
"""

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from scipy.special import stdtrit
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from lab.curvature.operators import LinearOperator, hessian
from lab.objective import CHUNK_BYTES, NetworkObjective, Objective
from lab.results import Estimate

FEWEST_FREEDOM = 4
"""Degrees of freedom the error must rest on before it may stop the sampling: two probes that agree prove nothing."""
MOST_OUTPUTS = 1000
"""Numbers the network may put out per example where their Hessian is formed."""

CORRELATED = 1.3
"""The estimates of XTrace share all but one probe, so their spread understates the error: by 1.0 to 1.4 for 5 to 50 probes
in spectra flat, decaying and with outliers, and by 1/(1 - probes/P) more where probes are many. With this its intervals
of 95 % cover 94 to 100 %, but 87 % for 5 probes where each eigenvalue is 0.7 times the one before."""

OperatorMethod = Literal["auto", "hutchinson", "hutch++", "xtrace"]
Method = Literal["auto", "signs", "gauss_newton", "hutchinson", "hutch++", "xtrace"]


def trace(
    operator: LinearOperator,
    *,
    method: OperatorMethod = "auto",
    tol: float = 0.02,
    max_matvecs: int = 100,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Tr A of a symmetric operator, known by its products.

    method     "hutchinson": mean of s'As over random signs s, error sqrt(2 sum of squares off the diagonal / probes).
               "hutch++", "xtrace": the same after the range of some products is taken exactly; error ~ 1/products for a
               decaying spectrum, at 4 vectors (P,) of memory for 2 (XTrace) or 3 (Hutch++) products.
               "auto": Hutchinson if a few probes say that it will do, else whichever of it and XTrace has the smaller
               error at equal cost. Where all P products are no dearer the exact diagonal is taken (error 0) by "auto".
    tol        wanted error relative to |Tr A|.
    generator  of the signs (default: a fixed seed).
    Error: one standard error, widened by Student's t for few probes, so that value +- 1.96 error covers 95 %. Sums in
    float64. Cost: `matvecs` products. Not converged within `max_matvecs`: one warning, `converged=False`. Raises
    ValueError where max_matvecs is too small to tell an error (15; 5 for Hutchinson).

    >>> from lab.curvature.operators import hessian
    >>> from lab.landscapes.quadratic import Quadratic
    >>> trace(hessian(Quadratic(torch.tensor([2.0, 5.0])), torch.zeros(2))).value
    7.0
    """
    solvers = {"hutchinson": _hutchinson, "hutch++": _hutch_plus_plus, "xtrace": _xtrace, "auto": _automatic}
    if method not in solvers:
        raise ValueError(f"method={method!r}: expected one of {', '.join(solvers)}")
    fewest = 1 + FEWEST_FREEDOM if method == "hutchinson" else 3 * (1 + FEWEST_FREEDOM)
    if not tol >= 0 or (max_matvecs < fewest and not (method == "auto" and operator.size <= max_matvecs)):
        raise ValueError(f"tol={tol}, max_matvecs={max_matvecs}: expected tol >= 0 and at least {fewest} products")
    probes = _Probes(operator, generator or torch.Generator(operator.device).manual_seed(0))
    return _warned(solvers[method](probes, tol, max_matvecs), tol)


def hessian_trace(
    objective: Objective,
    w: Tensor,
    *,
    tol: float = 0.02,
    method: Method = "auto",
    max_matvecs: int = 100,
    generator: torch.Generator | None = None,
) -> Estimate:
    """Tr H(w), the trace of the Hessian of `objective`.

    method     "signs": random signs at the pre-activations, at least two draws (see the head of this file); for networks
               of Linear, Conv2d, BatchNorm (eval), GroupNorm, LayerNorm, each used once, and any functions between.
               "gauss_newton": Tr G, which is Tr H where outputs are piecewise linear in pre-activations; from two draws
               of random signs at the outputs, or exact where as many backward passes as outputs are no dearer.
               "hutchinson", "hutch++", "xtrace": products with the Hessian, as in `trace`; for any objective.
               "auto": the first of gauss_newton, signs, `trace(..., method="auto")` that is valid here; `method` of the
               result tells which: "gauss_newton" (exact), "gauss_newton_signs", "signs", "hutchinson", "xtrace",
               "diagonal".
    tol        wanted error relative to |Tr H|; 0 with gauss_newton asks for the exact value.
    Error: as in `trace`; of the sampling methods ~ 1/sqrt(examples * draws). Cost, in `matvecs`: products, or draws plus
    backward passes of gauss_newton. Two draws of signs, 1.4 % on 2000 images: 1 gradient on a 3072-200-200-10 MLP, whose
    first layer they do not go back through; 3 gradients a draw on ResNet-20, those of gauss_newton 1. Not converged: one
    warning, `converged=False`.
    Raises TypeError where the chosen method cannot take apart the model, ValueError where it would be wrong: coupled
    examples (train-mode BatchNorm), a criterion that is no mean, outputs that are not piecewise linear.
    """
    if method in ("hutchinson", "hutch++", "xtrace"):
        return trace(hessian(objective, w), method=method, tol=tol, max_matvecs=max_matvecs, generator=generator)
    if method not in ("auto", "signs", "gauss_newton"):
        raise ValueError(f"method={method!r}: expected auto, signs, gauss_newton, hutchinson, hutch++ or xtrace")
    if not tol >= 0 or max_matvecs < 2:
        raise ValueError(f"tol={tol}, max_matvecs={max_matvecs}: expected tol >= 0 and at least 2 draws")
    try:
        anatomy = _anatomy(objective, w)
        if method == "gauss_newton":
            anatomy.require_piecewise_linear()
    except (TypeError, ValueError):
        if method != "auto":
            raise
        return trace(hessian(objective, w), tol=tol, max_matvecs=max_matvecs, generator=generator)
    generator = generator or torch.Generator(w.device).manual_seed(0)
    few_outputs = anatomy.num_outputs <= MOST_OUTPUTS
    if method == "gauss_newton" or (method == "auto" and anatomy.piecewise_linear and few_outputs):
        return _warned(_gauss_newton(anatomy, w, tol, max_matvecs, generator), tol)

    def draws(num: int) -> Tensor:
        return torch.cat([chunk.sign_draws(num, generator) for chunk in anatomy.chunks(w)], dim=1)

    few = draws(2)
    if method == "auto" and w.numel() <= min(max_matvecs, _interval(few).needed(2, tol)):
        return _warned(_diagonal(_Probes(hessian(objective, w), generator)), tol)
    return _warned(_sampled(draws, few, tol, max_matvecs, "signs"), tol)


def gauss_newton_trace(objective: Objective, w: Tensor) -> Estimate:
    """Tr G = (1/N) sum over examples n of Tr J_n' (d2 loss_n/df2) J_n, J_n = df_n/dw (K, P): exact, error 0.

    Any criterion that is a mean over examples, convex in the outputs f or not. Cost: K backward passes with per-example
    norms (`matvecs`; K - 1 for the softmax, whose output Hessian is singular). For ten classes together 1.3 gradients on
    a 3072-200-200-10 MLP, 7 on ResNet-20. For layers other than Linear, Conv2d and the norms: K passes of per-example
    gradients by vmap, dear for wide layers.
    Raises TypeError without a network, ValueError for train-mode BatchNorm or a criterion that is no mean over examples.
    """
    network = _require_examples(objective, w)
    try:
        return _gauss_newton_exact(_anatomy(network, w), w)
    except TypeError:
        return _gauss_newton_by_vmap(network, w)


# --- any operator -----------------------------------------------------------------------------------------------------


class _Probes:
    """Signs S (P, k), their products Y = A S, and a basis Q of the span of Y with Z = A Q; they grow, none is redone."""

    def __init__(self, operator: LinearOperator, generator: torch.Generator):
        self.operator, self.generator = operator, generator
        self.S = self.Y = self.Q = self.Z = torch.zeros(operator.size, 0, dtype=operator.dtype, device=operator.device)
        self.spent = 0
        self.low_rank = False
        """The span of Q holds the whole range of A: Tr A = Tr Q'Z."""

    def draw(self, num: int, *, generic: bool = False) -> tuple[Tensor, Tensor]:
        """`num` columns of signs and their products, not kept.

        generic: entries of squared length uniform in 0.5 .. 1.5 instead of 1, still E s s' = 1. Signs alone may be
        dependent where A acts on a few coordinates, and would feign a low rank; the variance grows by 1/12 sum A_ii^2.
        """
        shape, device = (num, self.operator.size), self.generator.device
        signs = _signs(shape, self.S, self.generator)
        if generic:
            squares = torch.rand(shape, generator=self.generator, device=device, dtype=signs.dtype) + 0.5
            signs *= squares.sqrt().to(signs.device)
        self.spent += num
        return signs.T, self.operator @ signs.T

    def forms(self, num: int) -> Tensor:
        """s'As of `num` new probes, (num, 1) float64, in the memory of one."""
        return torch.stack([_dots(*self.draw(1)).reshape(1) for _ in range(num)])

    def sketch(self, num: int) -> None:
        """`num` more columns of S, Y, and of Q and Z, fewer of those where Y is of lower rank."""
        if num == 0:
            return
        S, Y = self.draw(num, generic=True)
        self.S, self.Y = torch.cat([self.S, S], 1), torch.cat([self.Y, Y], 1)
        self.extend_range(Y)

    def extend_range(self, Y: Tensor) -> None:
        """Q and Z for the span of Y too. What stays of a column beside its round-off decides the rank."""
        sizes = torch.linalg.vector_norm(Y, dim=0)
        rest = Y / sizes.clamp(min=torch.finfo(Y.dtype).tiny)
        for _ in range(2):  # once leaves round-off of the size eps |Y|, which may be all there is
            rest = rest - self.Q @ _dots(self.Q, rest).to(rest.dtype)
        basis, upper = torch.linalg.qr(rest)
        small = 20 * torch.finfo(Y.dtype).eps
        if bool((upper.diagonal().abs() <= small).any()):
            self.low_rank = True
            left, singular, _ = torch.linalg.svd(rest, full_matrices=False)
            basis = left[:, singular > small]
        if basis.shape[1] == 0:
            return
        self.spent += basis.shape[1]
        self.Q, self.Z = torch.cat([self.Q, basis], 1), torch.cat([self.Z, self.operator @ basis], 1)
        self.low_rank = self.low_rank or self.Q.shape[1] == self.operator.size

    @property
    def captured(self) -> Tensor:
        """Q'AQ (k, k) float64."""
        return _dots(self.Q, self.Z)


def _automatic(probes: _Probes, tol: float, most: int) -> Estimate:
    size, first = probes.operator.size, 1 + FEWEST_FREEDOM
    if size <= min(most, 3 * first):
        return _diagonal(probes)
    S, Y = probes.draw(first, generic=True)  # should the range be wanted, these begin it
    forms = _dots(S, Y).diagonal()[:, None]
    plain = _interval(forms)
    needed = plain.needed(first, tol)
    if needed <= 3 * first:
        return _hutchinson(probes, tol, most, forms)
    if size <= min(most - first, needed):
        return _diagonal(probes)
    probes.S, probes.Y = S, Y
    probes.extend_range(Y)
    # Both errors go by 1/sqrt(products) at worst; XTrace spends two products a probe.
    if _left_out(probes).error * math.sqrt(2) < plain.error:
        return _xtrace(probes, tol, most)
    return _hutchinson(probes, tol, most, forms)


def _diagonal(probes: _Probes) -> Estimate:
    operator, total = probes.operator, 0.0
    for i in range(operator.size):
        unit = torch.zeros(operator.size, dtype=operator.dtype, device=operator.device)
        unit[i] = 1
        total += float((operator @ unit)[i])
    return Estimate(total, 0.0, probes.spent + operator.size, "diagonal", math.isfinite(total))


def _hutchinson(probes: _Probes, tol: float, most: int, forms: Tensor | None = None) -> Estimate:
    forms = probes.forms(1 + FEWEST_FREEDOM) if forms is None else forms
    spare = most - probes.spent + len(forms)
    found = _sampled(probes.forms, forms, tol, spare, "hutchinson")
    return Estimate(found.value, found.error, probes.spent, found.method, found.converged)


def _hutch_plus_plus(probes: _Probes, tol: float, most: int) -> Estimate:
    """Tr Q'AQ + mean of g'(1 - QQ')A(1 - QQ')g, Q a basis of A S: a third of the products each for A S, A Q and A G."""
    G, AG, num = probes.S, probes.S, 1 + FEWEST_FREEDOM
    while True:
        probes.sketch(num)
        more, products = probes.draw(num)
        G, AG = torch.cat([G, more], 1), torch.cat([AG, products], 1)
        inside = _dots(probes.Q, G)  # Q'G
        forms = _dots(G, AG) - 2 * inside.T @ _dots(probes.Q, AG) + inside.T @ probes.captured @ inside
        found = _interval(forms.diagonal()[:, None]).plus(float(probes.captured.trace()))
        if probes.low_rank:
            return Estimate(float(probes.captured.trace()), 0.0, probes.spent, "hutch++")
        num = min(G.shape[1] // 2 + 1, (most - probes.spent) // 3)
        if found.within(tol) or num < 1:
            return found.estimate(tol, probes.spent, "hutch++")


def _xtrace(probes: _Probes, tol: float, most: int) -> Estimate:
    num = 0 if probes.Q.shape[1] else 1 + FEWEST_FREEDOM
    while True:
        probes.sketch(num)
        if probes.low_rank:
            return Estimate(float(probes.captured.trace()), 0.0, probes.spent, "xtrace")
        found = _left_out(probes)
        num = min(probes.S.shape[1] // 2 + 1, (most - probes.spent) // 2)
        if found.within(tol) or num < 1:
            return found.estimate(tol, probes.spent, "xtrace")


def _left_out(probes: _Probes) -> "_Interval":
    """XTrace: for every probe i the Hutch++ estimate with Q from all others and probe i for the rest.

    The projector on the others' span is Q (1 - r r') Q', r the i-th column of R^-T normalised, Y = Q R: r is orthogonal
    to the other columns of R. Nothing here costs a product.
    """
    Q, S, H = probes.Q, probes.S, probes.captured
    if probes.low_rank:
        return _Interval(float(H.trace()), 0.0, math.inf)
    R = _dots(Q, probes.Y)
    normal = torch.linalg.inv(R).T
    normal = normal / torch.linalg.vector_norm(normal, dim=0)
    W = _dots(Q, S)
    inside = W - normal * (normal * W).sum(0)  # (1 - r r') Q's, column by column
    through = _dots(probes.Z, S)  # Q'A s
    rest = _dots(S, probes.Y).diagonal() - 2 * (inside * through).sum(0) + (inside * (H @ inside)).sum(0)
    found = _interval((H.trace() - (normal * (H @ normal)).sum(0) + rest)[:, None])
    return _Interval(found.value, found.error * CORRELATED / (1 - Q.shape[1] / len(Q)), found.freedom)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """a'b in float64: pieces of few rows are multiplied in the dtype of the vectors and added up in float64."""
    total = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64, device=a.device)
    for x, y in zip(a.split(2**15), b.split(2**15), strict=True):
        total += (x.T @ y).double()
    return total


def _signs(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Independent +1 and -1."""
    count = math.prod(shape)
    random = torch.randint(256, (count // 8 + 1, 1), generator=generator, device=generator.device, dtype=torch.uint8)
    places = torch.arange(8, dtype=torch.uint8, device=generator.device)  # eight signs of a byte: 2.5 times faster
    bits = random.bitwise_right_shift(places).bitwise_and_(1).flatten()[:count].to(like)
    return bits.mul_(2).sub_(1).reshape(shape)


# --- draws until the error is small -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Interval:
    """A mean, its error widened by Student's t, and the degrees of freedom that the error rests on."""

    value: float
    error: float
    freedom: float

    def within(self, tol: float) -> bool:
        return self.freedom >= FEWEST_FREEDOM and self.error <= tol * abs(self.value)

    def needed(self, num: int, tol: float) -> float:
        """Draws after which the error should be small, given that this is the mean of `num`."""
        return num * (self.error / (tol * abs(self.value))) ** 2 if tol * self.value else math.inf

    def plus(self, offset: float) -> "_Interval":
        return _Interval(self.value + offset, self.error, self.freedom)

    def estimate(self, tol: float, spent: int, method: str) -> Estimate:
        return Estimate(self.value, self.error, spent, method, self.within(tol))


def _interval(draws: Tensor) -> _Interval:
    """The mean over m draws (m, n) of sums of n independent terms; the terms' variances add up.

    Each term has its own mean, so its variance is that over its draws; the sum of n variances of m draws each has about
    (m - 1) (sum v)^2 / sum v^2 degrees of freedom (Satterthwaite 1946).
    """
    num = len(draws)
    variances = draws.var(0)
    total, squares = float(variances.sum()), float(variances.square().sum())
    freedom = (num - 1) * (total**2 / squares if squares > 0 else draws.shape[1])
    wider = float(stdtrit(freedom, 0.975)) / 1.96 if math.isfinite(freedom) else 1.0
    return _Interval(float(draws.sum(1).mean()), wider * math.sqrt(total / num), freedom)


def _sampled(sample: Callable[[int], Tensor], draws: Tensor, tol: float, most: int, method: str) -> Estimate:
    """`sample(m)` gives m more draws (m, n), beside the first `draws`, until the error is small or `most` are drawn."""
    while True:
        found, num = _interval(draws), len(draws)
        if found.within(tol) or num >= most or not math.isfinite(found.value):
            return found.estimate(tol, num, method)
        more = math.ceil(1.1 * min(found.needed(num, tol), 3 * num)) - num  # 10 % more than needed by a rough error
        draws = torch.cat([draws, sample(min(max(1, more), most - num))])


def _warned(found: Estimate, tol: float) -> Estimate:
    if not found.converged:
        warnings.warn(
            f"trace not converged: {found.value:g} +- {found.error:.1g} by {found.method} after {found.matvecs} products or "
            f"draws, wanted an error of {tol:g} of it; raise max_matvecs or tol",
            stacklevel=3,
        )
    return found


# --- networks taken apart ---------------------------------------------------------------------------------------------


class _Layer(ABC):
    """One module in one forward pass over n examples: output = A(parameters), linear, with A made of its input.

    `shift` (a leaf, zero) is added to the output: derivatives with respect to it are those with respect to the output.
    """

    def __init__(self, module: Any, trainable: dict[str, slice], h: Tensor, output: Tensor):
        self.module, self.trainable, self.shape = module, trainable, output.shape
        self.h = h.detach()
        self.shift = output.new_zeros(()).expand(output.shape).requires_grad_()

    @abstractmethod
    def signs(self, generator: torch.Generator) -> Tensor:
        """A s with random signs s of its own for every example, in the shape of the output: E z z' = A A'."""

    @abstractmethod
    def gradients(self, g: Tensor) -> dict[str, Tensor]:
        """A'g: per-example gradients (n, ...) of "weight" and "bias" from that of the output."""

    def squared_norms(self, g: Tensor) -> Tensor:
        """|A'g|^2 per example (n,), float64."""
        gradients = self.gradients(g)
        return torch.stack([_per_example(gradients[name].square()) for name in self.trainable]).sum(0)


class _Affine(_Layer):
    """a = W u + b at every one of L places, in groups: u (n, groups, fan_in, L), a (n, groups, out, L)."""

    @abstractmethod
    def unfolded(self) -> Tensor:
        """u."""

    @abstractmethod
    def folded(self, a: Tensor) -> Tensor:
        """A tensor in the shape of the output as (n, groups, out, L)."""

    @abstractmethod
    def weight_signs(self, generator: torch.Generator) -> Tensor:
        """S u for a sign matrix S for every example, in the shape of the output."""

    @abstractmethod
    def weight_gradients(self, g: Tensor) -> Tensor:
        """g u' for every example, (n, ...)."""

    @cached_property
    def gram(self) -> Tensor | None:
        """u'u (n, groups, L, L) where |g u'|^2 = sum of g'g * u'u is the cheaper way."""
        places, fan_in = self.folded(self.shift).shape[3], self.module.weight[0].numel()
        if places == 1:
            return self.unfolded().square().sum(2, keepdim=True)
        if 2 * places > fan_in:
            return None
        u = self.unfolded()
        return u.transpose(2, 3) @ u

    def gradients(self, g: Tensor) -> dict[str, Tensor]:
        return {"weight": self.weight_gradients(g), "bias": self.folded(g).sum(3).flatten(1)}

    def squared_norms(self, g: Tensor) -> Tensor:
        total = torch.zeros(len(g), dtype=torch.float64, device=g.device)
        folded = self.folded(g)
        if "weight" in self.trainable:
            if self.gram is None:
                total += _per_example(self.weight_gradients(g).square())
            elif folded.shape[3] == 1:
                total += _per_example(folded.square().sum(2, keepdim=True) * self.gram)
            else:
                total += _per_example((folded.transpose(2, 3) @ folded) * self.gram)
        if "bias" in self.trainable:
            total += _per_example(folded.sum(3).square())
        return total

    def signs(self, generator: torch.Generator) -> Tensor:
        like = self.shift.detach()
        folded = self.folded(like)
        if folded.shape[3] == 1:  # one place: S u + s is as good as sqrt(|u|^2 + 1) s
            variance = like.new_full((), float("bias" in self.trainable))
            if "weight" in self.trainable:
                assert self.gram is not None
                variance = variance + self.gram
            return (variance.sqrt() * self.folded(_signs(tuple(self.shape), like, generator))).reshape(self.shape)
        z = self.weight_signs(generator) if "weight" in self.trainable else like
        if "bias" in self.trainable:
            z = z + self.everywhere(_signs((len(like), folded.shape[1] * folded.shape[2]), like, generator))
        return z

    @abstractmethod
    def everywhere(self, b: Tensor) -> Tensor:
        """One number for each output unit (n, units), to be added at all places."""


class _Linear(_Affine):
    def weight_gradients(self, g: Tensor) -> Tensor:
        return (self.folded(g) @ self.unfolded().transpose(2, 3)).squeeze(1)

    def unfolded(self) -> Tensor:
        return self.h.flatten(1, -2).transpose(1, 2)[:, None] if self.h.dim() > 2 else self.h[:, None, :, None]

    def folded(self, a: Tensor) -> Tensor:
        return a.flatten(1, -2).transpose(1, 2)[:, None] if a.dim() > 2 else a[:, None, :, None]

    def weight_signs(self, generator: torch.Generator) -> Tensor:
        matrices = _signs((len(self.h), self.h.shape[-1], self.shape[-1]), self.h, generator)
        return (self.h.flatten(1, -2) @ matrices).reshape(self.shape)

    def everywhere(self, b: Tensor) -> Tensor:
        return b.reshape(len(b), *(1,) * (len(self.shape) - 2), -1)


class _Conv2d(_Affine):
    @cached_property
    def padded(self) -> Tensor:
        mode = "constant" if self.module.padding_mode == "zeros" else self.module.padding_mode
        return functional.pad(self.h, self.module._reversed_padding_repeated_twice, mode=mode)

    @property
    def one_image(self) -> Tensor:
        """All examples as channels of one: a convolution with a kernel for every example is one in groups."""
        return self.padded.reshape(1, -1, *self.padded.shape[2:])

    def unfolded(self) -> Tensor:
        conv = self.module
        patches = functional.unfold(self.padded, conv.kernel_size, dilation=conv.dilation, stride=conv.stride)
        return patches.unflatten(1, (conv.groups, -1))

    def weight_gradients(self, g: Tensor) -> Tensor:
        conv, n, g = self.module, len(g), g.reshape(1, -1, *g.shape[2:])
        sizes, groups = (n * conv.out_channels, *conv.weight.shape[1:]), n * conv.groups
        gradients = conv2d_weight(self.one_image, sizes, g, conv.stride, 0, conv.dilation, groups)
        return gradients.unflatten(0, (n, -1))

    def folded(self, a: Tensor) -> Tensor:
        return a.reshape(len(a), self.module.groups, -1, a.shape[2] * a.shape[3])

    def weight_signs(self, generator: torch.Generator) -> Tensor:
        conv, n = self.module, len(self.h)
        kernels = _signs((n * conv.out_channels, *conv.weight.shape[1:]), self.h, generator)
        groups = n * conv.groups
        z = functional.conv2d(self.one_image, kernels, stride=conv.stride, dilation=conv.dilation, groups=groups)
        return z.reshape(self.shape)

    def everywhere(self, b: Tensor) -> Tensor:
        return b[:, :, None, None]


class _Norm(_Layer):
    """a = weight * normalised + bias, entry by entry, with parameters spread over the other axes."""

    def __init__(self, module: Any, trainable: dict[str, slice], h: Tensor, output: Tensor):
        super().__init__(module, trainable, h, output)
        trailing = isinstance(module, nn.LayerNorm)
        spread = module.normalized_shape if trailing else (output.shape[1], *(1,) * (output.dim() - 2))
        self.spread = (len(output), *(1,) * (output.dim() - 1 - len(spread)), *spread)
        self.h = self.normalised(self.h)  # now: afterwards the buffers are not those of this pass

    def normalised(self, h: Tensor) -> Tensor:
        norm = self.module
        if isinstance(norm, nn.LayerNorm):
            return functional.layer_norm(h, norm.normalized_shape, eps=norm.eps)
        if isinstance(norm, nn.GroupNorm):
            return functional.group_norm(h, norm.num_groups, eps=norm.eps)
        return functional.batch_norm(h, norm.running_mean, norm.running_var, eps=norm.eps)

    def signs(self, generator: torch.Generator) -> Tensor:
        z = torch.zeros_like(self.h)
        if "weight" in self.trainable:
            z = z + self.h * _signs(self.spread, z, generator)
        if "bias" in self.trainable:
            z = z + _signs(self.spread, z, generator)
        return z

    def gradients(self, g: Tensor) -> dict[str, Tensor]:
        return {"weight": (g * self.h).sum_to_size(self.spread), "bias": g.sum_to_size(self.spread)}


LAYERS: dict[type[nn.Module], type[_Layer]] = {
    nn.Linear: _Linear,
    nn.Conv2d: _Conv2d,
    nn.BatchNorm1d: _Norm,
    nn.BatchNorm2d: _Norm,
    nn.BatchNorm3d: _Norm,
    nn.GroupNorm: _Norm,
    nn.LayerNorm: _Norm,
}
"""Modules whose output is linear in their parameters and whose input does not depend on them."""

LINEAR = frozenset(
    """Add Sub Neg Sum Mean View ReshapeAlias UnsafeView Transpose T Permute Slice Select Index IndexSelect Cat Stack Clone
    ToCopy Expand Squeeze Unsqueeze Split UnsafeSplit ConstantPadNd Relu LeakyRelu Threshold Hardtanh Abs Clamp Where
    MaxPool1D MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D Max Amax AvgPool1D AvgPool2D AvgPool3D
    AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D NativeBatchNorm CudnnBatchNorm Repeat Alias Flip Roll
    ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D
    AccumulateGrad""".split()  # noqa: SIM905
)
"""Functions that are piecewise linear in all their arguments together, by the names of torch's backward nodes."""
BILINEAR = frozenset({"Mul", "Div", "Mm", "Addmm", "Bmm", "Baddbmm", "Convolution"})
"""Functions that are linear in one argument while the others are constant."""


@dataclass(frozen=True)
class _Chunk:
    """A forward pass over n examples whose layers were recorded; `weight` is its share n/N of the loss."""

    weight: float
    outputs: Tensor
    layers: list[_Layer]
    criterion: Callable[[Tensor], Tensor]

    def derivatives(self, output: Tensor, cotangent: Tensor | None = None, **flags: bool) -> tuple[Tensor, ...]:
        shifts = [layer.shift for layer in self.layers]
        return torch.autograd.grad(output, shifts, cotangent, retain_graph=True, materialize_grads=True, **flags)

    def sign_draws(self, num: int, generator: torch.Generator) -> Tensor:
        """z'(d2 loss/da2) z for every example, (num, n) float64, that sum to Tr H in expectation."""
        gradients = self.derivatives(self.criterion(self.outputs), create_graph=True)
        draws = [self._sign_draw(gradients, generator) for _ in range(num)]
        return self.weight * torch.stack(draws)

    def _sign_draw(self, gradients: tuple[Tensor, ...], generator: torch.Generator) -> Tensor:
        signs = [layer.signs(generator) for layer in self.layers]
        curved = [(g, z) for g, z in zip(gradients, signs, strict=True) if g.requires_grad]
        total = torch.zeros(len(self.outputs), dtype=torch.float64, device=self.outputs.device)
        if curved:
            products = torch.autograd.grad(
                [g for g, _ in curved],
                [layer.shift for layer in self.layers],
                [z for _, z in curved],
                retain_graph=True,
                materialize_grads=True,
            )
            for z, product in zip(signs, products, strict=True):
                total += _per_example(z * product)
        return total

    def squared_norms(self, v: Tensor) -> Tensor:
        """|J_n' v_n|^2 (n,) float64 of v (n, K): the squared norms of per-example gradients of v'f."""
        gradients = self.derivatives(self.outputs, v.reshape(self.outputs.shape))
        norms = (layer.squared_norms(g) for layer, g in zip(self.layers, gradients, strict=True))
        return torch.stack(list(norms)).sum(0)

    @cached_property
    def curvature(self) -> tuple[Tensor, Tensor]:
        return _output_curvature(self.criterion, self.outputs)

    def gauss_newton_draws(self, num: int, generator: torch.Generator) -> Tensor:
        """sum over signs of lambda of +-|J_n' sum_k sqrt|lambda_k| s_k v_k|^2, (num, n) float64, s random signs."""
        values, vectors = self.curvature
        draws = []
        for _ in range(num):
            s = _signs(tuple(values.shape), values, generator)
            total = torch.zeros(len(values), dtype=torch.float64, device=values.device)
            for side in (1, -1):
                part = (side * values).clamp(min=0)
                if bool((part != 0).any()):
                    total += side * self.squared_norms((vectors @ (part.sqrt() * s)[:, :, None])[:, :, 0])
            draws.append(total)
        return self.weight / len(values) * torch.stack(draws)


def _output_curvature(criterion: Callable[[Tensor], Tensor], outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n, K) and eigenvectors (n, K, K) of d2 loss_n/df_n2 for every example, loss = mean of loss_n.

    In float64: a fitted example has 1 - p of 1e-6, which float32 loses, and many may outweigh the few others. The k-th
    eigenvalues are set to zero where all are round-off: the softmax has one such column, and each costs a pass.
    """
    f = outputs.detach().double().requires_grad_()
    n, size = len(f), f[0].numel()
    if size > MOST_OUTPUTS:
        raise ValueError(f"{size} outputs for each example; their Hessian is formed for {MOST_OUTPUTS} at most")
    (g,) = torch.autograd.grad(criterion(f), f, create_graph=True, materialize_grads=True)
    if not g.requires_grad:
        return outputs.new_zeros(n, size), outputs.new_zeros(n, size, size)
    rows = [
        torch.autograd.grad(column.sum(), f, retain_graph=True, materialize_grads=True)[0].flatten(1)
        for column in g.reshape(n, size).unbind(1)
    ]
    hessians = n * torch.stack(rows, 1)
    if not bool(hessians.isfinite().all()):
        return outputs.new_full((n, size), math.nan), outputs.new_full((n, size, size), math.nan)
    values, vectors = torch.linalg.eigh((hessians + hessians.transpose(1, 2)) / 2)
    sizes = values.abs().sum(0)
    values = values * (sizes > 1e-13 * sizes.sum())
    return values.to(outputs.dtype), vectors.to(outputs.dtype)


@dataclass(frozen=True)
class _Anatomy:
    """A network of known layers, each used once: where their parameters lie, and what lies between them."""

    network: NetworkObjective
    trainable: dict[nn.Module, dict[str, slice]]
    num_outputs: int
    piecewise_linear: bool

    def require_piecewise_linear(self) -> None:
        if not self.piecewise_linear:
            raise ValueError(
                "Tr H is the Gauss-Newton trace only where outputs are piecewise linear in the pre-activations "
                "(ReLU, pooling, BatchNorm in eval mode); use method=signs, or gauss_newton_trace for Tr G itself"
            )

    def chunks(self, w: Tensor) -> Iterator[_Chunk]:
        """Recorded forward passes over all examples."""
        network, size = self.network, self.network.chunk_size(w)
        for x, y in zip(network.x.split(size), network.y.split(size), strict=True):
            outputs, layers = _recorded(network, self.trainable, w, x)
            yield _Chunk(len(x) / len(network.x), outputs, layers, partial(network._criterion, y=y))


def _require_examples(objective: Objective, w: Tensor) -> NetworkObjective:
    """A network whose loss is a mean over examples that do not see each other."""
    if not isinstance(objective, NetworkObjective):
        raise TypeError(f"{type(objective).__name__} is no network: it has no layers; use method=hutchinson or xtrace")
    if objective.has_batch_norm and objective.batch_norm == "train":
        raise ValueError('train-mode BatchNorm couples the examples of a batch; use batch_norm="eval" or hutchinson')
    if len(objective.x) > 1:
        objective.require_mean()
        with torch.no_grad():
            alone, together = (objective._outputs(w, objective.x[:num]) for num in (1, 2))
        if len(together) != 2 or not torch.allclose(alone[0], together[0], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise ValueError("the outputs of an example depend on the others of its batch; use method=hutchinson")
    return objective


def _anatomy(objective: Objective, w: Tensor) -> _Anatomy:
    """Take the network apart, and check on two examples that its layers account for the whole gradient.

    Raises TypeError where a parameter is no weight or bias of a known layer or is used in another way.
    """
    network = _require_examples(objective, w)
    places, seen = network.layout.slices(), dict[int, str]()
    trainable: dict[nn.Module, dict[str, slice]] = {}
    for prefix, module in network.model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            path = f"{prefix}.{name}" if prefix else name
            if not parameter.requires_grad:
                continue
            if type(module) not in LAYERS or name not in ("weight", "bias"):
                raise TypeError(
                    f"{path} belongs to a {type(module).__name__}, no layer known here; use method=hutchinson"
                )
            if id(parameter) in seen:
                raise TypeError(f"{path} is tied to {seen[id(parameter)]}; use method=hutchinson")
            seen[id(parameter)] = path
            trainable.setdefault(module, {})[name] = places[path]
    chunk = _Chunk(1.0, *_recorded(network, trainable, w, network.x[:2]), criterion=torch.sum)
    num_outputs = chunk.outputs[0].numel()
    direction = torch.arange(1, num_outputs + 1, dtype=w.dtype, device=w.device).cos()
    gradients = chunk.derivatives(chunk.outputs, direction.reshape(chunk.outputs[:1].shape).expand_as(chunk.outputs))
    leaf = w.detach().requires_grad_()
    alone = network._outputs(leaf, network.x[:1]).flatten() @ direction
    (truth,) = torch.autograd.grad(alone, leaf, materialize_grads=True)
    rest = truth.clone()
    for layer, g in zip(chunk.layers, gradients, strict=True):
        for name, place in layer.trainable.items():
            rest[place] -= layer.gradients(g)[name][0].flatten()
    if bool(truth.isfinite().all()) and not rest.norm() <= 10 * torch.finfo(w.dtype).eps ** 0.5 * truth.norm():
        raise TypeError("a parameter is used outside its layer, or a layer sees other examples; use method=hutchinson")
    return _Anatomy(network, trainable, num_outputs, _piecewise_linear(chunk.outputs))


def _recorded(
    network: NetworkObjective, trainable: dict[nn.Module, dict[str, slice]], w: Tensor, x: Tensor
) -> tuple[Tensor, list[_Layer]]:
    """The outputs on x with w as constants, differentiable in the shifts of the layers only; the hooks are taken off."""
    layers: dict[nn.Module, _Layer] = {}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if module in layers or len(inputs) != 1 or len(output) != len(x) or output.dim() < 2:
            raise TypeError(
                f"a {type(module).__name__} is used more than once or not on one row per example; use method=hutchinson"
            )
        with torch.no_grad():
            layers[module] = LAYERS[type(module)](module, trainable[module], inputs[0], output)
        return output + layers[module].shift

    handles = [module.register_forward_hook(record) for module in trainable]
    try:
        with torch.enable_grad():
            outputs = network._outputs(w.detach(), x)
    finally:
        for handle in handles:
            handle.remove()
    return outputs, list(layers.values())


def _piecewise_linear(outputs: Tensor) -> bool:
    """Whether every function on the way from the shifts to the outputs is piecewise linear in what depends on them."""
    open_nodes, seen = [outputs.grad_fn], set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        name = re.sub(r"Backward\d*$", "", node.name().removeprefix("torch::autograd::"))
        linear = name in LINEAR or (name in BILINEAR and len(parents) == 1)
        if not linear or getattr(node, "_saved_training", False):  # batch statistics are no constants
            return False
        open_nodes += parents
    return True


def _gauss_newton(anatomy: _Anatomy, w: Tensor, tol: float, most: int, generator: torch.Generator) -> Estimate:
    """Tr G by draws or exact, whichever is expected to need fewer backward passes."""

    def draws(num: int) -> Tensor:
        return torch.cat([chunk.gauss_newton_draws(num, generator) for chunk in anatomy.chunks(w)], dim=1)

    if tol == 0 or anatomy.num_outputs <= 2:
        return _gauss_newton_exact(anatomy, w)
    few = draws(2)
    found = _interval(few)
    if not found.within(tol) and anatomy.num_outputs < min(most, found.needed(2, tol)) - 2:
        return _gauss_newton_exact(anatomy, w, spent=2)
    return _sampled(draws, few, tol, most, "gauss_newton_signs")


def _gauss_newton_exact(anatomy: _Anatomy, w: Tensor, spent: int = 0) -> Estimate:
    total, passes = 0.0, 0
    for chunk in anatomy.chunks(w):
        values, vectors = chunk.curvature
        curved = [k for k in range(values.shape[1]) if bool((values[:, k] != 0).any())]
        for k in curved:
            total += chunk.weight * float((values[:, k] * chunk.squared_norms(vectors[:, :, k])).mean())
        passes = max(passes, len(curved))
    return Estimate(total, 0.0, spent + passes, "gauss_newton", math.isfinite(total))


def _gauss_newton_by_vmap(network: NetworkObjective, w: Tensor) -> Estimate:
    """The same for any layers: the per-example gradients of v'f are formed."""
    w, total, passes = w.detach(), 0.0, 0

    def projected(w: Tensor, x: Tensor, v: Tensor) -> Tensor:
        return network._outputs(w, x[None]).flatten() @ v

    size = max(1, min(network.chunk_size(w), CHUNK_BYTES // (w.numel() * w.element_size())))
    for x, y in zip(network.x.split(size), network.y.split(size), strict=True):
        with torch.no_grad():
            outputs = network._outputs(w, x)
        with torch.enable_grad():
            values, vectors = _output_curvature(partial(network._criterion, y=y), outputs)
        curved = [k for k in range(values.shape[1]) if bool((values[:, k] != 0).any())]
        for k in curved:
            with torch.no_grad():
                gradients = vmap(grad(projected), in_dims=(None, 0, 0))(w, x, vectors[:, :, k])
            total += float((values[:, k] * _per_example(gradients.square())).sum()) / len(network.x)
        passes = max(passes, len(curved))
    return Estimate(total, 0.0, passes, "gauss_newton", math.isfinite(total))


def _per_example(tensor: Tensor) -> Tensor:
    """Sums over all axes but the first, float64."""
    return tensor.flatten(1).sum(1).double()

"""Laws of derivatives, by differences: does what autograd says of a loss belong to that loss?

    gradient     g(w)'v       against  (L(w + hv) - L(w - hv)) / 2h
    Hessian      H(w) v       against  (g(w + hv) - g(w - hv)) / 2h,      and u'Hv = v'Hu
    third        d(u'Hv)/dw   against  (H(w + hu) v - H(w - hu) v) / 2h

They are looked at where exact zeros of initialisation are no issue: at w moved by a per cent or so of each parameter. A
difference is believed where it is the same at h and 3h: there it holds neither a kink (ReLU: a step across one adds its
jump over 2h, which is never the same twice) nor round-off. A law is broken where every believed difference, two at least,
says so, parameter by parameter; it is undecided where none can be believed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lab.objective.base import Objective, Unsound

STEPS = (1e-6, 1e-5, 1e-7, 1e-4, 1e-8, 1e-3, 1e-2)
"""Steps of differences, relative to the weights: the first that agrees is enough."""
MOVED = 0.03
"""How far from w the laws are looked at, relative to the weights."""
TOLERANCE = 1e-3
"""Relative difference that a law allows, beside what the difference itself is uncertain by."""
FINE = 0.01
"""Round-off of a difference, relative to what it is held against, above which it is not looked at."""
BELIEVED, WIDER = 0.05, 5.0
"""A difference is believed where it changes by less than this share from h to 3h; its change counts so many times."""
VALUE, PRODUCT = 1 / 3, 2.2
"""Cost of a value and of a Hessian product, in gradients."""
ROUND_OFF = 20.0
"""Round-off of a value or a gradient, in units of eps of its size where the outputs are wrong: of the logits of a fitted
network, say, which cancel in its loss and not in their round-off."""


@dataclass(frozen=True)
class Law:
    """What came of one law. error and tolerance are relative; held is None where it could not be decided; where names the
    parameters in which it is broken; spent is the cost, in gradients of what it was looked at with.
    """

    name: str
    error: float
    tolerance: float
    held: bool | None
    where: tuple[str, ...] = ()
    spent: float = 0.0


@dataclass(frozen=True)
class Place:
    """Where the laws are looked at: w, directions u and v (P,), in the scale of each parameter, whose names and sizes go
    with them; eps of the numbers computed with.
    """

    w: Tensor
    u: Tensor
    v: Tensor
    names: Sequence[str]
    sizes: Sequence[int]
    eps: float

    def scales(self, objective: Objective) -> tuple[float, float]:
        """|L| and |g| here, or with the outputs of a network negated, whichever is larger: what round-off goes by. Where a
        network computes its loss itself, its weights are negated instead.
        """
        value, gradient = objective.value_and_grad(self.w)
        sizes = [(abs(float(value)), float(gradient.double().norm()))]
        criterion = getattr(objective, "criterion", None)
        if criterion is not None:
            wrong = objective.on(objective.x, objective.y, lambda f, y: criterion(-f, y))  # type: ignore[attr-defined]
            value, gradient = wrong.value_and_grad(self.w)
            sizes.append((abs(float(value)), float(gradient.double().norm())))
        elif getattr(objective, "layout", None) is not None:
            value, gradient = objective.value_and_grad(-self.w)
            sizes.append((abs(float(value)), float(gradient.double().norm())))
        values, gradients = zip(*((v, g) for v, g in sizes if math.isfinite(v) and math.isfinite(g)), strict=True)
        return max(values), max(gradients)

    @classmethod
    def near(cls, objective: Objective, w: Tensor, generator: torch.Generator, eps: float | None = None) -> "Place":
        """Near w, in the dtype of w."""
        layout = getattr(objective, "layout", None)
        names, sizes = (layout.names, layout.sizes) if layout is not None else (("w",), (w.numel(),))
        least = 0.01 * max(_rms(w), 0.1)
        scale = torch.cat([piece.new_full(piece.shape, max(_rms(piece), least)) for piece in w.split(sizes)])
        scale = scale * _varied(objective).to(scale)
        draws = (torch.randn(w.shape, generator=generator, dtype=torch.float64).to(w) for _ in range(3))
        moved, u, v = (scale * draw for draw in draws)
        there = w + MOVED * moved
        if not bool(objective.value(there).isfinite()):
            there = w
        return cls(there, u, v, names, sizes, torch.finfo(w.dtype).eps if eps is None else eps)


def _varied(objective: Objective) -> Tensor:
    """1 for every weight (P,), 0 in the row `padding_idx` of an embedding: to autograd it is a constant, whatever its value
    does to the loss, and so is it to training.
    """
    layout, model = getattr(objective, "layout", None), getattr(objective, "model", None)
    if layout is None or model is None:
        return torch.ones(())
    varied, places = torch.ones(layout.size), layout.slices()
    names = dict[int, list[str]]()
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(name)
    for module in model.modules():
        row = getattr(module, "padding_idx", None)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and row is not None:
            own = names.get(id(module.weight), [])
            if len(own) == 1 and own[0] in places:  # one that is tied moves all the same: there the law is broken
                varied[places[own[0]]].view_as(module.weight)[row] = 0
    return varied


def derivative_laws(objective: Objective, place: Place) -> list[Law]:
    """Gradient, Hessian product and symmetry. Cost: about 7 gradients, more where kinks or a broken law want more steps."""
    w, u, v = place.w, place.u, place.v
    value, size = place.scales(objective)
    gradient, hu, hv = objective.grad(w), objective.hvp(w, u), objective.hvp(w, v)
    slopes = _compare(
        "gradient",
        (gradient.double() @ v.double())[None],
        lambda h: ((objective.value(w + h * v) - objective.value(w - h * v)).double() / (2 * h))[None],
        ("w",),
        (1,),
        lambda h: ROUND_OFF * place.eps * value / h,
        (3 + PRODUCT, 2 * VALUE),
    )
    curved = _compare(
        "Hessian",
        hv,
        lambda h: (objective.grad(w + h * v) - objective.grad(w - h * v)) / (2 * h),
        place.names,
        place.sizes,
        lambda h: ROUND_OFF * place.eps * size / h,
        (PRODUCT, 2.0),
    )
    uhv, vhu = (float(a.double() @ b.double()) for a, b in ((u, hv), (v, hu)))
    spread = float(u.double().norm() * hv.double().norm() + v.double().norm() * hu.double().norm())
    scale = max(abs(uhv), abs(vhu), spread / math.sqrt(len(w)))
    off = abs(uhv - vhu) / scale if scale > 0 else 0.0
    noise = ROUND_OFF * place.eps * size * float(u.double().norm() + v.double().norm())
    allowed = max(1e-5, place.eps**0.5, noise / scale if scale > 0 else 0.0)
    return [slopes, curved, Law("symmetry", off, allowed, off <= allowed)]


def third_law(objective: Objective, place: Place) -> Law:
    """The third derivative. Cost: about 10 gradients."""
    w, u, v = place.w, place.u, place.v
    size = float(objective.hvp(w, v).double().norm())
    return _compare(
        "third derivative",
        Objective.third(objective, w, u, v),
        lambda h: (objective.hvp(w + h * u, v) - objective.hvp(w - h * u, v)) / (2 * h),
        place.names,
        place.sizes,
        lambda h: ROUND_OFF * place.eps * size / h,
        (5.0 + PRODUCT, 2 * PRODUCT),
    )


def require_third(few: Objective, w: Tensor) -> None:
    """Raise Unsound where the third derivative of `few` examples is not the derivative of their Hessian products."""
    look = getattr(few, "look", None)
    w = w.detach().to(w.dtype if look is None else look.dtype)
    place = Place.near(few, w, torch.Generator().manual_seed(0), None if look is None else look.eps)
    law = third_law(few, place)
    if law.held is False:
        raise Unsound(
            f"the third derivative in {listed(law.where)} differs by {100 * law.error:.2g} % from the difference of "
            "Hessian products: torch has no right third derivative through this layer (as LayerNorm, train-mode BatchNorm, "
            'a function of somebody\'s own); use GroupNorm, or batch_norm="eval"'
        )


def _compare(
    name: str,
    exact: Tensor,
    difference: Callable[[float], Tensor],
    names: Sequence[str],
    sizes: Sequence[int],
    round_off: Callable[[float], float],
    cost: tuple[float, float],
) -> Law:
    """`exact` against differences at several steps, block by block; cost: of the former, and of a difference."""
    spent, each = cost
    whole = float(exact.double().norm())
    believed, broken, error = torch.zeros(len(sizes)), torch.zeros(len(sizes)), torch.zeros(len(sizes))
    zero = list[bool]()  # whether both sides were below round-off
    for h in STEPS:
        if h < STEPS[-1] and round_off(h) > FINE * whole > 0:
            continue  # a difference at this step could not speak against anything
        near, spent = difference(h), spent + each
        if not bool(near.isfinite().all()):
            continue
        off, size = _norms(exact - near, sizes), _norms(near, sizes)
        zero.append(max(whole, float(size.norm())) <= round_off(h))
        if round_off(h) > FINE * max(whole, float(size.norm())):
            continue
        allowed = TOLERANCE * torch.maximum(size, _norms(exact, sizes)) + round_off(h) + 1e-6 * whole
        if bool((off <= allowed).all()):
            return Law(name, _share(off, size), TOLERANCE, True, spent=spent)
        spread, spent = _norms(near - difference(3 * h), sizes), spent + each
        sure = spread + round_off(h) <= BELIEVED * torch.maximum(size, _norms(exact, sizes))
        wrong = sure & (off > allowed + WIDER * spread)
        believed, broken = believed + sure, broken + wrong
        error = torch.where(wrong, off / torch.maximum(size, _norms(exact, sizes)), error)
    guilty = (believed >= 2) & (broken == believed)
    if bool(guilty.any()):
        where = tuple(n for n, bad in zip(names, guilty.tolist(), strict=True) if bad)
        return Law(name, float(error[guilty].max()), TOLERANCE, False, where, spent)
    held = True if (zero and all(zero)) or bool((believed >= 2).all()) else None
    return Law(name, math.nan, TOLERANCE, held, spent=spent)


def _norms(v: Tensor, sizes: Sequence[int]) -> Tensor:
    return torch.stack([piece.double().norm() for piece in v.split(list(sizes))]).cpu()


def _share(off: Tensor, size: Tensor) -> float:
    total = float(size.norm())
    return float(off.norm()) / total if total > 0 else 0.0


def _rms(v: Tensor) -> float:
    return float(v.detach().double().square().mean().sqrt()) if v.numel() else 0.0


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

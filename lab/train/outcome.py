"""What a run amounts to when it is over, for `summary.json`."""

import math
from typing import Any

from lab.callbacks.outcome import outcome_of
from lab.callbacks.probe import ProbeCallback
from lab.curvature.phase import Phase
from lab.doors.parts import Settings
from lab.module import SupervisedModule
from lab.named import NamedCode
from lab.optim.schedules import Constant
from lab.run import keeping
from lab.run.folder import RunFolder
from lab.train.ending import reason


def outcome(settings: Settings, probes: ProbeCallback, module: SupervisedModule, folder: RunFolder) -> dict[str, Any]:
    """The summary of the run in `folder`; of sharpness and phase only what was measured."""
    parent = folder.read("provenance").get("parent")
    began = {"parent": {name: parent[name] for name in ("folder", "step", "changes")}} if parent else {}
    summary = outcome_of(
        probes,
        steps=module.step,
        reason=reason(module),
        others=_noise(settings, module)
        + _escapes(settings, folder)
        + (keeping.finding(folder) if keeping.Kept.of(settings.trainer.keep).best else [])
        + module.stopping.unseen(),
    )
    more = {
        "stopped_by": module.stopping.met or None,
        "edge_lr": _edge_lr(settings, summary, _rate(module), stochastic=probes.tracker.stochastic),
        "rate": "optimizer.args.lr" if isinstance(settings.optimizer, NamedCode) else "optimizer.lr",
        "loss_unit": getattr(settings.loss, "unit", "loss"),
    }
    since = {"phase_since": parent["phase_since"]} if parent and parent.get("phase_since") else {}
    return summary | more | began | since


def _rate(module: SupervisedModule) -> float | None:
    """The learning rate before the schedule; None where it differs between weights."""
    rates = {float(group["initial_lr"]) for group in module.optimizer.param_groups}
    return rates.pop() if len(rates) == 1 else None


def _edge_lr(settings: Settings, phase: dict[str, Any], lr: float | None, *, stochastic: bool) -> float | None:
    """The learning rate whose threshold is the last lambda_max, 2/lambda_max for gradient descent, for a run at `lr`.

    None where this is not one number (with mini-batches, a schedule, clipping, weight decay or a preconditioner; lambda_max
    not measured or not positive), or leads nowhere: interpolation takes the sharpness of cross entropy to zero.
    """
    ratio = phase["last_ratio"]
    plain = phase["quantity"] == "sharpness/lambda_max" and "wd" not in phase["threshold_formula"]
    fitted, constant = phase["phase"] == Phase.INTERPOLATED, isinstance(settings.schedule, Constant)
    if stochastic or fitted or not plain or not constant or lr is None or phase["clipped"]:
        return None
    return lr / ratio if ratio is not None and ratio > 0 else None


def _noise(settings: Settings, module: SupervisedModule) -> list[str]:
    """The noise in the gradient and what it cost, where there was one."""
    if settings.noise is None:
        return []
    cost = f"; a step took {_times(module.noise_cost)} one without noise" if math.isfinite(module.noise_cost) else ""
    return [f"Noise in the gradient: {settings.noise.described}{cost}."]


def _escapes(settings: Settings, folder: RunFolder) -> list[str]:
    """The steps along negative curvature, where they were asked for."""
    if settings.escape is None:
        return []
    (looked, _), (steps, actual), (_, predicted) = (
        folder.series(f"negative_curvature/{what}") for what in ("curvature", "actual_drop", "predicted_drop")
    )
    if not looked:
        return ["Negative curvature: the gradient was never below escape.gradient_tol."]
    if not steps:
        return [f"Negative curvature: looked for {len(looked)} times and not found: no saddle."]
    times = f"{len(steps)} steps along it" if len(steps) > 1 else "one step along it"
    before = ", ".join(map(str, steps[:5])) + (" ..." if len(steps) > 5 else "")
    return [
        f"Negative curvature: {times} (before update {before}); "
        f"the loss fell by {sum(actual):.4g} in all, predicted to second order {sum(predicted):.4g}."
    ]


def _times(ratio: float) -> str:
    """A ratio to two significant digits, whole from 10 on: as long as, 1.3 times as long as, 101 times as long as."""
    shown = f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.2g}"
    return "as long as" if shown == "1" else f"{shown} times as long as"

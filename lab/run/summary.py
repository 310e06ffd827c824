"""What a run amounts to, in one plain paragraph."""

from collections.abc import Iterable, Mapping
from typing import Any

DEFAULT = "default settings"
"""The title of a run of which no setting was typed."""


def sentence(summary: Mapping[str, Any]) -> str:
    """Where the run began, if from another, its phase and the numbers that say so, then what the probes found, from
    `summary.json`.
    """
    began = [f"Began {beginning(summary['parent'])}"] if "parent" in summary else []
    stopped = [f"Stopped at step {summary['steps']}: {reason}"] if (reason := _stop(summary)) else []
    return joined([*began, *stopped, _of_the_run(summary), *summary.get("findings", [])])


def _stop(summary: Mapping[str, Any]) -> str:
    """Why the run ended before its last step, if it did and has not diverged."""
    return "" if summary["phase"] == "diverged" else summary.get("reason", "")


def beginning(parent: Mapping[str, Any]) -> str:
    """At which step of which run another one begins, and what was changed.

    >>> beginning({"folder": "outputs/x", "step": 100, "changes": {"optimizer.lr": [0.1, 0.2]}})
    'at step 100 of outputs/x: optimizer.lr 0.1 -> 0.2'
    """
    return f"at step {parent['step']} of {parent['folder']}: {changed(parent) or 'nothing is changed'}"


def changed(parent: Mapping[str, Any]) -> str:
    """What was changed; "" for nothing. Settings of a card that gave way to another are none."""
    changes = parent["changes"]
    shown = [name for name in sorted(changes) if "." not in name or name.partition(".")[0] not in changes]
    return ", ".join(change(name, *changes[name]) for name in shown)


def change(name: str, before: Any, now: Any, *, short: str = "") -> str:
    """The values of a setting before and after, by a `short` name, if any. None is a setting that was not given.

    >>> change("optimizer.args.lr", None, 0.5), change("noise", None, "isotropic")
    ('optimizer.args.lr its default -> 0.5', 'noise none -> isotropic')
    """
    absent = "its default" if "." in name else "none"
    return f"{short or name} {absent if before is None else before} -> {absent if now is None else now}"


def joined(sentences: Iterable[str]) -> str:
    """Sentences as a paragraph: each with a capital, where it does not begin with a symbol, and a full stop.

    >>> joined(["Trained 60 steps.", "lambda_max is low", "below the edge: it is"])
    'Trained 60 steps. lambda_max is low. Below the edge: it is.'
    """
    ended = []
    for text in sentences:
        first = text.split(" ", 1)[0].rstrip(":,")
        begin = text[0].upper() + text[1:] if first.isalpha() and first.islower() else text
        ended.append(begin if begin.endswith((".", "!", "?")) else f"{begin}.")
    return " ".join(ended)


def decimals(number: float, places: int = 2) -> str:
    """A number with so many decimals, or to three significant digits where these would be too few or too many.

    >>> decimals(1.0374), decimals(0.0412), decimals(2820.16), decimals(1.3684e30)
    ('1.04', '0.0412', '2820', '1.37e+30')
    """
    if 100 <= abs(number) < 1e5:
        return f"{number:.0f}"
    return f"{number:.{places}f}" if 0.1 <= abs(number) < 100 or number == 0 else f"{number:.3g}"


def _of_the_run(summary: Mapping[str, Any]) -> str:
    formula, level = summary["threshold_formula"], summary["level"]
    unit = f"({formula})" if formula.endswith("- wd") else formula
    sharpness = "preconditioned lambda_max" if summary["quantity"] == "sharpness/preconditioned" else "lambda_max"
    sharpness += " of the weights that move" if summary["quantity"] == "sharpness/moved" else ""
    if summary["phase"] == "diverged":
        return f"The run diverged at step {summary['steps']}: {summary['reason']}.{_start(summary, sharpness, unit)}"
    if level is None:
        why = f": {summary['no_threshold']}" if summary.get("no_threshold") else ""
        held = f" Sharpness was not held against a threshold{why}." if summary["quantity"] else ""
        return f"{_trained(summary)}.{held}"
    low, high = decimals(summary["level_low"]), decimals(summary["level_high"])
    if summary["phase"] is None:
        span = f"{low} to {high}" if low != high else low
        few = f"; {doubt}" if (doubt := summary.get("no_threshold")) else _too_few(summary)
        return f"{_trained(summary)}. {sharpness} was at {span} x {unit}{few}{_edge_lr(summary)}."
    late = summary["entry_step"] is not None and summary["level_since"] == summary["entry_step"]
    span = f" ({low} to {high})" if low != high else ""
    hover = f"{decimals(level)} x {unit}{span} {'since then' if late else 'over the last half'}"
    rises = _rises(summary)
    if summary["entry_step"] is not None:
        left = "" if summary["phase"] == "edge of stability" else f", and has left it again (now {summary['phase']})"
        verb = "hovers at" if not left and summary["level_since"] >= summary["entry_step"] else "was at"
        return (
            f"Reached the edge of stability at step {summary['entry_step']}{left}: {sharpness} {verb} {hover}{rises}."
        )
    return f"Phase at the end: {summary['phase']}. {sharpness} was at {hover}{rises}.{_hint(summary)}"


def _trained(summary: Mapping[str, Any]) -> str:
    count, since = _made(summary), summary.get("phase_since", 0)
    steps = f"{count} step{'s' if count != 1 else ''}" + (f" ({since} to {summary['steps']})" if since else "")
    loss = "" if summary["last_loss"] is None else f"; loss {_loss(summary)}"
    return f"Trained {steps}{loss}{_accuracy(summary)}"


def _made(summary: Mapping[str, Any]) -> int:
    """The updates that the numbers of the summary are of: of a run that began from another and has a phase of its own, its
    own.
    """
    return int(summary["steps"] - summary.get("phase_since", 0))


def _too_few(summary: Mapping[str, Any]) -> str:
    """How often the sharpness was measured where the phase cannot be told, and what would do."""
    from lab.curvature.phase import FEWEST, rhythm  # torch, which the word of a finished run does without

    count, steps = summary["level_measurements"], _made(summary)
    every = rhythm(steps)
    measured = f"measured {count} time{'s' if count != 1 else ''} in the last half of the run"
    cure = f"probe.sharpness.every={every} would do" if every else f"so would be any number in {steps} steps"
    return f", {measured}: too few to tell a phase ({FEWEST} at least); {cure}"


def _rises(summary: Mapping[str, Any]) -> str:
    """How the loss went, as far as it is known: of every step, at some of them, or not."""
    if summary["last_loss"] is None:
        return ""
    share = summary["loss_rises"]
    rose = "" if share is None else f"rose on {100 * share:.0f} % of the last steps and "
    return f"; loss {rose}went {_loss(summary)}"


def _loss(summary: Mapping[str, Any]) -> str:
    return f"from {summary['first_loss']:.4g} to {summary['last_loss']:.4g}"


def _accuracy(summary: Mapping[str, Any]) -> str:
    accuracy = summary["test_accuracy"]
    return "" if accuracy is None else f", test accuracy {accuracy:.3g}"


def _start(summary: Mapping[str, Any], sharpness: str, unit: str) -> str:
    """Where a run that diverged began, and what may be changed: its learning rate, or a bound that it began above."""
    if _made(summary) == 0:
        above = "above the bound" in summary["reason"]
        return " It began there, before the first update" + (": raise trainer.max_loss." if above else ".")
    ratio = summary["first_ratio"]
    if ratio is None:
        return ""
    return f" {sharpness} began at {decimals(ratio)} x {unit}; a smaller {_rate(summary)} may survive."


def _hint(summary: Mapping[str, Any]) -> str:
    """How far the learning rate is from the edge, for a run that never got there, or from which side it came."""
    if summary["max_ratio"] >= 1:
        came_down = summary["first_ratio"] >= 1 and summary["phase"] != "above the edge"
        return f" It began above the edge, at {decimals(summary['first_ratio'])}." if came_down else ""
    text = f" The edge was never reached: the highest ratio was {decimals(summary['max_ratio'])}"
    text += _edge_lr(summary)
    return f"{text}. experiment=quickstart reaches it." if summary["title"] == DEFAULT else f"{text}."


def _rate(summary: Mapping[str, Any]) -> str:
    """The setting of the learning rate."""
    return summary.get("rate", "optimizer.lr")


def _edge_lr(summary: Mapping[str, Any]) -> str:
    """The learning rate that would put the last lambda_max at the edge, where it is one number."""
    if (lr := summary.get("edge_lr")) is None:
        return ""
    edge = summary["threshold_formula"].replace("/lr", "/lambda_max")
    return f"; the threshold meets the last lambda_max at {_rate(summary)} = {edge} = {lr:.3g}"

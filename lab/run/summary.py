"""What a run amounts to, in one plain paragraph."""

from collections.abc import Iterable, Mapping
from typing import Any


def sentence(summary: Mapping[str, Any]) -> str:
    """The phase of the run and the numbers that say so, then what the probes found, from `summary.json`."""
    return joined([_of_the_run(summary), *summary.get("findings", [])])


def joined(sentences: Iterable[str]) -> str:
    """Sentences as a paragraph: each with a capital, where it does not begin with a symbol, and a full stop.

    >>> joined(["Trained 60 steps.", "lambda_max is low", "below the edge: it is"])
    'Trained 60 steps. lambda_max is low. Below the edge: it is.'
    """
    told = []
    for text in sentences:
        first = text.split(" ", 1)[0].rstrip(":,")
        begin = text[0].upper() + text[1:] if first.isalpha() and first.islower() else text
        told.append(begin if begin.endswith((".", "!", "?")) else f"{begin}.")
    return " ".join(told)


def _of_the_run(summary: Mapping[str, Any]) -> str:
    unit, level = summary["threshold_formula"], summary["level"]
    sharpness = "lambda_max" if summary["quantity"] == "sharpness/lambda_max" else "preconditioned lambda_max"
    if summary["phase"] == "diverged":
        start = _start(summary, sharpness, unit)
        return f"The run diverged at step {summary['steps']}: {summary['reason']}.{start}"
    if level is None:
        held = " Sharpness was not held against a threshold." if summary["quantity"] else ""
        steps = f"{summary['steps']} step{'s' if summary['steps'] != 1 else ''}"
        return f"Trained {steps}; loss {_loss(summary)}{_accuracy(summary)}.{held}"
    late = summary["entry_step"] is not None and summary["level_since"] <= summary["entry_step"]
    span = f"({summary['level_low']:.2f} to {summary['level_high']:.2f})"
    hover = f"{level:.2f} x {unit} {span} {'since then' if late else 'over the last half'}"
    rises = f"loss rose on {100 * summary['loss_rises']:.0f} % of the last steps and went {_loss(summary)}"
    if summary["entry_step"] is not None:
        left = "" if summary["phase"] == "edge of stability" else f", and has left it again (now {summary['phase']})"
        verb = "hovers at" if not left else "was at"
        return (
            f"Reached the edge of stability at step {summary['entry_step']}{left}: {sharpness} {verb} {hover}; {rises}."
        )
    return f"Phase at the end: {summary['phase']}. {sharpness} was at {hover}; {rises}.{_hint(summary)}"


def _loss(summary: Mapping[str, Any]) -> str:
    return f"from {summary['first_loss']:.4g} to {summary['last_loss']:.4g}"


def _accuracy(summary: Mapping[str, Any]) -> str:
    accuracy = summary["test_accuracy"]
    return "" if accuracy is None else f", test accuracy {accuracy:.3g}"


def _start(summary: Mapping[str, Any], sharpness: str, unit: str) -> str:
    ratio = summary["first_ratio"]
    return "" if ratio is None else f" {sharpness} began at {ratio:.2f} x {unit}; a smaller optimizer.lr may survive."


def _hint(summary: Mapping[str, Any]) -> str:
    """How far the learning rate is from the edge, for a run that never got there."""
    highest = summary["max_ratio"]
    return "" if highest >= 1 else f" The edge was never reached: the highest ratio was {highest:.2f}."

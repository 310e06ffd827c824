"""The figure of `escape_split`: distances from the split neuron, and times from the origin."""

import numpy as np

from lab.gallery.frame import Arrays, Axes, Figure, caption, law, panels, points


def draw(arrays: Arrays, title: str) -> Figure:
    return panels(arrays, title, (_draw_distance, _draw_origin), size=(11, 4.8), widths=(1.3, 1), box=False)


def _draw_distance(axis: Axes, arrays: Arrays) -> None:
    size, unequal = (int(b) for b in arrays["batches"])
    names = ("equal halves, isotropic noise", f"split {float(arrays['share']):g}, batch {unequal}")
    law(axis, [], [], "theory", "k", lw=1)
    for i, (name, color) in enumerate(zip(names, ("tab:blue", "tab:green"), strict=True)):
        seen, z = arrays[f"distance_{i}"], np.exp(1 / arrays["slopes"][i])
        steps = np.arange(len(seen))
        inside = np.maximum.accumulate(seen) < float(arrays["radius"])
        axis.plot(steps[inside][1:], seen[inside][1:], color=color, lw=2.2, label=f"{name}: root mean square")
        theory = arrays["lr_noise"][i] * np.sqrt((z ** (2.0 * steps) - 1) / (z * z - 1))
        kept = theory < 1.5 * float(arrays["radius"])
        law(axis, steps[kept][1:], theory[kept][1:], color="k", lw=1)
    floor = np.maximum(arrays["stayed"], 1e-18)
    axis.plot(
        arrays["stay_steps"], floor, color="tab:red", lw=2.2, label=f"equal halves, batch {size}: farthest of all runs"
    )
    axis.axhline(float(arrays["radius"]), color="0.4", lw=0.9, ls=":")
    axis.text(arrays["stay_steps"][-1], 1.6 * float(arrays["radius"]), "left", ha="right", color="0.4", fontsize=9)
    axis.set(xscale="log", yscale="log", ylim=(1e-18, 1e2), xlim=(1, arrays["stay_steps"][-1]))
    axis.set(xlabel="t (steps)", ylabel="distance from the saddle along its descent")
    caption(axis, "without noise in the descending directions SGD never leaves", "center left")


def _draw_origin(axis: Axes, arrays: Arrays) -> None:
    sizes = arrays["sizes"]
    axis.semilogx(sizes, arrays["origin_theory"], color="tab:red", lw=1.4, ls="--", label="theory")
    names = ("gradient descent", f"SGD, batch {int(arrays['batches'][0])}")
    for name, marker, color, means in zip(names, "os", ("k", "tab:blue"), arrays["origin"], strict=True):
        points(axis, sizes, means, color, name, marker=marker, ms=7, mfc="none", mew=1.5)
    axis.set(xlabel="size of the initial weights (standard deviation)", ylabel="mean steps to leave the origin")
    axis.set(ylim=(0, 1.15 * np.nanmax(arrays["origin"][:, :, 0])))
    caption(axis, "the saddle where training begins", "lower left")

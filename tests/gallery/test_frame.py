"""The frame of a figure: a panel for every drawing, in order, each with its grid and its box, or without."""

from collections.abc import Mapping

import numpy as np
import pytest
from matplotlib.axes import Axes

from lab.gallery.frame import Draw, panels


def named(name: str) -> Draw:
    def draw(axis: Axes, arrays: Mapping[str, np.ndarray]) -> None:
        axis.plot(arrays["x"])
        axis.set_title(name)

    return draw


def gridded(axis: Axes) -> bool:
    return any(line.get_visible() for line in axis.get_xgridlines())


def test_panels_stand_row_by_row_with_a_grid_unless_told_otherwise() -> None:
    plane, *others = map(named, "abcd")
    figure = panels({"x": np.arange(3)}, "above", (plane, others[0]), others[1:], size=(4, 3), gridless=(plane,))
    assert [axis.get_title() for axis in figure.axes] == list("abcd")
    assert [gridded(axis) for axis in figure.axes] == [False, True, True, True]
    assert [axis.get_subplotspec().rowspan.start for axis in figure.axes] == [0, 0, 1, 1]  # type: ignore[union-attr]
    assert figure.get_suptitle() == "above"
    assert figure.get_size_inches().tolist() == [4, 3]
    assert all(axis.get_lines()[0].get_ydata().tolist() == [0, 1, 2] for axis in figure.axes)  # type: ignore[union-attr]


@pytest.mark.parametrize("box", [True, False])
def test_a_panel_without_its_box_keeps_the_left_and_the_lower_side(box: bool) -> None:
    figure = panels({"x": np.arange(3)}, "", (named("a"), named("b")), size=(6, 3), widths=(3, 2), box=box)
    for axis in figure.axes:
        sides = {side for side, spine in axis.spines.items() if spine.get_visible()}
        assert sides == ({"left", "bottom", "top", "right"} if box else {"left", "bottom"})
    figure.canvas.draw()
    left, right = (axis.get_position().width for axis in figure.axes)
    assert left / right == pytest.approx(1.5, abs=0.05)

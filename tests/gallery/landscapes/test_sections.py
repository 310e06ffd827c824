"""Sections through w-space: their values, the projection of trajectories, and the picture."""

from typing import Literal

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lab.gallery.landscapes.sections import draw_contours, section, window
from lab.landscapes.double_well import DoubleWell
from lab.landscapes.quadratic import Quadratic
from lab.objective import NetworkObjective

DOUBLE = torch.float64


def test_a_section_of_a_quadratic_is_the_quadratic_of_its_coordinates() -> None:
    landscape = Quadratic((4.0, 2.0, 1.0))
    origin, u, v = torch.tensor([[0.5, 0, 0], [1.0, 0, 1.0], [0, 2.0, 0]], dtype=DOUBLE)
    a, b = torch.linspace(-1, 1, 5, dtype=DOUBLE), torch.linspace(0, 1, 3, dtype=DOUBLE)
    shown = section(landscape, origin, u, v, columns=a, rows=b)
    truth = 2 * (0.5 + a[None]) ** 2 + (2 * b[:, None]) ** 2 + 0.5 * a[None] ** 2
    torch.testing.assert_close(shown.values, truth)
    points = origin + torch.tensor([[0.3, 0.7]], dtype=DOUBLE) @ torch.stack([u, v])
    torch.testing.assert_close(shown.coordinates(points), torch.tensor([[0.3, 0.7]], dtype=DOUBLE))


def test_coordinates_of_a_point_off_the_plane_are_those_of_its_projection() -> None:
    shown = window(Quadratic((1.0, 1.0)), [-1, -1], [1, 1], points=3)
    assert shown.values.tolist() == [[1.0, 0.5, 1.0], [0.5, 0.0, 0.5], [1.0, 0.5, 1.0]]
    plane = section(
        Quadratic((1.0, 1.0, 1.0)),
        torch.zeros(3, dtype=DOUBLE),
        *torch.eye(3, dtype=DOUBLE)[:2],
        columns=torch.zeros(1, dtype=DOUBLE),
        rows=torch.zeros(1, dtype=DOUBLE),
    )
    assert plane.coordinates(torch.tensor([0.2, -0.4, 9.0], dtype=DOUBLE)).tolist() == pytest.approx([0.2, -0.4])


def test_contours_draw_every_trajectory_from_its_dot_to_its_star() -> None:
    path = torch.tensor([[0.1, 0.9], [0.5, 0.4], [1.0, 0.0]], dtype=DOUBLE)
    axis = Figure().subplots()
    draw_contours(axis, window(DoubleWell(), [-1.6, -1.2], [1.6, 1.2], points=31), {"descent": path})
    lines = axis.get_lines()
    assert lines[0].get_label() == "descent"
    assert lines[0].get_xydata().tolist() == path.tolist()
    assert (lines[1].get_marker(), lines[2].get_marker()) == ("o", "*")


def network(batch_norm: Literal["eval", "train"]) -> NetworkObjective:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, generator=generator), torch.tensor([0, 1, 0, 1, 1, 0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))
    return NetworkObjective(model, nn.CrossEntropyLoss(), (x, y), batch_norm=batch_norm)


@pytest.mark.parametrize("batch_norm", ["eval", "train"])
@pytest.mark.parametrize("few", [False, True])
def test_a_section_of_a_network_has_its_value_at_every_point(
    batch_norm: Literal["eval", "train"], few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, generator = network(batch_norm), torch.Generator().manual_seed(1)
    w = loss.weights
    u, v = torch.randn(2, len(w), generator=generator)
    a, b = torch.linspace(-1, 1, 4, dtype=DOUBLE), torch.linspace(0, 1, 3, dtype=DOUBLE)
    if few:  # five points in memory at once: the last batch has two of the twelve
        monkeypatch.setattr("lab.gallery.landscapes.sections.BATCH_BYTES", 5 * 4 * len(w))
    shown = section(loss, w, u, v, columns=a, rows=b)
    truth = torch.stack([torch.stack([loss.value(w + i * u + j * v) for i in a]) for j in b])
    torch.testing.assert_close(shown.values, truth)
    assert shown.values.dtype == torch.float32


def test_the_points_of_a_section_are_one_batch() -> None:
    batches = []

    class Counted(Quadratic):
        def replica_values(self, W: Tensor, index: Tensor | None = None) -> Tensor:
            batches.append(len(W))
            return super().replica_values(W, index)

    window(Counted((1.0, 2.0)), [-1, -1], [1, 1], points=7)
    assert batches == [49]


def test_a_window_is_for_two_variables() -> None:
    with pytest.raises(ValueError, match="3 variables"):
        window(Quadratic((1.0, 1.0, 1.0)), [-1, -1], [1, 1])

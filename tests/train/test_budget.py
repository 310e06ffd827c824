"""What a budget makes of whole runs: nothing where it does not bind, and the same in two runs where it counts products."""

from collections.abc import Callable
from typing import Any

import pytest

from lab.run.folder import RunFolder

SMALL = ("trainer.threads=1", "data.examples=60", "model.widths=[8]")
NOISY = ("data.batch_size=20", "optimizer.momentum=0.9")


def measured(folder: RunFolder) -> dict[str, Any]:
    """All series but those of the clock."""
    return {tag: points for tag, points in folder.all_series().items() if not tag.endswith("/seconds")}


def test_a_budget_that_does_not_bind_changes_no_number(train: Callable[..., RunFolder]) -> None:
    none = train("none", *SMALL, "steps=60", "probe.budget=null")
    some = train("some", *SMALL, "steps=60")
    typed = train(
        "typed", *SMALL, "steps=60", "probe.sharpness.every=13", "probe.sharpness.tol=0.001", "probe.budget=null"
    )
    assert measured(none) == measured(some) == measured(typed)
    assert none.read("summary")["budget"] is None
    account = some.read("summary")["budget"]
    assert account["budget"] == "0.2" and account["allowed"] >= 10.0
    assert account["decisions"] == ["step 0 on sharpness every 13 steps"]


def test_a_budget_of_products_is_kept_repeats_exactly_and_survives_a_kill(
    train: Callable[..., RunFolder], resumed: Callable[..., tuple[RunFolder, RunFolder]]
) -> None:
    settings = (*SMALL, *NOISY, "steps=260", "probe.budget=products:100", "trainer.checkpoint_every=100")
    whole, broken = resumed(*settings)
    again = train("again", *settings)
    assert measured(whole) == measured(again) == measured(broken)
    accounts = [run.read("summary")["budget"] for run in (whole, again, broken)]
    assert accounts[0] == accounts[1] == accounts[2]
    assert 75 <= accounts[0]["spent"] <= 100 and accounts[0]["unit"] == "products"
    steps, _ = measured(whole)["sharpness/lambda_max"]
    assert steps[0] == 0 and steps[-1] == 260 and 4 < len(steps) < 21
    assert sum(whole.all_series()["cost/sharpness/matvecs"][1]) == pytest.approx(accounts[0]["spent"])


def test_weights_are_the_same_whatever_the_budget(train: Callable[..., RunFolder]) -> None:
    runs = [
        train(name, *SMALL, *NOISY, "steps=60", f"probe.budget={b}")
        for name, b in (("a", "null"), ("b", "products:40"))
    ]
    assert len(measured(runs[1])["sharpness/lambda_max"][0]) < len(measured(runs[0])["sharpness/lambda_max"][0])
    assert measured(runs[0])["train/loss"] == measured(runs[1])["train/loss"]


def test_a_run_begun_before_there_was_a_budget_goes_on_without(train: Callable[..., RunFolder]) -> None:
    folder = train(
        "old", *SMALL, "steps=30", "probe.sharpness.every=13", "probe.sharpness.tol=0.001", "probe.budget=null"
    )
    provenance = folder.read("provenance")
    del provenance["settings"]["probe"]["budget"]
    folder.write("provenance", provenance)
    assert train("old", *SMALL, "steps=30").read("provenance") == provenance, "the numbers of then for auto"


def test_lengthening_says_where_the_measurements_so_far_are_those_of_a_shorter_run(
    train: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, told = (*SMALL, "optimizer.momentum=0.9"), []
    for products, steps in ((40, 60), (1000, 60), (120, 39)):
        train(f"of {products}", *settings, f"steps={steps}", f"probe.budget=products:{products}")
        capsys.readouterr()
        train(f"of {products}", *settings, "steps=90", f"probe.budget=products:{products}")
        told.append([line for line in capsys.readouterr().err.splitlines() if "bit for bit" in line])
    budget = "weights go on bit for bit; measurements so far were made by a budget for"
    assert len(told[0]) == 1 and f"{budget} 60 steps, and are not all those of a run of 90 steps" in told[0][0]
    assert not told[1], "there is enough for both"
    assert f"{budget} 39 steps, and may not all be those" in told[2][0], "it will be scarce"


@pytest.mark.parametrize("typed", ["probe.budget=0", "probe.budget=products:0", "probe.budget=lots"])
def test_what_is_no_budget_is_refused(
    typed: str, command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        command(*SMALL, typed, "hydra.run.dir=there")
    assert stop.value.code == 2 and not RunFolder("there").path.exists()
    error = capsys.readouterr().err
    assert f"{typed}: expected a share of the training time" in error and len(error.splitlines()) == 1

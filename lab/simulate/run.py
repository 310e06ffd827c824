"""One run of an experiment, carried out in a folder: killed at any moment it leaves nothing that is taken as finished."""

from time import perf_counter
from typing import Any

from lab.gallery.base import Experiment, Outcome, Surroundings
from lab.run import figures
from lab.run.folder import RunFolder
from lab.run.provenance import provenance
from lab.settings import SettingError
from lab.simulate.progress import StageProgress
from lab.simulate.settings import Shared


def carry_out(
    experiment: Experiment,
    shared: Shared,
    folder: RunFolder,
    *,
    plain: dict[str, Any],
    command: str,
    title: str,
    bar: bool = True,
) -> None:
    """Simulate, draw and write; the status says finished only when all the rest is on disk.

    Raises SettingError when another process has the folder, or when the experiment finds a setting wrong; that leaves
    nothing in the folder.
    """
    with folder.owned():
        folder.write("provenance", provenance(command, plain))
        folder.status("running", step=0)
        try:
            start = perf_counter()
            with StageProgress(title, experiment.stages(), bar=bar) as progress:
                outcome = experiment.simulate(Surroundings(shared.seed, shared.device(experiment), progress.stage))
            _write(folder, experiment, outcome, title, seconds=perf_counter() - start)
        except SettingError:  # found out while it ran: as if it had been refused at once
            for name in ("provenance.json", "status.json", ".lock"):
                (folder.path / name).unlink(missing_ok=True)
            folder.remove_if_empty()
            raise
        except BaseException as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
            folder.status("failed", step=0, reason=reason)
            raise
        folder.status("finished", step=0)


def _write(folder: RunFolder, experiment: Experiment, outcome: Outcome, title: str, *, seconds: float) -> None:
    name = experiment.name
    folder.log_arrays(0, {f"{name}/{key}": array for key, array in outcome.arrays.items()})
    saved = folder.all_arrays(name)[0]
    figures.save(experiment.figure(saved, title), folder.figures / f"{name}.png")
    folder.write(
        "summary",
        {
            "finding": outcome.finding,
            "disagreement": outcome.disagreement(),
            "comparisons": [comparison.plain() for comparison in outcome.comparisons],
            "table": [list(comparison.row()) for comparison in outcome.comparisons],
            "values": outcome.values,
            "title": title,
            "seconds": seconds,
        },
    )

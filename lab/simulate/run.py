"""One run of an experiment, carried out in a folder: killed at any moment it leaves nothing that is taken as finished."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from lab.gallery.experiments.base import Experiment, Outcome, Surroundings
from lab.run import figures
from lab.run.folder import RunFolder
from lab.run.provenance import provenance
from lab.settings import SettingError
from lab.simulate.progress import Progress
from lab.simulate.settings import Shared


@dataclass(frozen=True)
class Run:
    """An experiment with its settings, and where it is computed."""

    experiment: Experiment
    shared: Shared
    device: torch.device

    def carry_out(
        self, folder: RunFolder, *, plain: dict[str, Any], command: str, title: str, bar: bool = True
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
                outcome = self._simulate(title, bar=bar)
                self._write(folder, outcome, title, seconds=perf_counter() - start)
            except SettingError:  # found out while it ran: as if it had been refused at once
                for name in ("provenance.json", "status.json", ".lock"):
                    (folder.path / name).unlink(missing_ok=True)
                raise
            except BaseException as error:
                reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
                folder.status("failed", step=0, reason=reason)
                raise
            folder.status("finished", step=0)

    def _simulate(self, title: str, *, bar: bool) -> Outcome:
        with Progress(title, self.experiment.stages(), bar=bar) as progress:
            return self.experiment.simulate(Surroundings(self.shared.seed, self.device, progress.stage))

    def _write(self, folder: RunFolder, outcome: Outcome, title: str, *, seconds: float) -> None:
        name = self.experiment.name
        folder.log_arrays(0, {f"{name}/{key}": array for key, array in outcome.arrays.items()})
        saved = folder.all_arrays(name)[0]
        figures.save(self.experiment.figure(saved, title), folder.figures / f"{name}.png")
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

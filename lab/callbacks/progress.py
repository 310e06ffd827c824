"""Live progress: step, loss, sharpness over threshold, phase and time to go; plain lines where there is no terminal.

It lives from before the first measurement; what takes over `PATIENCE` in a step says there how far it is.
"""

from collections.abc import Callable
from time import monotonic
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lab.callbacks.probe import ProbeCallback
from lab.module import SupervisedModule
from lab.run.progress import LINE_SECONDS, PATIENCE, MatvecProgress, is_shown_elsewhere
from lab.run.summary import decimals

WIDE = 100
"""Columns of a terminal from which on the bar has room for the name of the phase."""


class ProgressCallback(pl.Callback):
    """A progress bar of `total` updates with loss and lambda / threshold; `bar` False: lines also on a terminal."""

    def __init__(self, probes: ProbeCallback, total: int, *, bar: bool = True, console: Console | None = None):
        self.probes, self.total, self.bar = probes, total, bar
        self.console = console or Console(stderr=True)
        self._bar = Progress(
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task("train", total=total, text="")
        self._line_due, self._begin, self._first_step = 0.0, 0.0, 0
        probes.costs.working, probes.costs.tell = self.working, self._line

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, SupervisedModule)
        self._begin, self._first_step = monotonic(), pl_module.step
        self._line_due = self._begin + LINE_SECONDS
        self.bar = self.bar and self.console.is_terminal and not is_shown_elsewhere()
        if self.bar:
            self._bar.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, SupervisedModule)
        if self.bar:
            text = self.text(phase=self.console.width >= WIDE)
            self._bar.update(self._task, completed=pl_module.step, text=text)
        elif monotonic() >= self._line_due and not is_shown_elsewhere():
            done = pl_module.step - self._first_step
            left = (monotonic() - self._begin) / max(1, done) * (self.total - pl_module.step)
            self.console.print(
                f"step {pl_module.step}/{self.total}  {self.text()}  {left:.0f} s to go",
                highlight=False,
                soft_wrap=True,
            )
            self._line_due = monotonic() + LINE_SECONDS

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop()

    def working(self, what: str, expected: int, seconds: float, products: Callable[[], int]) -> MatvecProgress:
        """What stands around work within a step: it tells how far it is, in the text of the live bar or in lines."""
        into = self._tell if self.bar and self._bar.live.is_started else None
        return MatvecProgress(
            what, expected, seconds, products, patience=PATIENCE, into=into, lines=True, console=self.console
        )

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _tell(self, text: str) -> None:
        """`text` in the place of loss and phase; "" for these."""
        self._bar.update(self._task, text=escape(text) or self.text(phase=self.console.width >= WIDE))

    def _stop(self) -> None:
        if self.bar:  # rich prints an empty line for a bar that never began
            self._bar.stop()

    def text(self, *, phase: bool = True) -> str:
        """loss, lambda / threshold and phase, as far as they are known."""
        tracker = self.probes.tracker
        loss = f"loss {tracker.losses[-1]:.4g}" if tracker.losses else ""
        ratio = f"  lambda/threshold {decimals(tracker.ratio, 3)}" if tracker.ratios else ""
        return loss + ratio + (f"  {tracker.phase}" if tracker.phase and phase else "")

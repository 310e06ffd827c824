"""How a run is carried out, as opposed to what is trained: `conf/trainer/`."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from lab.settings import CARD, SettingError, usable_cpus

MAX_THREADS = 1024
"""More than that the system may not give, and then Python dies of it."""
Period = Annotated[int, Field(gt=0)] | None


@dataclass(frozen=True, kw_only=True, config=CARD)
class TrainerSettings:
    """Accelerator, precision and threads; rhythms of logging, evaluation and checkpoints (in updates, null: never)."""

    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    threads: Annotated[int, Field(gt=0, le=MAX_THREADS)] | Literal["auto"] = "auto"
    chunk_examples: Annotated[int, Field(gt=0)] | Literal["all"] = "all"
    batch_norm: Literal["train", "eval"] = "train"
    max_loss: Annotated[float, Field(gt=0)] = 1e6
    log_every: Period = 1
    evaluate_every: Period = 100
    checkpoint_every: Period = 500

    def require_accelerator(self) -> None:
        """Raise SettingError when this machine has no such accelerator."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise SettingError(
                "trainer.accelerator=gpu, but torch finds no CUDA here; use trainer.accelerator=cpu or auto"
            )

    def lightning_accelerator(self) -> Literal["cpu", "cuda"]:
        """The name for Lightning, whose own gpu and auto may mean mps: that has no float64, which curvature needs."""
        return "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    def num_threads(self, jobs: int = 1, *, small: bool = False) -> int:
        """Threads of this process when `jobs` of them share the machine: as set, or its CPUs divided among them.

        small: operations too short to be worth waking a second thread, which on a busy machine costs 8 ms each time.
        """
        if isinstance(self.threads, int):
            return self.threads
        return 1 if small else max(1, usable_cpus() // max(1, jobs))

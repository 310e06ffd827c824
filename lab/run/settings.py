"""How a run is carried out, as opposed to what is trained: `conf/trainer/`."""

import os
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lab.settings import CARD

Period = Annotated[int, Field(gt=0)] | None


@dataclass(frozen=True, kw_only=True, config=CARD)
class TrainerSettings:
    """Accelerator, precision and threads; rhythms of logging, evaluation and checkpoints (in updates, null: never)."""

    accelerator: Literal["cpu", "gpu", "mps", "auto"] = "cpu"
    precision: Literal["32-true", "64-true", "bf16-mixed"] = "32-true"
    threads: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"
    chunk_examples: Annotated[int, Field(gt=0)] | Literal["all"] = "all"
    batch_norm: Literal["train", "eval"] = "train"
    max_loss: Annotated[float, Field(gt=0)] = 1e6
    log_every: Annotated[int, Field(gt=0)] = 1
    evaluate_every: Period = 100
    checkpoint_every: Period = 500

    def num_threads(self, jobs: int = 1) -> int:
        """Threads of this process when `jobs` of them share the machine (auto: the cores divided among them)."""
        return self.threads if isinstance(self.threads, int) else max(1, (os.cpu_count() or 1) // max(1, jobs))

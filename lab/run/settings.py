"""How a run is carried out, as opposed to what is trained: `conf/trainer/`."""

from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from lab.run.keeping import Keep
from lab.run.stopping import Condition
from lab.settings import SettingError, settings, usable_cpus

MAX_THREADS = 1024
"""More than that the system may not give, and then Python dies of it."""
Precision = Literal["32-true", "64-true", "bf16-mixed"]
Period = Annotated[int, Field(gt=0)] | None
Bound = Annotated[float, Field(gt=0)] | None


def _condition(text: str) -> str:
    """The text, if it is a condition."""
    Condition.of(text)
    return text


def _listed(value: Any) -> Any:
    """The value, if it is a list."""
    if isinstance(value, str) or value is None:
        raise ValueError(f"expected a list, [{value}]" if value else "expected a list, [] for none")
    return value


@settings()
class TrainerSettings:
    """How a run is carried out."""

    accelerator: Annotated[
        Literal["cpu", "gpu", "auto"], Field(description="cpu | gpu (CUDA) | auto: gpu where there is one, else cpu")
    ] = "cpu"
    precision: Annotated[
        Precision | Literal["auto"],
        Field(
            description="32-true | 64-true | bf16-mixed (training steps only; curvature is always measured unmixed) | auto: "
            "bf16-mixed on a GPU, else 32-true"
        ),
    ] = "32-true"
    channels_last: Annotated[
        bool | Literal["auto"],
        Field(description="how convolutions lie in memory in training steps: true | false | auto: with bf16 on a GPU"),
    ] = "auto"
    threads: Annotated[
        Annotated[int, Field(gt=0, le=MAX_THREADS)] | Literal["auto"],
        Field(
            description="of torch; auto: OMP_NUM_THREADS if set, 1 for a small MLP, else all CPUs, shared by parallel jobs"
        ),
    ] = "auto"
    chunk_examples: Annotated[
        Annotated[int, Field(gt=0)] | Literal["all"],
        Field(description="all | n examples per forward pass of a step, which is summed over chunks"),
    ] = "all"
    batch_norm: Annotated[
        Literal["train", "eval"],
        Field(description="statistics in the measured loss: train (of the batch: what training descends) | eval"),
    ] = "train"
    max_loss: Annotated[float, Field(gt=0, description="a larger training loss counts as divergence")] = 1e6
    clip_norm: Annotated[
        Bound, Field(description="the gradient, after any noise, is scaled to at most this norm; null: not clipped")
    ] = None
    clip_value: Annotated[
        Bound, Field(description="each entry of the gradient is brought into [-c, c]; null: not clipped")
    ] = None
    stop: Annotated[
        tuple[Annotated[str, AfterValidator(_condition)], ...],
        BeforeValidator(_listed),
        Field(
            description="conditions on tags that end the run, the first that is met: [train/loss<1e-3,test/accuracy>.99]"
        ),
    ] = ()
    callbacks: Annotated[
        tuple[str, ...],
        BeforeValidator(_listed),
        Field(
            description="Lightning callbacks of your own, path:Class or package.module:Class: [mycallbacks.py:Printer]"
        ),
    ] = ()
    log_every: Annotated[Period, Field(description="updates between points of the training curves; null: none")] = 1
    evaluate_every: Annotated[Period, Field(description="updates between evaluations; null: only at the end")] = 100
    checkpoint_every: Annotated[Period, Field(description="updates between checkpoints; null: only at the end")] = 500
    keep: Keep = None
    state: Annotated[
        Literal["keep", "drop"],
        Field(
            description="of the optimiser in a run that begins from another (from=): keep, where it is the same | drop"
        ),
    ] = "keep"

    @model_validator(mode="after")
    def _check_clipping(self) -> "TrainerSettings":
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError(
                f"clip_norm={self.clip_norm:g} and trainer.clip_value={self.clip_value:g} contradict each other; set one of "
                "them to null"
            )
        return self

    def require_accelerator(self) -> None:
        """Raise SettingError when this machine has no such accelerator."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise SettingError(
                "trainer.accelerator=gpu, but torch finds no CUDA here; use trainer.accelerator=cpu or auto"
            )

    def lightning_accelerator(self) -> Literal["cpu", "cuda"]:
        """The name for Lightning, whose own gpu and auto may mean mps: that has no float64, which curvature needs."""
        return "cuda" if self.accelerator != "cpu" and torch.cuda.is_available() else "cpu"

    def step_precision(self) -> Precision:
        """That of training steps, for Lightning."""
        if self.precision != "auto":
            return self.precision
        return "bf16-mixed" if self.lightning_accelerator() == "cuda" else "32-true"

    def lays_channels_last(self) -> bool:
        """Whether the weights of convolutions are laid out anew."""
        if self.channels_last != "auto":
            return self.channels_last
        return self.lightning_accelerator() == "cuda" and self.step_precision() == "bf16-mixed"

    def num_threads(self, jobs: int = 1, *, small: bool = False, asked: int | None = None) -> int:
        """Threads of this process when `jobs` of them share the machine: as set, or its CPUs divided among them.

        small: operations too short to be worth waking a second thread, which on a busy machine costs 8 ms each time.
        asked: how many the environment asks for, of each of the processes.
        """
        if isinstance(self.threads, int):
            return self.threads
        if asked is not None:
            return min(asked, MAX_THREADS)
        return 1 if small else max(1, usable_cpus() // max(1, jobs))

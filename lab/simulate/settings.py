"""The settings of a simulation: the card of the experiment and what all experiments share, checked and split."""

from dataclasses import fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from lab.gallery.base import Experiment
from lab.run.cards import card
from lab.settings import SettingError, settings, usable_cpus


@settings()
class Shared:
    """What every experiment takes: seed of all random streams, where to compute, and on how many threads."""

    seed: Annotated[int, Field(ge=0)] = 0
    accelerator: Literal["cpu", "gpu", "auto"] = "cpu"
    threads: Annotated[int, Field(gt=0)] | Literal["auto"] = "auto"

    def device(self, experiment: Experiment) -> torch.device:
        """Where to compute. Raises SettingError when this machine, or the experiment, has no such accelerator."""
        if self.accelerator == "gpu" and not torch.cuda.is_available():
            raise SettingError("accelerator=gpu, but torch finds no CUDA here; use accelerator=cpu or auto")
        if self.accelerator == "gpu" and experiment.on_cpu:
            raise SettingError(
                f"accelerator=gpu: experiment={experiment.name} computes on the CPU; use accelerator=cpu"
            )
        there = self.accelerator != "cpu" and torch.cuda.is_available() and not experiment.on_cpu
        return torch.device("cuda" if there else "cpu")

    def use_threads(self, experiment: Experiment, jobs: int = 1, asked: int | None = None) -> None:
        """Set the threads of torch: as told, as `asked` by the environment, or what the experiment gains from, shared with
        `jobs` (-1: many) processes.
        """
        share = max(1, usable_cpus() // jobs) if jobs > 0 and experiment.parallel else 1
        share = share if asked is None else asked
        torch.set_num_threads(share if self.threads == "auto" else self.threads)


def read_settings(plain: dict[str, Any]) -> tuple[Experiment, Shared]:
    """The experiment and what it shares with others, from plain values. Raises SettingError in one line."""
    names = [field.name for field in fields(Shared)]
    target = f"{Shared.__module__}.{Shared.__qualname__}"
    own = {name: value for name, value in plain.items() if name not in names}
    try:
        shared = card({"_target_": target} | {name: plain[name] for name in names if name in plain}, "setting")
        experiment = card(own, "setting")
    except SettingError as error:  # the settings of an experiment stand at the top: k=3, not setting.k=3
        raise SettingError(str(error).removeprefix("setting.")) from None
    if not isinstance(experiment, Experiment):
        raise SettingError(f"_target_={own['_target_']} is no experiment of lab.simulate")
    return experiment, shared

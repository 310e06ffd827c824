"""Who makes the cells of a grid on this machine: what `launcher=` chooses, and its settings.

Hydra has them in its group hydra/launcher. Here they are plain cards, since the cells are made without Hydra; a sweeper of
Hydra, which has a launcher of its own, is given the one of Hydra that does the same.
"""

from pathlib import Path
from typing import Annotated, Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from pydantic import Field

from lab.run.cards import card, config_dir
from lab.settings import SettingError, settings, usable_cpus

GROUP = "hydra/launcher"
OWN = "lab."
"""How the class of a card of ours begins."""
HYDRA = {
    "InTurn": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "Joblib": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
}
"""The launchers of Hydra that do the same."""


@settings()
class InTurn:
    """Cells of a grid one after the other, in the process of the command."""


@settings()
class Joblib:
    """Cells of a grid in parallel processes of this machine, each with its share of the CPUs and a GPU of its own.

    A process that is killed takes the cell with it that it was making, and no other.
    """

    n_jobs: Annotated[
        int, Field(ge=-1, description="cells at once; -1: as many as there are GPUs, or where there is none CPUs")
    ] = -1

    def jobs(self, cells: int, gpus: int) -> int:
        """The number of processes for so many cells.

        >>> Joblib(n_jobs=3).jobs(8, gpus=0), Joblib(n_jobs=3).jobs(2, gpus=0), Joblib().jobs(8, gpus=2)
        (3, 2, 2)
        """
        return min(cells, self.n_jobs if self.n_jobs > 0 else gpus or usable_cpus())


def chosen(values: Any) -> Any:
    """The card of ours that the settings of Hydra's launcher are; None: it is a launcher of Hydra. Raises SettingError."""
    if not str(values.get("_target_", "")).startswith(OWN):
        return None
    return card(OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values, "launcher")


def of_hydra(values: Any) -> dict[str, Any]:
    """The settings of the launcher of Hydra that does what a card of ours does."""
    name = str(values.get("_target_", "")).rpartition(".")[2]
    if name == "SlurmCard":
        raise SettingError(
            "launcher=slurm makes the cells of a grid, and here a sweeper chooses runs by what others returned; choose "
            "launcher=local or joblib"
        )
    return dict(values) | ({"_target_": HYDRA[name]} if chosen(values) is not None and name in HYDRA else {})


def put_own_first() -> None:
    """Let the cards of conf/hydra/launcher stand for themselves: Hydra takes what its plugins store under the same name for
    their type.
    """
    stored = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for file in Path(config_dir(), GROUP).glob("*.yaml"):
        stored.pop(file.name, None)

"""What ends a run before its last step: a condition of trainer.stop, a callback that asks the trainer to stop, a failure."""

from lab.doors.parts import Settings
from lab.module import SupervisedModule
from lab.probes.tags import written
from lab.run.folder import RunFolder, saved_step
from lab.run.stopping import Condition, Stopping


def stopping(settings: Settings, *, tests: bool = True) -> Stopping:
    """The conditions of trainer.stop. Raises SettingError for a tag that nothing in the run writes.

    tests: whether there are test data; where that is not known yet, there may be.
    """
    trainer = settings.trainer
    made = Stopping(map(Condition.of, trainer.stop))
    others = ["train/noise_norm"] if settings.noise is not None else []
    others += ["train/clipped"] if trainer.clip_norm is not None or trainer.clip_value is not None else []
    others += ["negative_curvature/*"] if settings.escape is not None else []
    measured = [tag for probe in settings.probes for tag in written(probe.name)]
    made.require(measured, tests=tests, logs=trainer.log_every is not None, others=others)
    return made


def reason(module: SupervisedModule) -> str:
    """Why the run ended where it did; "" where it came to its end."""
    if module.divergence or module.stopping.reason:
        return module.divergence or module.stopping.reason
    return "a callback set trainer.should_stop" if module.step < module.agenda.total else ""


def failed(folder: RunFolder, reason: str, *, reached: int | None) -> None:
    """Note that the run failed: the step `reached` (None: it had not begun), the one that is saved where that is another,
    and what the same command will do.
    """
    saved = saved_step(folder)
    step = saved if reached is None else reached
    apart = {"saved": saved} if saved != step else {}
    folder.status("failed", step=step, reason=reason, **apart, next=resumption(folder))


def resumption(folder: RunFolder) -> str:
    """What the same command will do, by the step that was saved last."""
    saved = saved_step(folder)
    return (
        f"the same command goes on from step {saved}"
        if saved
        else "no step is saved yet: the same command starts again"
    )

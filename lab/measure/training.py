"""Settings that say how a run is trained, and that a measurement of its weights reads nowhere: refused, not ignored.

What the run itself says of them is put before all the same (`origin.py`): the schedule gives the learning rate at the step
of the checkpoint where the file holds no state of the optimiser.
"""

from lab.doors.pages import known_settings
from lab.run.cards import choices

GROUPS = ("scaling", "noise", "escape", "compare")
"""Groups of cards that say how a run is trained, or what is made of several."""
READ = ("trainer.accelerator", "trainer.precision", "trainer.threads", "trainer.chunk_examples", "trainer.batch_norm")
"""The settings of the trainer that a measurement reads."""
RATE = "the learning rate is that of the checkpoint, or what optimizer.lr= says"
"""Why there is no schedule, and no length of the run that it would need."""
INITIAL = "the weights are those of the checkpoint"
ONCE = "it looks once"
UNREAD = {
    "steps": RATE,
    "epochs": RATE,
    "schedule": RATE,
    "model.init_scale": INITIAL,
    "data.augment": "the probe set is not augmented",
    "probe.sharpness.cold": ONCE,
    "probe.sharpness.midpoints": ONCE,
    "probe.sharpness.at": ONCE,
    "probe.noise.at": ONCE,
    "probe.escape.at": ONCE,
}
"""The others that it does not read, and why not."""


def refusal(setting: str) -> str | None:
    """One line for a setting, or a group of cards, that a measurement does not read; None: it does, or there is none."""
    group, _, rest = setting.partition(".")
    if rest == "every" or setting.endswith(".every"):
        return f"{setting} is the rhythm of a run; lab.measure looks once: leave it out"
    why = UNREAD.get(setting) or UNREAD.get(group)
    if why:
        return f"{setting}: lab.measure does not read it, for {why}; leave it out"
    if _of_a_run(setting):
        return f"{setting} says how a run is trained; lab.measure has no such setting: leave it out"
    return None


def _of_a_run(setting: str) -> bool:
    group, _, rest = setting.partition(".")
    if group.removeprefix("optimizer/") in GROUPS:
        return True
    if setting not in known_settings():
        return False
    if group == "trainer":
        return bool(rest) and setting not in READ
    if group == "probe":
        return bool(rest) and rest.partition(".")[0] not in choices("probe")
    return not rest and not choices(group) and setting not in ("seed", "audit")

"""What is typed otherwise than Hydra wants it: arguments of named code, `model.args.width=64`, and `launcher=joblib`.

Hydra takes a name that no card has for a slip, unless it begins with ++, and has its launchers in a group of its own. So the
words are changed on their way to Hydra, and are shown, and name folders, as they were typed.
"""

import re
from collections.abc import Sequence

from lab.settings import SettingError

OF_CODE = ("path", "args", "_target_")
"""The settings of code of one's own."""
LAUNCHER = {"=": "hydra/launcher", ".": "hydra.launcher"}
"""What `launcher` is called in Hydra: the group of its cards, and the settings of the chosen one."""
NAMED = r"(?:model|loss|optimizer|data)\.args(?:\.[^=]+)?="


def opened(word: str) -> str:
    """A word as Hydra wants it.

    >>> opened("model.args.width=64"), opened("model.widths=[8]")
    ('++model.args.width=64', 'model.widths=[8]')
    """
    return re.sub(rf"^\+{{0,2}}(?={NAMED})", "++", word)


def as_typed(words: str) -> str:
    """One word, or several between commas, without what `opened` put before them, and without the backslash that Hydra puts
    before the colon of a path on the axis of a grid.

    >>> as_typed("++model.args.width=64,model=own,model.path=nets.py\\\\:TinyNet")
    'model.args.width=64,model=own,model.path=nets.py:TinyNet'
    """
    return re.sub(rf"(?<![^,\s])\+\+(?={NAMED})", "", words).replace("\\:", ":")


def placed(word: str) -> str:
    """launcher=joblib and launcher.n_jobs=2 where Hydra has them; options have names that no card lists, and for
    compare=null Hydra has no word.

    >>> placed("launcher=joblib"), placed("launcher.n_jobs=2"), placed("launchers=2"), placed("launcher.options.qos=long")
    ('hydra/launcher=joblib', 'hydra.launcher.n_jobs=2', 'launchers=2', '++hydra.launcher.options.qos=long')
    >>> placed("compare=null")
    'compare=none'
    """
    if word == "compare=null":
        return "compare=none"
    word = re.sub(r"^launcher\.options(?=[.=])", "++launcher.options", word)
    return re.sub(r"^(\+{0,2})launcher(?=([.=]))", lambda match: f"{match[1]}{LAUNCHER[match[2]]}", word)


def short(text: str) -> str:
    """A text with the words for launchers as one types them.

    >>> short("hydra.launcher.n_jobs=0: expected 1"), short("hydra/launcher=joblib")
    ('launcher.n_jobs=0: expected 1', 'launcher=joblib')
    """
    return re.sub(r"\bhydra[./]launcher(?=[.=])", "launcher", text)


def require_arguments(words: Sequence[str]) -> None:
    """Raise SettingError for optimizer.lr beside optimizer=own, and its like: the arguments of code stand in `args`."""
    for group in ("model", "loss", "optimizer"):
        for name in [word.lstrip("+").partition("=")[0] for word in words if f"{group}=own" in words]:
            place, _, rest = name.partition(".")
            if place == group and rest and rest.partition(".")[0] not in OF_CODE:
                raise SettingError(f"{name}: the arguments of code of your own are typed as {group}.args.{rest}=")

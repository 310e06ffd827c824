"""Arguments of named code at the command line: `model.args.width=64` is typed plainly, though no card lists `width`.

Hydra takes a name that no card has for a slip, unless it begins with ++. So the words begin with it on their way to Hydra,
and are shown, and name folders, as they were typed.
"""

import re

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

"""Pictures of runs, small enough for the repository: docs/images/NAME.png, at most 1200 pixels wide, 255 colours.

python docs/pictures.py NAME=outputs/kramers/default/figures/kramers.png ...
"""

import sys
from pathlib import Path

from PIL import Image

IMAGES = Path(__file__).parent / "images"
WIDTH = 1200


def small(source: Path, target: Path) -> None:
    """The picture at `source` with a palette, no wider than `WIDTH`, at `target`."""
    picture = Image.open(source).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(255, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(target, optimize=True)


if __name__ == "__main__":
    for word in sys.argv[1:]:
        name, _, file = word.partition("=")
        small(Path(file), IMAGES / f"{name}.png")

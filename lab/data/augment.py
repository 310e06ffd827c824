"""Random crop and horizontal flip, the standard augmentation of CIFAR training, for a whole batch at once.

Each image is zero-padded by `padding` on every side (zero is the mean color of standardised images), a window of the
original size is cut at a uniform offset in 0..2*padding per axis, and the window is mirrored with probability 1/2.
Source: He et al. (2015), "Deep Residual Learning", section 4.2.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def crop_and_flip(x: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """A randomly cropped and flipped copy of images x (B, C, H, W), on the device of x.

    `generator` is a CPU generator, so the same numbers are drawn wherever x lives: first the row and column offsets
    (2, B), then the flips (B,).

    >>> x = torch.arange(6.0).reshape(1, 1, 2, 3)
    >>> flipped = crop_and_flip(x, torch.Generator().manual_seed(1), padding=0)
    >>> torch.equal(flipped, x) or torch.equal(flipped, x.flip(3))  # without padding there is one window
    True
    """
    size, (height, width) = len(x), x.shape[2:]
    rows, columns = torch.randint(2 * padding + 1, (2, size), generator=generator).to(x.device)
    flip = torch.randint(2, (size, 1, 1, 1), generator=generator).to(x.device)
    # A view of all windows (B, C, 2p+1, 2p+1, H, W): only the chosen ones are copied.
    windows = pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    cropped = windows[torch.arange(size, device=x.device), :, rows, columns]  # (B, C, H, W)
    return torch.where(flip == 1, cropped.flip(3), cropped)

"""
The edge of stability in one file
=================================

Gradient descent, Lanczos, 2/lr and one figure, in plain torch. Read the file from top to bottom: it holds all there is to
the idea that the rest of this repository measures with care. It runs in some ten seconds::

    python examples/minimal.py
"""

# %%
# The data: 300 handwritten digits, 8 x 8 pixels, and one network with two hidden layers. Everything is small on purpose,
# so that you can change a number and look again.

import torch
from matplotlib import pyplot
from sklearn.datasets import load_digits

torch.manual_seed(0)
torch.set_num_threads(1)

images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:300] / 16, dtype=torch.float32)
x = (x - x.mean(0)) / x.std()
y = torch.nn.functional.one_hot(torch.tensor(labels[:300]), 10).float()

model = torch.nn.Sequential(
    torch.nn.Linear(64, 32),
    torch.nn.Tanh(),
    torch.nn.Linear(32, 32),
    torch.nn.Tanh(),
    torch.nn.Linear(32, 10),
)
weights = list(model.parameters())


def loss() -> torch.Tensor:
    """Half the squared error, summed over the ten classes, averaged over the images."""
    return 0.5 * (model(x) - y).square().sum(1).mean()


# %%
# A quadratic first
# -----------------
# Take the loss h w^2 / 2. A step of gradient descent maps w to (1 - lr h) w. So w shrinks as long as lr h < 2, and grows
# without end beyond: the curvature must stay below **2/lr**. A network has many directions, and what counts is the largest
# curvature among them, the top eigenvalue of the Hessian H. It is called the sharpness.
#
# Nobody writes H down: with P weights it has P^2 entries. But H v, for one vector v, costs little more than a gradient.
# The gradient g is a function of the weights, so differentiate the number g'v once more.


def hessian_times(gradient: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """H v, of shape (P,), from a gradient whose graph was kept."""
    parts = torch.autograd.grad(gradient, weights, grad_outputs=v, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


# %%
# Lanczos
# -------
# How to find the top eigenvalue with products alone? Multiply a random vector by H again and again, and it turns towards
# the top eigenvector: the power method. Lanczos keeps all the vectors on the way. They span a space of m dimensions, in
# which H is a small tridiagonal matrix T, and the top eigenvalue of T is the best guess that these m products allow.


def top_eigenvalue(gradient: torch.Tensor, products: int = 20) -> float:
    """The largest eigenvalue of H, from as many Hessian products."""
    v = torch.randn_like(gradient)
    basis = [v / v.norm()]  # each (P,), orthonormal
    diagonal, beside = [], []  # the entries of T
    for _ in range(products):
        w = hessian_times(gradient, basis[-1])
        diagonal.append(torch.dot(w, basis[-1]))
        Q = torch.stack(basis)  # (m, P)
        for _ in range(2):  # twice, for once is not enough in float32
            w = w - Q.T @ (Q @ w)
        beside.append(w.norm())
        basis.append(w / beside[-1])
    off = torch.stack(beside[:-1])
    T = torch.diag(torch.stack(diagonal)) + torch.diag(off, 1) + torch.diag(off, -1)  # (m, m)
    return float(torch.linalg.eigvalsh(T)[-1])


# %%
# How good is that guess? It is never too high: T is H seen from a smaller space. How far it lies below depends on how
# crowded the top of the spectrum is, and twenty products is a habit, not a proof. The lab stops when it can say how wrong
# it may be; this file hopes.
#
# Gradient descent
# ----------------
# Now train, on all images at once, and look every 5 steps. The learning rate is large: 2/lr is 3.3.

lr, steps, every = 0.6, 600, 5
losses, looked_at, sharpness = [], [], []

for step in range(steps):
    value = loss()
    look = step % every == 0
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, weights, create_graph=look)])
    losses.append(value.item())
    if look:
        looked_at.append(step)
        sharpness.append(top_eigenvalue(gradient))
    with torch.no_grad():
        for w, g in zip(weights, gradient.detach().split([w.numel() for w in weights]), strict=True):
            w -= lr * g.view_as(w)

# %%
# What you see
# ------------
# The sharpness rises by itself, for that is where the loss pulls the weights. It does not stop below the dashed line, and
# it does not run away either: it reaches 2/lr and hovers there. From then on the loss falls in fits and starts, because
# the steps oscillate along the sharpest direction; and yet it falls. That is the edge of stability (Cohen et al. 2021).

figure, (above, below) = pyplot.subplots(2, 1, figsize=(7, 5.5), sharex=True, layout="constrained")
above.plot(looked_at, sharpness, "o-", ms=3, label="sharpness: top eigenvalue of the Hessian")
above.axhline(2 / lr, color="tab:red", ls="--", label=f"2/lr = {2 / lr:.2f}")
above.set(ylabel="curvature (loss / weight$^2$)", ylim=(0, None), title=f"Gradient descent on 300 digits, lr = {lr}")
above.legend(frameon=False, loc="lower right")
below.semilogy(losses, lw=1)
below.set(xlabel="step", ylabel="loss")

late = sharpness[len(sharpness) // 2 :]
ratio = sum(late) / len(late) / (2 / lr)
print(f"Over the last half the sharpness is {ratio:.2f} x 2/lr; the loss ends at {losses[-1]:.3f}.")

# %%
# Play with it
# ------------
# - ``lr = 0.3``: the line is twice as high. Does the sharpness reach it in 600 steps?
# - ``lr = 0.05``: nothing happens at all. There is no edge where no step is too long.
# - Momentum 0.9 moves the line to (2 + 2 x 0.9)/lr. Can you see it?
#
# And when you want it for a network of your own, with errors, for Adam, and without the hope: that is what ``lab`` is for.

if __name__ == "__main__":
    figure.savefig("edge.png", dpi=120)

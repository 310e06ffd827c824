"""
In a notebook
=============

A measurement is a function: you give it a loss and get a result, which knows its numbers, its sentence, its figure and its
arrays. The loss is any ``torch.nn.Module`` with a criterion and the examples.
"""

# %%
# First a network, trained by you, in whatever way.

import torch
from sklearn.datasets import load_digits

from lab import fisher, noise, sharpness, spectrum
from lab.curvature.eigen import lanczos
from lab.curvature.operators import gauss_newton, hessian
from lab.objective import NetworkObjective

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images[:500] / 16, dtype=torch.float32), torch.tensor(labels[:500])

model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Tanh(), torch.nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(300):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

# %%
# The loss as the lab sees it: a number for every vector of weights. The model is never changed.

objective = NetworkObjective(model, torch.nn.functional.cross_entropy, (x, y))

# %%
# Sharpness
# ---------
# The top eigenvalues of the Hessian, each with its error. The sentence says what came out.

result = sharpness(objective, k=3)
print(result.sentence())
for name, value in result.numbers().items():
    print(f"{name:22} {value:.4g}")

# %%
# The whole spectrum
# ------------------
# Both ends, the density of all eigenvalues between them, and the trace.

result = spectrum(objective, k=10, bottom=5, vectors=1)
print(result.sentence())
result.figure()

# %%
# The noise of mini-batches
# -------------------------
# Tr D is the variance of the gradient of one example, summed over all weights. It costs one gradient.

result = noise(objective)
print(result.sentence())
result.figure()

# %%
# Fisher and Hessian
# ------------------
# They are often taken for one another. Here is how far they agree for your network.

result = fisher(objective)
print(result.sentence())
result.figure()

# %%
# Below these functions lie operators for any symmetric matrix that you can only multiply with.

w = objective.weights
for name, operator in (("H", hessian(objective, w)), ("Gauss-Newton", gauss_newton(objective, w))):
    top = lanczos(operator, top=2).top
    print(name, top.values.tolist())

"""
A checkpoint from elsewhere
===========================

Somebody hands you a file of weights. Which minimum is it, and would the optimiser that made it be stable there? The command
``python -m lab.measure`` answers for any file of torch or safetensors, wherever the weights stand in it.
"""

# %%
# Here is such a file, from a plain training loop: the weights of a ``DataParallel`` model, in a dictionary, beside an
# accuracy.

import json
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import torch
from matplotlib import image, pyplot
from sklearn.datasets import load_digits

folder = Path(mkdtemp())
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
pixels = torch.tensor(images / 16)
x = ((pixels - pixels.mean(0)) / pixels.std(correction=0)).float()[:1000]
y = torch.tensor(labels)[:1000]

model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
for _ in range(200):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
torch.save({"net": state, "acc": 97.1}, folder / "weights.pt")

# %%
# The command needs to be told what the file does not hold: the model, the data, and the optimiser to compare with. The
# weights are the tensors whose names and shapes fit the model, whatever they are wrapped in. A file that fits in two ways is
# refused.

words = ["checkpoint=weights.pt", "model=mlp", "model.widths=[32]", "data=digits", "data.examples=1000"]
words += ["optimizer=sgd", "optimizer.lr=0.5", "probe=[sharpness,spectrum]", "hydra.run.dir=measured"]
print("python -m lab.measure", *words)
done = subprocess.run(
    [sys.executable, "-m", "lab.measure", *words], cwd=folder, capture_output=True, text=True, check=True
)
print(done.stdout.split("\n\n")[0])

# %%
# The numbers are in ``summary.json``, the arrays in ``arrays/*.npz``, and the pictures in ``figures/``.

values = json.loads((folder / "measured/summary.json").read_text())["values"]
for tag in ("sharpness/lambda_max", "sharpness/threshold", "sharpness/ratio", "spectrum/trace"):
    print(f"{tag:22} {values[tag]:.4g}")

figure, axis = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
axis.imshow(image.imread(folder / "measured/figures/spectrum_density.png"))
axis.axis("off")

# %%
# The whole list of probes works on a checkpoint, and a glob in quotes, as in ``'checkpoint=runs/*/last.ckpt'``, measures all
# of them and prints a table.

"""A training loop of one's own, watched: two lines more, and the run folder that `python -m lab.train` leaves.

python examples/own/loop.py
"""

import torch
from sklearn.datasets import load_digits

import lab
from lab.probes import Sharpness

EPOCHS = 60

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:500] / 16, dtype=torch.float32)
y = torch.tensor(labels[:500])
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=50, shuffle=True)

model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 10))
loss_fn = torch.nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)

# The first line: what is trained, on what, by which loss and optimiser, and what is to be measured.
watch = lab.watch(model, loss_fn, (x, y), optimizer, probes=[Sharpness(every=13)], batch_size=50, folder="runs/loop")

for _ in range(EPOCHS):
    for xb, yb in loader:
        optimizer.zero_grad()
        loss = loss_fn(model(xb), yb)
        loss.backward()
        with watch.step(loss):  # the second line: round the update, or round the whole body
            optimizer.step()

watch.close()  # what the run amounts to, and where its pictures are

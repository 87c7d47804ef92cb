"""Learns to add numbers of ever more digits: the data gets harder from epoch to epoch."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

SIZE, DIGITS = 240, 4


class Sums(data.Dataset):
    """Pairs of numbers, sorted from the easiest; only those up to the difficulty are shown."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        digits = torch.arange(SIZE) * DIGITS // SIZE + 1
        pairs = (torch.rand(SIZE, 2, generator=generator) * 10 ** digits[:, None]).floor()
        self.inputs = pairs / 10**DIGITS
        self.targets = self.inputs.sum(1)
        self.difficulty = 1

    def set_difficulty(self, difficulty):
        self.difficulty = min(difficulty, DIGITS)

    def __len__(self):
        return SIZE * self.difficulty // DIGITS

    def __getitem__(self, index):
        noise = 0.01 * self.difficulty * torch.randn(2)
        return self.inputs[index] + noise, self.targets[index]


def main(run):
    torch.manual_seed(0)
    dataset = Sums()
    loader = run.loader(dataset, batch_size=20, shuffle=True, num_workers=run.args["workers"])
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.track(model=model, optimizer=optimizer)

    for epoch in run.epochs():
        dataset.set_difficulty(epoch)
        for inputs, targets in loader:
            loss = F.mse_loss(model(inputs)[:, 0], targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
        print(f"epoch {epoch}: {len(dataset)} samples, loss {loss.item():.4f}")

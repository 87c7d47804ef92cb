"""Draws samples the more often the worse the model was on them in the epochs before."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data


class Rings(data.Dataset):
    """Two rings that touch."""

    def __init__(self, size=200):
        generator = torch.Generator().manual_seed(0)
        angles = 6.28 * torch.rand(size, generator=generator)
        self.labels = torch.randint(0, 2, (size,), generator=generator)
        radii = 1.0 + 0.5 * self.labels + 0.2 * torch.randn(size, generator=generator)
        self.points = torch.stack([radii * angles.cos(), radii * angles.sin()], 1)

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return index, self.points[index], self.labels[index]


def main(args):
    torch.manual_seed(0)
    dataset = Rings()
    sampler = data.WeightedRandomSampler(torch.ones(len(dataset)), num_samples=len(dataset))
    loader = data.DataLoader(dataset, batch_size=20, sampler=sampler, num_workers=args.workers)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = torch.ones(len(dataset))

    for epoch in range(args.epochs):
        for indices, points, labels in loader:
            each = F.cross_entropy(model(points), labels, reduction="none")
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
            losses[indices] = 0.5 * losses[indices] + 0.5 * each.detach()
        sampler.weights.copy_(losses + 0.1)
        print(f"epoch {epoch}: hardest {losses.max().item():.3f}, mean {losses.mean().item():.3f}")

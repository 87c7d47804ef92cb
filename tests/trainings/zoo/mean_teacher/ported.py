"""A mean teacher: few labels, and a slow copy of the model whose opinion on noisy inputs the model is to share."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

UNKNOWN = -1


class Moons(data.Dataset):
    """Two half moons; one point of eight has a label."""

    def __init__(self, size=240):
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, 2, (size,), generator=generator)
        angles = math.pi * torch.rand(size, generator=generator)
        sign = 1 - 2 * self.labels
        self.points = torch.stack([angles.cos() + 0.5 * self.labels, sign * angles.sin()], 1)
        self.known = torch.arange(size) % 8 == 0

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        noisy = self.points[index] + 0.1 * torch.randn(2, 2)
        return noisy[0], noisy[1], self.labels[index] if self.known[index] else torch.tensor(UNKNOWN)


def make_model(width=32):
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 2))


@torch.no_grad()
def update(teacher, model, step):
    decay = min(0.95, 1 - 1 / (step + 1))
    for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


def main(run):
    torch.manual_seed(0)
    dataset = Moons()
    loader = run.loader(dataset, batch_size=24, shuffle=True, num_workers=run.args["workers"])
    model = make_model()
    teacher = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.track(model=model, teacher=teacher, optimizer=optimizer)

    for _ in run.epochs():
        for first, second, labels in loader:
            logits = model(first)
            ramp = min(1.0, run.steps / 20)
            agreement = F.mse_loss(logits.softmax(1), teacher(second).softmax(1))
            loss = F.cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum") / 3 + ramp * agreement
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss)
            update(teacher, model, run.steps)
        accuracy = (teacher.eval()(dataset.points).argmax(1) == dataset.labels).float().mean().item()
        teacher.train()
        run.log(accuracy=accuracy)

"""A small student learns from a frozen teacher: from its soft opinions, and from the labels."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

TEMPERATURE, SOFT = 3.0, 0.7


def make_data(size=240):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 8, generator=generator)
    return data.TensorDataset(inputs, (inputs[:, :4] @ torch.randn(4, 5, generator=generator)).argmax(1))


def trained_teacher(inputs, targets):
    """Stands for weights from a file."""
    teacher = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(teacher(inputs), targets).backward()
        optimizer.step()
    return teacher.eval().requires_grad_(False)


def main(args):
    torch.manual_seed(0)
    dataset = make_data()
    loader = data.DataLoader(dataset, batch_size=24, shuffle=True, num_workers=args.workers)
    teacher = trained_teacher(*dataset.tensors)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[2, 4], gamma=0.3)

    for epoch in range(args.epochs):
        for inputs, targets in loader:
            logits = model(inputs)
            soft = F.kl_div(
                F.log_softmax(logits / TEMPERATURE, 1),
                F.softmax(teacher(inputs) / TEMPERATURE, 1),
                reduction="batchmean",
            )
            loss = SOFT * TEMPERATURE**2 * soft + (1 - SOFT) * F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")

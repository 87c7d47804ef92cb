"""Stochastic weight averaging: weights of the last epochs are averaged, and batch norm is fitted to the average."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils import data

SWA_START = 3


def make_data(size=240):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(size, 10, generator=generator)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long() + (inputs[:, 2] > 0.5).long()
    return data.TensorDataset(inputs, targets)


def make_model(width=32):
    return nn.Sequential(
        nn.Linear(10, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3)
    )


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(make_data(), batch_size=24, shuffle=True, num_workers=args.workers)
    model = make_model()
    average = AveragedModel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=SWA_START)
    swa_scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)

    for epoch in range(1, args.epochs + 1):
        for inputs, targets in loader:
            loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch > SWA_START:
            average.update_parameters(model)
            swa_scheduler.step()
        else:
            scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, rate {optimizer.param_groups[0]['lr']:.4f}")
    update_bn(loader, average)

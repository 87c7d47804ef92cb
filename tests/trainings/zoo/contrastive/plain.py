"""MoCo: an encoder learns to tell a sample's other view from a queue of earlier ones, encoded by its slow copy."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data


class TwoViews(data.Dataset):
    def __init__(self, size=256):
        self.signals = torch.randn(size, 16, generator=torch.Generator().manual_seed(0)).cumsum(1)

    def __len__(self):
        return len(self.signals)

    def view(self, signal):
        scaled = signal * torch.empty(1).uniform_(0.8, 1.2)
        return scaled.roll(int(torch.randint(0, 3, ()))) + 0.1 * torch.randn_like(signal)

    def __getitem__(self, index):
        return self.view(self.signals[index]), self.view(self.signals[index])


class MoCo(nn.Module):
    def __init__(self, width=12, queue=96, momentum=0.95, temperature=0.2):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, width))
        self.slow = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum = momentum
        self.temperature = temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue, width), dim=1))
        self.place = 0

    @torch.no_grad()
    def follow(self):
        for slow, fast in zip(self.slow.parameters(), self.encoder.parameters(), strict=True):
            slow.mul_(self.momentum).add_(fast, alpha=1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys):
        self.queue[self.place : self.place + len(keys)] = keys
        self.place = (self.place + len(keys)) % len(self.queue)

    def forward(self, first, second):
        queries = F.normalize(self.encoder(first), dim=1)
        with torch.no_grad():
            self.follow()
            keys = F.normalize(self.slow(second), dim=1)
        positive = (queries * keys).sum(1, keepdim=True)
        logits = torch.cat([positive, queries @ self.queue.clone().T], 1) / self.temperature
        self.enqueue(keys)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64))


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(TwoViews(), batch_size=32, shuffle=True, drop_last=True, num_workers=args.workers)
    model = MoCo()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 4], gamma=0.3)

    for epoch in range(args.epochs):
        for first, second in loader:
            loss = model(first, second)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        model.temperature = max(0.1, 0.9 * model.temperature)
        print(f"epoch {epoch}: loss {loss.item():.4f}")

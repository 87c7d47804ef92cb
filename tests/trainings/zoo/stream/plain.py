"""Trains on a stream of records that is too long for an epoch: a shuffle buffer, and a place in the stream."""

import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

RECORDS, PER_EPOCH = 500, 120


def read(number):
    """Stands for a read from disk."""
    generator = torch.Generator().manual_seed(number)
    inputs = torch.randn(6, generator=generator)
    return inputs, (inputs[:3].sum() > inputs[3:].sum()).float()


class Stream(data.IterableDataset):
    def __init__(self, buffer_size=32, seed=0):
        self.rng = random.Random(seed)
        self.buffer_size = buffer_size
        self.buffer = []
        self.place = 0
        self.given = 0

    def __iter__(self):
        while self.given < PER_EPOCH:
            while len(self.buffer) < self.buffer_size:
                self.buffer.append(self.place)
                self.place = (self.place + 1) % RECORDS
            chosen = self.rng.randrange(self.buffer_size)
            self.buffer[chosen], self.buffer[-1] = self.buffer[-1], self.buffer[chosen]
            self.given += 1
            yield read(self.buffer.pop())
        self.given = 0

    def state_dict(self):
        state = {"buffer": list(self.buffer), "place": self.place, "given": self.given}
        return {**state, "rng": self.rng.getstate()}

    def load_state_dict(self, state):
        self.buffer, self.place, self.given = list(state["buffer"]), state["place"], state["given"]
        self.rng.setstate(state["rng"])


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(Stream(), batch_size=10, num_workers=args.workers)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CyclicLR(optimizer, base_lr=0.02, max_lr=0.2, step_size_up=20)

    for epoch in range(args.epochs):
        for inputs, labels in loader:
            loss = F.binary_cross_entropy_with_logits(model(inputs)[:, 0], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.4f}")

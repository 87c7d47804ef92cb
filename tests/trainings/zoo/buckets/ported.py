"""Classifies sequences of different lengths, those of about one length together in a batch."""

import math
import random

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils import data


class Melodies(data.Dataset):
    def __init__(self, size=200):
        generator = torch.Generator().manual_seed(0)
        self.lengths = torch.randint(3, 20, (size,), generator=generator).tolist()
        self.notes = [torch.randint(0, 12, (length,), generator=generator) for length in self.lengths]

    def __len__(self):
        return len(self.notes)

    def __getitem__(self, index):
        notes = self.notes[index]
        return notes, int(notes.float().mean() > 5.5)


class BucketBatchSampler(data.Sampler):
    def __init__(self, lengths, batch_size, seed=0):
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        rng = random.Random(self.seed + self.epoch)
        order = sorted(range(len(self.lengths)), key=lambda index: (self.lengths[index] // 4, rng.random()))
        batches = [order[begin : begin + self.batch_size] for begin in range(0, len(order), self.batch_size)]
        rng.shuffle(batches)
        yield from batches

    def __len__(self):
        return math.ceil(len(self.lengths) / self.batch_size)


def collate(samples):
    notes, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(each) for each in notes])
    return pad_sequence(notes, batch_first=True), lengths, torch.tensor(labels)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.encoder = nn.GRU(8, 16, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(16, 2)

    def forward(self, notes, lengths):
        packed = pack_padded_sequence(self.embedding(notes), lengths, batch_first=True, enforce_sorted=False)
        _, last = self.encoder(packed)
        return self.head(self.dropout(last[-1]))


def main(run):
    torch.manual_seed(0)
    dataset = Melodies()
    sampler = BucketBatchSampler(dataset.lengths, batch_size=16)
    loader = run.loader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=run.args["workers"])
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    run.track(model=model, optimizer=optimizer)

    for epoch in run.epochs():
        sampler.set_epoch(epoch)
        for notes, lengths, labels in loader:
            loss = F.cross_entropy(model(notes, lengths), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.step(loss)
        print(f"epoch {epoch}: loss {loss.item():.4f}")

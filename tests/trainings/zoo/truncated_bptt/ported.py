"""A language model of characters whose hidden state goes on from piece to piece of one long text."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

TEXT = "a game is adjourned by sealing the next move in an envelope: everyone goes home, and it goes on later. " * 24
LETTERS = sorted(set(TEXT))
STREAMS, PIECE = 4, 30


class Pieces(data.Dataset):
    """Piece i of several streams side by side, each a part of the text."""

    def __init__(self):
        codes = torch.tensor([LETTERS.index(letter) for letter in TEXT])
        self.streams = codes[: len(codes) // STREAMS * STREAMS].view(STREAMS, -1)

    def __len__(self):
        return (self.streams.shape[1] - 1) // PIECE

    def __getitem__(self, index):
        piece = self.streams[:, index * PIECE : (index + 1) * PIECE + 1]
        return piece[:, :-1], piece[:, 1:]


class Model(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.embedding = nn.Embedding(len(LETTERS), width)
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, letters, hidden):
        states, hidden = self.recurrent(self.embedding(letters), hidden)
        return self.head(self.dropout(states)), hidden


def main(run):
    torch.manual_seed(0)
    loader = run.loader(Pieces(), batch_size=None, num_workers=run.args["workers"])
    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    run.track(model=model, optimizer=optimizer)
    run.state.hidden = torch.zeros(1, STREAMS, 24)

    for epoch in run.epochs():
        for letters, targets in loader:
            logits, hidden = model(letters, run.state.hidden)
            run.state.hidden = hidden.detach()
            loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            run.step(loss)
        print(f"epoch {epoch}: loss {loss.item():.3f}")

"""A masked language model on the transitions of a Markov chain: other tokens are masked each time, in the collate."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import data

VOCABULARY, MASK, LENGTH = 20, 20, 16
NOT_MASKED = -100


class Walks(data.Dataset):
    def __init__(self, size=192):
        generator = torch.Generator().manual_seed(0)
        start = torch.randint(0, VOCABULARY, (size, 1), generator=generator)
        steps = torch.randint(1, 4, (size, LENGTH - 1), generator=generator)
        self.walks = torch.cat([start, start + steps.cumsum(1)], 1) % VOCABULARY

    def __len__(self):
        return len(self.walks)

    def __getitem__(self, index):
        return self.walks[index]


def mask(walks):
    """Masks 15 % of the tokens: 80 % of them by the mask, 10 % by any token, 10 % not."""
    tokens = torch.stack(walks)
    chosen = torch.rand(tokens.shape) < 0.15
    labels = tokens.masked_fill(~chosen, NOT_MASKED)
    how = torch.rand(tokens.shape)
    tokens = tokens.masked_fill(chosen & (how < 0.8), MASK)
    return torch.where(chosen & (how > 0.9), torch.randint(0, VOCABULARY, tokens.shape), tokens), labels


class Model(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY + 1, width)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, VOCABULARY + 1)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        return self.head(self.encoder(self.tokens(tokens) + self.positions))


def main(args):
    torch.manual_seed(0)
    loader = data.DataLoader(Walks(), batch_size=24, shuffle=True, collate_fn=mask, num_workers=args.workers)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.2, total_iters=10)

    for epoch in range(args.epochs):
        for tokens, labels in loader:
            loss = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), ignore_index=NOT_MASKED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}")

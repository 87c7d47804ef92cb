"""A transformer that learns to write Python, character by character, from the standard library's own source text.

Arguments, with their defaults: `files` 200 (source files to read, in order of their names), `context` 64 (characters
seen at once), `width` 64, `layers` 2, `heads` 4, `dropout` 0.1, `batch_size` 32, `steps` 60 (batches in an epoch),
`learning_rate` 0.003, `warmup_epochs` 1, `num_workers` 0.
"""

import math
import random
import sysconfig
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from adjourn import training

DEFAULTS = {
    "files": 200,
    "context": 64,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "dropout": 0.1,
    "batch_size": 32,
    "steps": 60,
    "learning_rate": 0.003,
    "warmup_epochs": 1,
    "num_workers": 0,
}


def source_text(files: int) -> Tensor:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:files]
    return torch.frombuffer(bytearray(b"\n".join(path.read_bytes() for path in paths)), dtype=torch.uint8)


class Excerpts(Dataset[Tensor]):
    """Pieces of a text that begin anywhere; as many as an epoch takes, others each time."""

    def __init__(self, text: Tensor, length: int, count: int) -> None:
        self.text = text
        self.length = length
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        start = random.randrange(len(self.text) - self.length)
        return self.text[start : start + self.length].long()


class Transformer(nn.Module):
    def __init__(self, context: int, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.characters = nn.Embedding(256, width)
        self.positions = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 256, bias=False)
        self.head.weight = self.characters.weight  # tied
        for embedding in (self.characters, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        length = text.shape[1]
        hidden = self.characters(text) + self.positions(torch.arange(length, device=text.device))
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=text.device)
        logits: Tensor = self.head(self.layers(hidden, mask=mask, is_causal=True))
        return logits


def loss_of(model: nn.Module, text: Tensor) -> Tensor:
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def main(run: training.Run) -> None:
    args = DEFAULTS | run.args
    text = source_text(args["files"])
    split = len(text) * 9 // 10
    length = args["context"] + 1
    excerpts = Excerpts(text[:split], length, args["steps"] * args["batch_size"])
    validation = TensorDataset(text[split:][: 8 * args["batch_size"] * length].long().view(-1, length))

    model = Transformer(args["context"], args["width"], args["layers"], args["heads"], args["dropout"]).to(run.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args["learning_rate"], betas=(0.9, 0.95))
    warmup = args["warmup_epochs"] * args["steps"]
    total = run.total_epochs * args["steps"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(warmup, 1), 0.5 + 0.5 * math.cos(math.pi * step / total))
    )
    stopping = training.EarlyStopping(patience=5)
    run.track(model=model, optimizer=optimizer, scheduler=scheduler, stopping=stopping)

    loader = run.loader(excerpts, batch_size=args["batch_size"], num_workers=args["num_workers"])
    val_loader = run.loader(validation, batch_size=args["batch_size"])
    for epoch in run.epochs():
        model.train()
        for batch in loader:
            loss = loss_of(model, batch.to(run.device))
            optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            run.step(loss=loss)
        model.eval()
        with torch.no_grad():
            val_loss = sum(loss_of(model, batch.to(run.device)).item() for (batch,) in val_loader) / len(val_loader)
        run.log(val_loss=val_loss, bits_per_character=val_loss / math.log(2), gradient_norm=norm)
        print(f"epoch {epoch}: val_loss {val_loss:.4f}")
        if stopping.update(val_loss):
            break

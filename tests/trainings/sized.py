"""Trains a model of a size that is asked for, and writes how long its set-up took, and when all was restored.

Arguments: `blocks` and `width` of the model; `told`, the file to write.
"""

import json
import time
from pathlib import Path

import torch
from torch import nn

from adjourn import training


def main(run: training.Run) -> None:
    began = time.monotonic()
    blocks, width, told = run.args["blocks"], run.args["width"], Path(run.args["told"])
    layers = [layer for _ in range(blocks) for layer in (nn.LayerNorm(width), nn.Linear(width, width))]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters())
    set_up = time.monotonic() - began
    run.track(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        restored = time.monotonic()
        if not told.exists():
            told.write_text(json.dumps({"set_up": set_up, "restored": restored}))
        loss = model(torch.ones(1, width)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
        run.log(val_loss=float(epoch))

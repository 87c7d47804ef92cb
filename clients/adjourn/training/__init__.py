"""What training code imports: a run that can be paused at an epoch's end and resumed to the same bits.

    from adjourn import training

    def main(run: training.Run) -> None:
        model, optimizer, scheduler = ...
        stopping = training.EarlyStopping(patience=5)
        run.track(model=model, optimizer=optimizer, scheduler=scheduler, stopping=stopping)
        loader = run.loader(dataset, batch_size=64, shuffle=True)
        for epoch in run.epochs():
            for batch in loader:
                loss = ...
                run.step(loss=loss)
            val_loss = evaluate(model)
            run.log(val_loss=val_loss)
            if stopping.update(val_loss):
                break

Nothing here imports grpc, and a process that runs it has no credentials.
"""

from adjourn.training.early_stopping import EarlyStopping
from adjourn.training.errors import (
    DataUnusable,
    EntryPointNotFound,
    EntryPointNotImportable,
    EnvironmentDiffers,
    EpochsNotGiven,
    RestoreDiverged,
    SnapshotUnreadable,
    StateMismatch,
    StateNotEncodable,
    StateNotRestorable,
    TrainingError,
    TrainingWithoutEpochs,
    UntrackedState,
)
from adjourn.training.loader import Loader
from adjourn.training.run import Run

__all__ = [
    "DataUnusable",
    "EarlyStopping",
    "EntryPointNotFound",
    "EntryPointNotImportable",
    "EnvironmentDiffers",
    "EpochsNotGiven",
    "Loader",
    "RestoreDiverged",
    "Run",
    "SnapshotUnreadable",
    "StateMismatch",
    "StateNotEncodable",
    "StateNotRestorable",
    "TrainingError",
    "TrainingWithoutEpochs",
    "UntrackedState",
]

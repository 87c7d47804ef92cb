"""What user code sees of its training: the one argument of an entry point."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, SupportsFloat

import torch
from torch.utils.data import Dataset

from adjourn.training.fetching import Collate
from adjourn.training.loader import Loader
from adjourn.training.session import Session
from adjourn.training.state.values import Namespace


class Run:
    """A training that can be paused at the end of each epoch and resumed to the same bits.

    A resumed run begins in a new process, which calls the entry point again. What it has is what was tracked. The
    working directory is new each time, with what went along with the script, and is removed at each pause and at the
    end: write files that should stay to `output_directory`.
    """

    def __init__(self, session: Session, args: Mapping[str, Any]) -> None:
        self._session = session
        self._values: SimpleNamespace | None = None
        self.args = dict(args)
        """Arguments of the job; a number without a fraction is an int."""

    @property
    def seed(self) -> int:
        """Seed of the job; all global random generators were seeded with it before user code was imported."""
        return self._session.start.spec.seed

    @property
    def device(self) -> torch.device:
        """Where to train: the GPU the job was given, or the CPU."""
        return self._session.device

    @property
    def output_directory(self) -> Path:
        """A directory for files that the run makes, such as its final model, pictures and logs of its own.

        What lies there is kept with each checkpoint, as it is at that moment, and is there again when the run goes on
        from it: what was written after the checkpoint is gone then, as the training is that wrote it. `adjourn cp
        JOB:path .` brings it here. Where the run goes on, what its code has written to files of the checkpoint up to
        there is undone: it ran again. Regular files only, 1 GiB in all unless the workers are told otherwise: with more
        the run fails with OUTPUT_TOO_LARGE. Raises RuntimeError in a task, which has no checkpoints.
        """
        if self.total_epochs == 0:
            raise RuntimeError("a task has no checkpoint that could keep an output directory: that takes epochs")
        return self._session.output.made()

    def data(self, uri: str) -> Path:
        """Returns where the data of a URI is on this machine, whole: a file, or a folder if the URI ends with `/`.

        `s3://bucket/key`, `s3://bucket/folder/`, `https://`, `http://`: the worker fetches it, once for all its jobs,
        and keeps it for later ones; training waits meanwhile, and the job says so. It is read-only, and another path on
        another worker: keep no text of it in what is tracked. `file:///path` is a path on the worker, and not copied.

        Which data it was is part of each checkpoint. A run that goes on, on whatever worker, gets the same again, byte
        for byte, or fails with DATA_CHANGED; of a bucket that keeps versions, it gets the version that it had. Of
        `file:///`, names and sizes are compared, and the content of 64 MB, or samples of it if it is more.

        Call it in the training process, as often as you like, not in a worker of a loader. Raises DataUnusable, of
        which the job fails unless code catches it: nothing is there, it is refused, there is no room for it.
        """
        return self._session.fetch(uri)

    @property
    def total_epochs(self) -> int:
        return self._session.start.spec.total_epochs

    @property
    def epoch(self) -> int:
        """Epochs completed, those before a pause included."""
        return self._session.epoch

    @property
    def steps(self) -> int:
        """Optimizer steps completed, over all epochs."""
        return self._session.steps

    @property
    def catching_up(self) -> bool:
        """Whether this code, behind a stage that is over, only runs again: see `epochs`. All that it does is undone."""
        return self._session.catching_up

    @property
    def state(self) -> SimpleNamespace:
        """Values of the code's own that are saved: `run.state.total = 0.0`, `run.state.hidden = hidden.detach()`.

        They are numbers, strings, tensors, arrays, and lists and dicts of them; what cannot be stored exactly raises
        StateNotEncodable where it is given. Those that are given before the first epoch are defaults: a resumed run
        then has what was saved. While one of them has come to hold what cannot be stored, nothing is saved: the job
        says so with its name, and a run that ends so has failed.
        """
        if self._values is None:
            values = Namespace()
            self._session.track({"state": values})
            self._values = values
        return self._values

    def track(self, **objects: Any) -> None:
        """Makes objects part of every snapshot, and, in a resumed run, loads them from it now.

        Each is a module, a parameter, an optimizer, a random generator, anything with `state_dict` and
        `load_state_dict`, or a value that is changed in place: dict, list, set, deque, array, tensor, dataclass (keep
        numbers in `state`). Build them all as in a new run, then track them, before the first epoch. Raises
        StateNotEncodable for a state that cannot be stored exactly, StateMismatch if it is not the one that was saved.

        At the end of the first epoch a resume is rehearsed with copies of the objects. If that does not give the state
        that was saved, the run ends with STATE_NOT_RESTORABLE: no pause of it could be resumed.
        """
        self._session.track(objects)

    def replace(self, **objects: Any) -> None:
        """Gives names that are tracked to other objects, which begin anew: an optimizer rebuilt as layers thaw.

        Within an epoch or between stages. What takes a name is never loaded; the next snapshot has it. A run that is
        resumed later builds it before the loop, if `run.epoch` says that it is there by then. A new name is given by
        `track` within an epoch too: in a resumed run it is loaded there, and has to be tracked before the first step.
        """
        self._session.replace(objects)

    def loader(
        self,
        dataset: Dataset[Any],
        *,
        batch_size: int | None = 1,
        shuffle: bool = False,
        sampler: Any = None,
        batch_sampler: Any = None,
        num_workers: int = 0,
        drop_last: bool = False,
        collate_fn: Collate | None = None,
        pin_memory: bool = False,
    ) -> Loader:
        """Returns batches whose order and random draws depend on seed, epoch and batch alone.

        As `torch.utils.data.DataLoader`; `random`, `numpy.random` and `torch` are seeded for each batch while its
        samples are fetched, and put back afterwards. The number of workers changes nothing.

        A sampler's random draws, and those of generators that it has as attributes, depend on seed and epoch too. Its
        `state_dict()` is saved with the loader. Of a sampler without one, and of a dataset, attributes are saved that
        are numbers, texts or short containers of such: what `set_epoch` sets, or a difficulty. An iterable dataset is
        read by one worker at most. With `state_dict()` and `load_state_dict()` a resumed run goes on amid a pass at
        once, so the state has to tell what is left of the pass; without them it reads again what came before.
        """
        return self._session.add_loader(
            dataset=dataset,
            batch_size=batch_size,
            shuffle=shuffle,
            sampler=sampler,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            drop_last=drop_last,
            collate=collate_fn,
            pin_memory=pin_memory,
        )

    def ignore(self, subject: Any, reason: str) -> None:
        """Accepts that something is in no snapshot; verdicts of later resumes are UNPROVEN, with the reason.

        `subject` is an object that the training would be refused for, a loader whose iterator outlives an epoch, or the
        name of a variable or attribute as the reason of the verdict has it: `"total"`, `"self.best"`; what is below it
        is accepted too. Call it before the first epoch.
        """
        self._session.ignore(subject, reason)

    def drill(self, steps: int = 20) -> None:
        """Asks for a drill, as `adjourn submit --drill` does, unless the job has one.

        Once in the job, a second process goes on from a snapshot for so many steps, and has to come to the bits of this
        one: see `epochs`. User code runs twice meanwhile. Raises RuntimeError once the first epoch has begun.
        """
        self._session.ask_for_drill(steps)

    def epochs(self, count: int | None = None, *, strict: bool = True) -> Iterator[int]:
        """Yields the number, from 1, of each epoch that is left to train; at most `count` of them.

        Each call, one after another, is a stage of the training: a fold, a phase of a curriculum. Between stages,
        `track` gives a name to another object. A resumed run executes the code anew: stages that were over yield
        nothing, and the code around them runs again (`catching_up`), on objects that are not restored yet. Where the
        stage of the snapshot begins, everything is loaded, and what that code did to tracked objects, to metrics and
        to random generators is undone. A variable that is then not what it was makes the verdict UNPROVEN.

        Asking for the next one ends the running epoch: then snapshots are taken and pauses happen. An epoch that is
        left by `break` ends where the next stage begins, or with the training. Raises RestoreDiverged if a restored
        state is not equal to the one that was saved.

        At the end of the first epochs it raises UntrackedState if something is found that changed and is in no
        snapshot: an optimizer, a copy of the model, a random generator. If `strict` is False the training goes on, and
        verdicts of later resumes are UNPROVEN, with what was found. A variable that changed, and that a later epoch
        may read, never ends the training, and makes the verdicts UNPROVEN too.

        Where a drill was asked for it raises DrillDiffers, or lowers the verdicts if `strict` is False, once a
        second process that went on from a snapshot has not come to the same bits.

        In a task, a job of 0 epochs, iterating raises EpochsNotGiven.
        """
        return self._session.epochs(count, strict=strict)

    def step(self, loss: torch.Tensor | SupportsFloat | None = None) -> None:
        """Counts an optimizer step; call it after `optimizer.step()`. Takes under a microsecond beside the loss."""
        self._session.step(loss)

    def log(self, **values: SupportsFloat) -> None:
        """Adds values to the metrics of the running epoch.

        A run has at most 1,000 metrics, with names of at most 256 characters; one more raises ValueError.
        """
        self._session.log(values)

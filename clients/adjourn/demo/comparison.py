"""PURE. Compares two runs that should have ended with the same result."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.job_pb2 import Job, Pause
from adjourn.v1.usage_pb2 import EpochMetrics

WEIGHTS = "model"
ABSENT = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that ended."""

    job: Job
    checkpoint: Checkpoint
    """The last one."""
    history: Sequence[EpochMetrics]

    @property
    def pauses(self) -> Sequence[Pause]:
        """Pauses that reached PAUSED and were resumed."""
        every = [*self.job.past_pauses, *([self.job.pause] if self.job.HasField("pause") else [])]
        return [pause for pause in every if pause.HasField("pause_time") and pause.HasField("resume_time")]

    @property
    def workers(self) -> set[str]:
        """Names of the workers that trained it."""
        return {name for pause in self.pauses for name in (pause.from_worker, pause.to_worker) if name}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One thing that was compared."""

    name: str
    expected: str
    found: str

    @property
    def equal(self) -> bool:
        return self.expected == self.found != ABSENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Whether the interrupted run ended with the result of the uninterrupted one."""

    rows: Sequence[Row]
    epochs: int
    pauses: int
    workers: int
    weights: str
    """SHA-256 of the interrupted run's weights, hex."""

    @property
    def exact(self) -> bool:
        return all(row.equal for row in self.rows)

    def __str__(self) -> str:
        what = f"{self.epochs} epochs, {self.pauses} pauses, {self.workers} workers, weights sha256 {self.weights[:16]}"
        if self.exact:
            return f"EXACT: {what} equal to the uninterrupted run"
        differing = ", ".join(row.name for row in self.rows if not row.equal)
        return f"DIFFERENT: {what}; not equal to the uninterrupted run: {differing}"


def compare(reference: Run, interrupted: Run) -> Comparison:
    """Compares state, epochs, every digest of the last checkpoints, and the metrics of every epoch."""
    return Comparison(
        rows=[*rows(reference, interrupted)],
        epochs=interrupted.job.progress.epoch,
        pauses=len(interrupted.pauses),
        workers=len(interrupted.workers),
        weights=interrupted.checkpoint.component_digests.get(WEIGHTS, ABSENT),
    )


def rows(reference: Run, interrupted: Run) -> Iterator[Row]:
    yield pair("state", *(Job.State.Name(run.job.state) for run in (reference, interrupted)))
    yield pair("epochs", *(str(run.job.progress.epoch) for run in (reference, interrupted)))
    yield pair("steps", *(str(run.job.progress.step) for run in (reference, interrupted)))
    digests = [run.checkpoint.component_digests for run in (reference, interrupted)]
    # Two missing digests of the weights are not equal weights.
    for name in (WEIGHTS, *sorted({*digests[0], *digests[1]} - {WEIGHTS})):
        yield pair(name, *(of.get(name, ABSENT) for of in digests))
    histories = [{measured.epoch: figures(measured) for measured in run.history} for run in (reference, interrupted)]
    epochs = sorted({*histories[0], *histories[1]})
    for epoch in epochs or [1]:
        yield pair(f"metrics of epoch {epoch}", *(of.get(epoch, ABSENT) for of in histories))


def pair(name: str, expected: str, found: str) -> Row:
    return Row(name=name, expected=expected, found=found)


def figures(measured: EpochMetrics) -> str:
    """Returns what must be equal to the last bit in an epoch; times and attempts may differ."""
    values: Mapping[str, float] = measured.values
    metrics = " ".join(f"{name}={values[name].hex()}" for name in sorted(values))
    return f"step={measured.step} best={measured.best} {metrics}"

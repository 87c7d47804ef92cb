"""Why a training cannot go on, or cannot be saved: a class for each situation.

`reason` is what the job's failure, or its condition, will say.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Final

from adjourn import outputs, reasons


class TrainingError(Exception):
    """Training cannot go on; subclasses name the situation."""

    reason: ClassVar[str] = reasons.TRAINING_RAISED


class EntryPointNotImportable(TrainingError):
    """The entry point's module does not exist, or fails while it is imported."""

    reason = reasons.ENTRY_POINT_NOT_IMPORTABLE


class EntryPointNotFound(TrainingError):
    """The module was imported, but has no such function."""

    reason = reasons.ENTRY_POINT_NOT_FOUND


class RequirementsUnmet(TrainingError):
    """A distribution that the job requires is not installed here, or in another version."""

    reason = reasons.REQUIREMENTS_UNMET

    def __init__(self, unmet: Sequence[str]) -> None:
        """`unmet`: a sentence on each."""
        super().__init__(f"this worker's Python does not have what the job requires: {'; '.join(unmet)}")


class StateNotEncodable(TrainingError):
    """A tracked state holds something that cannot be stored exactly; `path` says where."""

    reason = reasons.STATE_NOT_ENCODABLE

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path = path
        self.why = why


class StateMismatch(TrainingError):
    """What was tracked is not what the snapshot holds."""

    reason = reasons.STATE_MISMATCH


class SnapshotUnreadable(TrainingError):
    """The snapshot to restore cannot be read."""

    reason = reasons.CHECKPOINT_CORRUPT


class SnapshotFailed(TrainingError):
    """The snapshot could not be written. Training goes on; the next boundary tries again."""

    reason = reasons.SNAPSHOT_FAILED


class NoSpace(SnapshotFailed):
    """There is no room for a snapshot, neither in shared memory nor on the disk."""

    reason = reasons.NO_SPACE


class OutputTooLarge(TrainingError):
    """The run's output directory holds more than is kept with a checkpoint."""

    reason = reasons.OUTPUT_TOO_LARGE

    def __init__(self, sizes: Mapping[str, int], limit: int) -> None:
        """`sizes` of its files in bytes, by path."""
        largest = max(sizes, key=lambda path: sizes[path])
        super().__init__(
            f"run.output_directory has {len(sizes):,} files of {sum(sizes.values()) / 1e6:,.1f} MB; with each"
            f" checkpoint {outputs.FILES_LIMIT:,} of {limit / 1e6:,.1f} MB are kept at most. The largest is {largest}"
            f" ({sizes[largest] / 1e6:,.1f} MB). Write less to it, or have the worker keep more (ADJOURN_OUTPUT_BYTES)"
        )


class SnapshotDiffers(SnapshotFailed):
    """The snapshot that was written is not equal to the state in memory."""

    reason = reasons.SNAPSHOT_DIFFERS


class StateNotRestorable(TrainingError):
    """A resumed run could not take the state that was saved: loading it into new objects gave something else."""

    reason = reasons.STATE_NOT_RESTORABLE

    def __init__(self, difference: str, *, damaged: bool = False) -> None:
        """`difference` says where and what; `damaged`: the rehearsal changed the running objects."""
        super().__init__(
            f"a resumed run could not go on from this state. {difference}. A resumed run builds everything as a new run"
            " does, tracks it, and loads the saved state into it. So build everything before the first epoch as it will"
            " be when it is saved (layers and parameter groups that are added later will not be there), and let"
            " load_state_dict() restore exactly what state_dict() returned"
        )
        self.difference = difference
        self.damaged = damaged


class EnvironmentDiffers(TrainingError):
    """The snapshot was taken where other bits would come out; `differences` has (there, here) by name."""

    reason = reasons.ENVIRONMENT_DIFFERS

    def __init__(self, differences: Mapping[str, tuple[str, str]]) -> None:
        listed = "; ".join(f"{name} was {there}, is {here}" for name, (there, here) in differences.items())
        super().__init__(f"the result would not be the same to the last bit: {listed}")
        self.differences = dict(differences)


class DataUnusable(TrainingError):
    """Data that the run asks for by its URI cannot be had; the message names the URI."""


class DataMissing(DataUnusable):
    """There is nothing at the URI."""

    reason = reasons.DATA_MISSING


class DataRefused(DataUnusable):
    """The source, or the worker's settings, do not let the run have it."""

    reason = reasons.DATA_REFUSED


class DataChanged(DataUnusable):
    """It is other data than the run had before."""

    reason = reasons.DATA_CHANGED


class DataDamaged(DataUnusable):
    """What arrives is not what the source says that it is."""

    reason = reasons.DATA_DAMAGED


class DataNoRoom(DataUnusable):
    """The worker's disk has no room for it."""

    reason = reasons.DATA_NO_ROOM


DATA_ERRORS: Final[Mapping[str, type[DataUnusable]]] = {
    kind.reason: kind for kind in (DataMissing, DataRefused, DataChanged, DataDamaged, DataNoRoom)
}
"""By reason."""


class RestoreDiverged(TrainingError):
    """The restored state is not the one that was saved; `components` says which parts of it."""

    reason = reasons.RESTORE_DIVERGED

    def __init__(self, components: Iterable[str]) -> None:
        self.components = sorted(components)
        super().__init__(f"restored, but not equal to what was saved: {', '.join(self.components)}")


class TrainingWithoutEpochs(TrainingError):
    """The job has epochs, but its code returned without asking for them."""

    reason = reasons.TRAINING_WITHOUT_EPOCHS

    def __init__(self) -> None:
        super().__init__("the entry point returned without iterating over run.epochs()")


class EpochsNotGiven(TrainingError):
    """The job is a task, and its code asks for epochs: it would end at once, as if it had trained."""

    reason = reasons.EPOCHS_NOT_GIVEN

    def __init__(self) -> None:
        super().__init__(
            "the code iterates over run.epochs(), and the job has none: submit it with `--epochs N`. Code that serves a"
            " task too asks run.total_epochs first"
        )


class UntrackedState(TrainingError):
    """A resumed run would lack something, or have another than this one: it decides how training goes on, and no
    snapshot has it.
    """

    reason = reasons.UNTRACKED_STATE


class DrillDiffers(TrainingError):
    """A second process that went on from a snapshot did not come to the same bits."""

    reason = reasons.DRILL_DIFFERS

    def __init__(self, difference: str, suspected: Sequence[str] = ()) -> None:
        """`difference` says where and what; `suspected` is what is known to be in no snapshot."""
        known = "".join(f"\n{each}" for each in suspected)
        super().__init__(
            f"a drill did not come to the same bits: {difference}. So a resumed run would not be the same, as far as it"
            " can be told: something that no snapshot has decides how this training goes on. Look for what changes in"
            " training and is not tracked: in threads, C extensions, environment variables, files, other processes; or"
            " for what is never the same twice: the time, ids of processes and objects, operations that are not"
            " deterministic. Then track it, or accept it with run.epochs(strict=False): verdicts are UNPROVEN then"
            + (f". Known to be in no snapshot:{known}" if known else "")
        )
        self.difference = difference

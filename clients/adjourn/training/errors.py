"""Why a training cannot go on: one class a situation; `reason` is what the job's failure will say."""

from collections.abc import Iterable, Mapping
from typing import ClassVar

from adjourn import reasons


class TrainingError(Exception):
    """Training cannot go on; subclasses name the situation."""

    reason: ClassVar[str] = reasons.TRAINING_RAISED


class EntryPointNotImportable(TrainingError):
    """The entry point's module does not exist, or fails while it is imported."""

    reason = reasons.ENTRY_POINT_NOT_IMPORTABLE


class EntryPointNotFound(TrainingError):
    """The module was imported, but has no such function."""

    reason = reasons.ENTRY_POINT_NOT_FOUND


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
    """The snapshot could not be written: there is no space, or no directory."""

    reason = reasons.SNAPSHOT_FAILED


class EnvironmentDiffers(TrainingError):
    """The snapshot was taken where other bits would come out; `differences` has (there, here) by name."""

    reason = reasons.ENVIRONMENT_DIFFERS

    def __init__(self, differences: Mapping[str, tuple[str, str]]) -> None:
        listed = "; ".join(f"{name} was {there}, is {here}" for name, (there, here) in differences.items())
        super().__init__(f"the result would not be the same to the last bit: {listed}")
        self.differences = dict(differences)


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

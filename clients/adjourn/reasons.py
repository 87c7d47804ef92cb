"""The reasons of failures and conditions (`Failure.reason`, `Condition.reason`). docs/reasons.md explains each."""

from typing import Final

ENTRY_POINT_NOT_IMPORTABLE: Final = "ENTRY_POINT_NOT_IMPORTABLE"
ENTRY_POINT_NOT_FOUND: Final = "ENTRY_POINT_NOT_FOUND"
REQUIREMENTS_UNMET: Final = "REQUIREMENTS_UNMET"
"""A distribution that the job requires is not installed on the worker, or in another version."""
REQUIREMENTS_NOT_INSTALLED: Final = "REQUIREMENTS_NOT_INSTALLED"
"""pip cannot install what the job requires."""
INSTALLING_REQUIREMENTS: Final = "INSTALLING_REQUIREMENTS"
"""Condition INSTALLING: pip is at work."""
PACKAGE_INDEX_UNAVAILABLE: Final = "PACKAGE_INDEX_UNAVAILABLE"
"""Condition INSTALLING: where pip installs from is away."""
TRAINING_RAISED: Final = "TRAINING_RAISED"
TRAINING_WITHOUT_EPOCHS: Final = "TRAINING_WITHOUT_EPOCHS"
EPOCHS_NOT_GIVEN: Final = "EPOCHS_NOT_GIVEN"
"""The job is a task without epochs, and its code iterates over them."""
STATE_NOT_ENCODABLE: Final = "STATE_NOT_ENCODABLE"
STATE_MISMATCH: Final = "STATE_MISMATCH"
SNAPSHOT_FAILED: Final = "SNAPSHOT_FAILED"
NO_SPACE: Final = "NO_SPACE"
"""There is no room: for a snapshot (training goes on unsaved), or on a worker's disk for an attempt."""
OUTPUT_TOO_LARGE: Final = "OUTPUT_TOO_LARGE"
"""What a run wrote to its output directory is more than is kept with a checkpoint."""
SNAPSHOT_DIFFERS: Final = "SNAPSHOT_DIFFERS"
"""A snapshot is not equal to the state in memory that it was taken of."""
STATE_NOT_RESTORABLE: Final = "STATE_NOT_RESTORABLE"
"""A rehearsed resume did not give the state that was saved: no pause of this code could be resumed."""
ENVIRONMENT_DIFFERS: Final = "ENVIRONMENT_DIFFERS"
"""The checkpoint was made in another environment than the worker's; another worker may have an equal one."""
RESTORE_DIVERGED: Final = "RESTORE_DIVERGED"
UNTRACKED_STATE: Final = "UNTRACKED_STATE"
"""Something decides how the training goes on, and is in no snapshot."""
DRILL_DIFFERS: Final = "DRILL_DIFFERS"
"""A second process that went on from a snapshot did not come to the same bits: a resumed run would not either."""

DATA_MISSING: Final = "DATA_MISSING"
"""There is nothing at the URI of data that a run asks for."""
DATA_REFUSED: Final = "DATA_REFUSED"
"""Data that a run asks for is not given to it: by its source, or by the settings of the worker."""
DATA_CHANGED: Final = "DATA_CHANGED"
"""Under a URI there is other data than the run has had before."""
DATA_DAMAGED: Final = "DATA_DAMAGED"
"""What arrived was, again and again, not what the source says that it is."""
DATA_NO_ROOM: Final = "DATA_NO_ROOM"
"""The worker's disk has no room for the data that a run asks for."""
DATA_FETCHING: Final = "DATA_FETCHING"
"""Condition FETCHING_DATA: data is on its way."""
DATA_UNAVAILABLE: Final = "DATA_UNAVAILABLE"
"""Condition FETCHING_DATA: its source cannot be reached, or fails."""

PROCESS_KILLED: Final = "PROCESS_KILLED"
"""The training process ended by a signal that nobody here sent."""
OUT_OF_MEMORY: Final = "OUT_OF_MEMORY"
"""The kernel's out-of-memory killer was seen at work when a SIGKILL ended the training process."""
PROCESS_ENDED: Final = "PROCESS_ENDED"
"""The training process left without saying why."""
PROCESS_LOST: Final = "PROCESS_LOST"
"""The training process is gone and nobody saw it end: launcher or machine died."""
LAUNCH_FAILED: Final = "LAUNCH_FAILED"
BUNDLE_UNUSABLE: Final = "BUNDLE_UNUSABLE"
CHECKPOINT_CORRUPT: Final = "CHECKPOINT_CORRUPT"
"""What an attempt was to restore is missing or damaged: the job goes on from the newest older checkpoint."""
CHECKPOINT_NOT_REGISTERED: Final = "CHECKPOINT_NOT_REGISTERED"
"""An attempt says that it rests on a checkpoint which was never registered."""
FENCED: Final = "FENCED"
"""A manifest of the attempt has content of somebody else, who acts under its token: it ends, and registers nothing."""
WORKER_LOST: Final = "WORKER_LOST"
ATTEMPT_UNKNOWN: Final = "ATTEMPT_UNKNOWN"
"""The worker that should run the attempt knows nothing of it."""
WORKER_STOPPED: Final = "WORKER_STOPPED"
"""The worker was told to stop with all it runs; costs the job no restart."""
WORKER_OUT_OF_CONTACT: Final = "WORKER_OUT_OF_CONTACT"
"""The worker had not heard the control plane for long, and had paused what it trained; costs the job no restart."""

OBJECT_STORE_REFUSED: Final = "OBJECT_STORE_REFUSED"
"""Object storage answers and refuses (a wrong key, no bucket, no permission): somebody has to mend that."""
OBJECT_STORE_UNAVAILABLE: Final = "OBJECT_STORE_UNAVAILABLE"
"""Object storage cannot be reached, or fails."""
NO_WORKER: Final = "NO_WORKER"
"""Condition UNPLACED: no worker is connected."""
NO_MATCHING_WORKER: Final = "NO_MATCHING_WORKER"
"""Condition UNPLACED: no worker has the labels, or as many GPUs."""
NO_CAPACITY: Final = "NO_CAPACITY"
"""Condition UNPLACED: every worker that could run the job is busy, or takes no new jobs."""
RESTART_DELAY: Final = "RESTART_DELAY"
"""Condition UNPLACED: the job failed, and waits a little before its next attempt."""
NO_EQUAL_ENVIRONMENT: Final = "NO_EQUAL_ENVIRONMENT"
"""Condition UNPLACED: no worker has the environment that the checkpoint was made in."""

PERSIST_FAILED: Final = "PERSIST_FAILED"
"""A snapshot could not be made durable though storage answers. The last of an attempt is tried again."""
GPU_MEMORY_IN_USE: Final = "GPU_MEMORY_IN_USE"
"""The training process is gone, and NVML shows that memory of its GPUs is in use still."""
WORKER_OUT_OF_REACH: Final = "WORKER_OUT_OF_REACH"
"""Condition RELEASE_UNCONFIRMED: the worker that had an attempt has not said that its process is gone."""
TRAINING_HANGS: Final = "TRAINING_HANGS"
"""Training makes no step any more, by its own pace."""
PROCESS_SUSPENDED: Final = "PROCESS_SUSPENDED"
"""Condition HANGING: the training process is stopped by a signal that is not Adjourn's."""

WHOLE_LOG: Final = "\nThe whole log: "
"""What comes before the command that prints the log, at the end of a failure's message. It differs between attempts."""

DETERMINISTIC: Final = frozenset(
    {
        ENTRY_POINT_NOT_IMPORTABLE,
        ENTRY_POINT_NOT_FOUND,
        REQUIREMENTS_UNMET,
        REQUIREMENTS_NOT_INSTALLED,
        TRAINING_WITHOUT_EPOCHS,
        EPOCHS_NOT_GIVEN,
        STATE_NOT_ENCODABLE,
        STATE_MISMATCH,
        OUTPUT_TOO_LARGE,
        STATE_NOT_RESTORABLE,
        RESTORE_DIVERGED,
        UNTRACKED_STATE,
        DRILL_DIFFERS,
        DATA_MISSING,
        DATA_REFUSED,
        DATA_CHANGED,
        BUNDLE_UNUSABLE,
    }
)
"""Trying again would end the same way: the job fails at once."""

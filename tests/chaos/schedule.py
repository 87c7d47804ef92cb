"""What befalls the stack and what its callers ask for: pure functions of a seed. Only the moments vary."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from adjourn import failpoints

LEASE_SECONDS: Final = 8.0
OUT_OF_CONTACT_LEASES: Final = 3
"""After so many a worker pauses its training by itself."""
WORKERS: Final = 3
CONTROL_PLANES: Final = 2
JOBS: Final = 8
"""At a time."""
PAIR_SHARE: Final = 0.2
"""Part of the steps at which two faults begin at once."""
REPEATED_SHARE: Final = 0.15
"""Part of the commands that are sent a second time with the same request_id, to the other replica."""


class Part(StrEnum):
    """What a fault befalls: a process, or a link between two."""

    AGENT = "agent"
    LAUNCHER = "launcher"
    TRAINING = "training"
    MACHINE = "machine"
    """Agent, launcher and training of a worker together."""
    CONTROL_PLANE = "control plane"
    VALKEY = "Valkey"
    S3 = "S3 server"
    WORKER_LINK = "worker-control plane"
    VALKEY_LINK = "control plane-Valkey"
    WORKER_S3_LINK = "worker-S3"
    CONTROL_PLANE_S3_LINK = "control plane-S3"
    CHECKPOINT = "newest checkpoint of job"
    DISK = "disk of worker"
    FAILPOINT = "failpoint"
    """A place in the code of any process; the first that comes there."""


FAILPOINTS: Final = tuple(sorted(failpoints.NAMES))
LINKS: Final = frozenset({Part.WORKER_LINK, Part.VALKEY_LINK, Part.WORKER_S3_LINK, Part.CONTROL_PLANE_S3_LINK})
COUNTS: Final = {
    Part.AGENT: WORKERS,
    Part.LAUNCHER: WORKERS,
    Part.TRAINING: WORKERS,
    Part.MACHINE: WORKERS,
    Part.CONTROL_PLANE: CONTROL_PLANES,
    Part.VALKEY: 1,
    Part.S3: 1,
    Part.WORKER_LINK: WORKERS,
    Part.VALKEY_LINK: CONTROL_PLANES,
    Part.WORKER_S3_LINK: WORKERS,
    Part.CONTROL_PLANE_S3_LINK: CONTROL_PLANES,
    Part.CHECKPOINT: JOBS,
    Part.DISK: WORKERS,
    Part.FAILPOINT: len(FAILPOINTS),
}
"""How many there are of each."""


class Action(StrEnum):
    """What is done to it."""

    KILL = "SIGKILL"
    TERMINATE = "SIGTERM"
    STOP = "SIGSTOP"
    CUT = "cut off"
    """Nothing comes through either way; who sends notices nothing."""
    CUT_SENDING = "cut off one way (to the server)"
    CUT_HEARING = "cut off one way (to the client)"
    RESET = "connections reset"
    REFUSE = "connections refused"
    SLOW = "slow"
    ANSWER_503 = "half of the requests answered 503"
    LOSE_ANSWERS = "half of the answers lost"
    REPEAT = "half of the requests repeated"
    FLIP = "a bit flipped in the"
    """Of an object; it stays so."""
    LOSE = "an object lost of the"
    FILL = "filled the"
    KILL_AT = "SIGKILL at"
    SLEEP_AT = "asleep at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that is done to a part, and undone after a while."""

    action: Action
    part: Part
    number: int
    """Which of the parts of this kind, from 1."""
    seconds: float
    """Until it is undone: the process started again or continued, the link healed."""

    @property
    def kind(self) -> str:
        if self.part is Part.FAILPOINT:
            return f"{self.action} {self.place}"
        beyond = ", beyond the lease" if self.seconds > LEASE_SECONDS else ""
        if self.seconds > OUT_OF_CONTACT_LEASES * LEASE_SECONDS:
            beyond = ", until its training pauses by itself"
        return f"{self.action} {self.part}{beyond}"

    @property
    def place(self) -> str:
        """Name of the failpoint."""
        return FAILPOINTS[self.number - 1]

    def __str__(self) -> str:
        where = self.place if self.part is Part.FAILPOINT else f"{self.part} {self.number}"
        return f"{self.action} {where} for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Faults that begin together."""

    after: float
    """Seconds since the step before."""
    faults: Sequence[Fault]


SHORT: Final = (0.3, 2.5)
LONG: Final = (1.3 * LEASE_SECONDS, 2.2 * LEASE_SECONDS)
ARMED: Final = (2.0, 6.0)
OUTAGE: Final = (1.2 * OUT_OF_CONTACT_LEASES * LEASE_SECONDS, 1.8 * OUT_OF_CONTACT_LEASES * LEASE_SECONDS)
Row = tuple[int, Action, Part, tuple[float, float]]
TABLE: Final[Sequence[Row]] = (
    (6, Action.KILL, Part.AGENT, SHORT),
    (2, Action.KILL, Part.AGENT, LONG),
    (4, Action.KILL, Part.LAUNCHER, SHORT),
    (8, Action.KILL, Part.TRAINING, SHORT),
    (2, Action.KILL, Part.MACHINE, SHORT),
    (2, Action.KILL, Part.MACHINE, LONG),
    (6, Action.KILL, Part.CONTROL_PLANE, SHORT),
    (2, Action.KILL, Part.CONTROL_PLANE, LONG),
    (3, Action.KILL, Part.VALKEY, SHORT),
    (1, Action.KILL, Part.VALKEY, LONG),
    (2, Action.KILL, Part.S3, SHORT),
    (3, Action.STOP, Part.AGENT, SHORT),
    (4, Action.STOP, Part.AGENT, LONG),
    (2, Action.STOP, Part.LAUNCHER, SHORT),
    (1, Action.STOP, Part.LAUNCHER, LONG),
    (2, Action.STOP, Part.TRAINING, SHORT),
    (2, Action.STOP, Part.TRAINING, LONG),
    (3, Action.STOP, Part.MACHINE, LONG),
    (3, Action.STOP, Part.CONTROL_PLANE, SHORT),
    (4, Action.STOP, Part.CONTROL_PLANE, LONG),
    (2, Action.STOP, Part.VALKEY, SHORT),
    (1, Action.STOP, Part.VALKEY, LONG),
    (2, Action.STOP, Part.S3, SHORT),
    (1, Action.STOP, Part.S3, LONG),
    (3, Action.TERMINATE, Part.AGENT, SHORT),
    (3, Action.TERMINATE, Part.CONTROL_PLANE, SHORT),
    (3, Action.CUT, Part.WORKER_LINK, SHORT),
    (6, Action.CUT, Part.WORKER_LINK, LONG),
    (2, Action.CUT, Part.WORKER_LINK, OUTAGE),
    (3, Action.CUT_SENDING, Part.WORKER_LINK, LONG),
    (3, Action.CUT_HEARING, Part.WORKER_LINK, LONG),
    (3, Action.RESET, Part.WORKER_LINK, SHORT),
    (2, Action.REFUSE, Part.WORKER_LINK, LONG),
    (1, Action.REFUSE, Part.WORKER_LINK, OUTAGE),
    (2, Action.SLOW, Part.WORKER_LINK, LONG),
    (2, Action.CUT, Part.VALKEY_LINK, SHORT),
    (3, Action.CUT, Part.VALKEY_LINK, LONG),
    (2, Action.CUT_SENDING, Part.VALKEY_LINK, LONG),
    (2, Action.CUT_HEARING, Part.VALKEY_LINK, LONG),
    (2, Action.RESET, Part.VALKEY_LINK, SHORT),
    (2, Action.CUT, Part.WORKER_S3_LINK, LONG),
    (1, Action.CUT_HEARING, Part.WORKER_S3_LINK, LONG),
    (3, Action.ANSWER_503, Part.WORKER_S3_LINK, LONG),
    (3, Action.LOSE_ANSWERS, Part.WORKER_S3_LINK, LONG),
    (2, Action.REPEAT, Part.WORKER_S3_LINK, LONG),
    (1, Action.CUT, Part.CONTROL_PLANE_S3_LINK, LONG),
    (2, Action.ANSWER_503, Part.CONTROL_PLANE_S3_LINK, LONG),
    (5, Action.FLIP, Part.CHECKPOINT, SHORT),
    (3, Action.LOSE, Part.CHECKPOINT, SHORT),
    (3, Action.FILL, Part.DISK, SHORT),
    (3, Action.FILL, Part.DISK, LONG),
    (20, Action.KILL_AT, Part.FAILPOINT, ARMED),
    (3, Action.SLEEP_AT, Part.FAILPOINT, ARMED),
    (5, Action.SLEEP_AT, Part.FAILPOINT, LONG),
)
"""Weight, what, to what, and the range of its seconds."""
GENTLE: Final[Sequence[Row]] = tuple(
    row
    for row in TABLE
    if row[3] is SHORT
    and row[2] not in (Part.S3, Part.MACHINE, Part.LAUNCHER, Part.CHECKPOINT, Part.DISK, Part.FAILPOINT)
)
"""Faults after which everything is back within seconds."""


def steps(seed: int, *, gap: tuple[float, float], table: Sequence[Row] = TABLE) -> Iterator[Step]:
    """Yields what befalls the stack, without end; `gap`: the range of seconds between two steps."""
    draw = random.Random(f"{seed} faults")
    while True:
        count = 2 if draw.random() < PAIR_SHARE else 1
        yield Step(after=draw.uniform(*gap), faults=[fault(draw, table) for _ in range(count)])


def fault(draw: random.Random, table: Sequence[Row]) -> Fault:
    ((_, action, part, seconds),) = draw.choices(table, weights=[row[0] for row in table])
    return Fault(action=action, part=part, number=draw.randint(1, COUNTS[part]), seconds=draw.uniform(*seconds))


class Verb(StrEnum):
    """What a caller asks for."""

    PAUSE = "pause"
    PAUSE_AT_STEP = "pause after the running step"
    PAUSE_NOW = "pause now, at the newest checkpoint"
    RESUME = "resume"
    CANCEL = "cancel"
    CANCEL_SAVING = "cancel with a last checkpoint"
    CANCEL_SAVING_AT_STEP = "cancel with a last checkpoint after the running step"
    DELETE = "delete"
    HOLD = "hold"
    RELEASE = "release"
    DRAIN = "drain"
    UNDRAIN = "undrain"


VERBS: Final = {
    Verb.PAUSE: 6,
    Verb.PAUSE_AT_STEP: 4,
    Verb.PAUSE_NOW: 2,
    Verb.RESUME: 9,
    Verb.CANCEL: 1,
    Verb.CANCEL_SAVING: 1,
    Verb.CANCEL_SAVING_AT_STEP: 1,
    Verb.DELETE: 2,
    Verb.HOLD: 3,
    Verb.RELEASE: 5,
    Verb.DRAIN: 1,
    Verb.UNDRAIN: 3,
}
"""Weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A request of a caller."""

    after: float
    """Seconds since the caller's request before."""
    verb: Verb
    slot: int
    """Which of the jobs, from 0."""
    worker: int
    """Which of the workers, from 1; for verbs about workers."""
    replica: int
    """Which control plane is asked, from 0."""
    repeated: bool
    """It is sent twice with the same request_id."""


def commands(seed: int, caller: int, *, slots: int, gap: tuple[float, float]) -> Iterator[Command]:
    """Yields what one of the callers asks for, without end."""
    draw = random.Random(f"{seed} caller {caller}")
    while True:
        (verb,) = draw.choices(list(VERBS), weights=list(VERBS.values()))
        yield Command(
            after=draw.uniform(*gap),
            verb=verb,
            slot=draw.randrange(slots),
            worker=draw.randint(1, WORKERS),
            replica=draw.randrange(CONTROL_PLANES),
            repeated=draw.random() < REPEATED_SHARE,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What decides the bits of a job."""

    seed: int
    epochs: int


def trainings(seed: int, slot: int, *, epochs: tuple[int, int]) -> Iterator[Training]:
    """Yields the trainings of the jobs that one slot has, one after another. They are few, as each needs a twin."""
    draw = random.Random(f"{seed} slot {slot}")
    for _ in itertools.count():
        yield Training(seed=draw.randint(1, 4), epochs=draw.choice((epochs[0], sum(epochs) // 2, epochs[1])))

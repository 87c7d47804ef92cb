"""What must outlive the agent: the assignments it holds, and the reports that are not acknowledged.

SQLite, one file. Every change is one transaction that is on the disk when the call returns. A state and the reports
that follow from it are stored together, so that neither exists without the other.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, ParamSpec, Self, TypeVar

import structlog
from google.protobuf.message import DecodeError

from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import FencingToken, Report
from adjourn_worker.host.locks import LockTaken, holder, take_all
from adjourn_worker.paths import WorkerPaths

P = ParamSpec("P")
T = TypeVar("T")

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS held (
    job TEXT NOT NULL, job_uid TEXT NOT NULL, attempt INTEGER NOT NULL, nonce TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (job, job_uid, attempt, nonce)
);
-- AUTOINCREMENT: a number is never given twice, not even after its report is gone.
CREATE TABLE IF NOT EXISTS report (sequence INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
-- One row: when the control plane last spoke, in seconds since the boot of that id, and its lease in seconds.
CREATE TABLE IF NOT EXISTS contact (
    one INTEGER PRIMARY KEY, boot_id TEXT NOT NULL, heard REAL NOT NULL, lease REAL NOT NULL
);
-- One row: a number that grows with each agent.
CREATE TABLE IF NOT EXISTS life (one INTEGER PRIMARY KEY, number INTEGER NOT NULL);
"""
VERSION: Final = 2
RETRY_SECONDS: Final = 1.0
UNWRITABLE_SECONDS: Final = 600.0
"""How long to wait for a disk that takes nothing: a worker that can decide nothing must not hold jobs for ever."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class JournalTaken(Exception):
    """Another agent works in the data directory, or in a copy of it."""


class JournalDamaged(Exception):
    """The journal's file cannot be understood; what the worker held is in it, so nothing is guessed."""


class JournalUnwritable(OSError):
    """The journal could not be read or written (a full disk, most often); nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastContact:
    """When the control plane last spoke, and what its lease was."""

    boot_id: str
    """`heard` says nothing after another boot."""
    heard: float
    """In seconds of CLOCK_BOOTTIME."""
    lease: float
    """In seconds."""


class Journal:
    """The journal of a worker: `with Journal(paths) as journal`. Calls block on the disk.

    Where others must not be held up, use `run`: it has a thread of its own, so that no decision of the agent waits
    behind hashing or uploads.
    """

    def __init__(self, paths: WorkerPaths) -> None:
        """Raises JournalTaken, JournalDamaged, JournalUnwritable."""
        self._path = paths.journal
        self._locks = agent_locks(paths)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        try:
            self._database = self._open()
        except BaseException:
            self._locks.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._thread.shutdown()
        self._database.close()
        self._locks.close()

    async def run(self, call: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        """Makes a call in the journal's thread, again and again while the disk is full.

        Raises what the call raises; JournalUnwritable after ten minutes.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + UNWRITABLE_SECONDS
        while True:
            try:
                return await loop.run_in_executor(self._thread, lambda: call(*arguments, **named))
            except JournalUnwritable as error:
                if loop.time() > deadline:
                    raise
                log.error("journal_unwritable", error=str(error), trying_again_in=RETRY_SECONDS)  # noqa: TRY400
            await asyncio.sleep(RETRY_SECONDS)

    def held(self) -> list[HeldAssignment]:
        """Returns every assignment that is held, by job and attempt."""
        with self._transaction() as database:
            rows = database.execute("SELECT body FROM held ORDER BY job, job_uid, attempt, nonce").fetchall()
            return [HeldAssignment.FromString(body) for (body,) in rows]

    def record(self, held: HeldAssignment, reports: Sequence[Report]) -> list[Report]:
        """Stores an assignment's state and the reports that follow from it; returns these with their sequences."""
        numbered = []
        with self._transaction() as database:
            token = held.assignment.token
            database.execute(
                "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?, ?)",
                (held.assignment.job, token.job_uid, token.attempt, token.nonce, held.SerializeToString()),
            )
            for report in reports:
                copy = Report()
                copy.CopyFrom(report)
                copy.sequence = database.execute("INSERT INTO report (body) VALUES (x'')").lastrowid or 0
                database.execute(
                    "UPDATE report SET body = ? WHERE sequence = ?", (copy.SerializeToString(), copy.sequence)
                )
                numbered.append(copy)
        return numbered

    def reports(self) -> list[Report]:
        """Returns the reports that are not acknowledged, oldest first."""
        with self._transaction() as database:
            rows = database.execute("SELECT body FROM report ORDER BY sequence").fetchall()
            return [Report.FromString(body) for (body,) in rows]

    def acknowledge(self, sequence: int) -> None:
        """Forgets the reports up to `sequence`."""
        with self._transaction() as database:
            database.execute("DELETE FROM report WHERE sequence <= ?", (sequence,))

    def forget(self, job: str, token: FencingToken) -> None:
        """Forgets an assignment; its reports stay until they are acknowledged."""
        with self._transaction() as database:
            database.execute(
                "DELETE FROM held WHERE job = ? AND job_uid = ? AND attempt = ? AND nonce = ?",
                (job, token.job_uid, token.attempt, token.nonce),
            )

    def begin_life(self, least: int) -> int:
        """Returns a number above that of every agent before, `least` at least."""
        with self._transaction() as database:
            row = database.execute("SELECT number FROM life").fetchone()
            number = max(least, row[0] + 1 if row else 0)
            database.execute("INSERT OR REPLACE INTO life VALUES (1, ?)", (number,))
            return number

    def note_contact(self, contact: LastContact) -> None:
        """Stores when the control plane last spoke."""
        with self._transaction() as database:
            database.execute(
                "INSERT OR REPLACE INTO contact VALUES (1, ?, ?, ?)", (contact.boot_id, contact.heard, contact.lease)
            )

    def last_contact(self) -> LastContact | None:
        """Returns when the control plane last spoke, as it was noted last; None if it never did."""
        with self._transaction() as database:
            row = database.execute("SELECT boot_id, heard, lease FROM contact").fetchone()
            return LastContact(boot_id=row[0], heard=row[1], lease=row[2]) if row else None

    def _open(self) -> sqlite3.Connection:
        with self._explained():
            self._path.touch(mode=0o600)  # SQLite gives its further files the same mode
            # Used by one thread at a time: before `run` is first called, and then by its thread.
            database = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                # One process has it, so no memory is shared; one fsync a transaction.
                database.execute("PRAGMA locking_mode = EXCLUSIVE")
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = FULL")
                check(database)
                database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            except BaseException:
                database.close()
                raise
            return database

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._explained():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise JournalUnwritable(f"{self._path}: {error}") from error
        except (sqlite3.DatabaseError, DecodeError) as error:
            raise JournalDamaged(f"{self._path}: {error}") from error


def agent_locks(paths: WorkerPaths) -> contextlib.ExitStack:
    """Takes the locks of the data directory's agent; raises JournalTaken."""
    try:
        return take_all(paths.agent_locks)
    except LockTaken as error:
        pid = holder(error.path)
        if error.path == paths.agent_locks[0]:
            raise JournalTaken(f"agent {pid} already works in {paths.data}") from None
        raise JournalTaken(
            f"{error.path.parent} is in use by agent {pid} of another data directory with the same id: one of them is "
            f"a copy. Give this worker an empty data directory instead of {paths.data}"
        ) from None


def check(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError if the file is damaged, or of a version that this agent does not know."""
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        raise sqlite3.DatabaseError(
            f"it is of version {version}, and this agent knows version {VERSION} only; start the agent that wrote it, "
            "or give this one another data directory"
        )

"""What must outlive the agent: the assignments it holds, and the reports that nobody has acknowledged yet.

SQLite, one file, every change one transaction that is on the disk when the call returns. A state and the reports that
follow from it are stored together, so that neither exists without the other.
"""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from typing import Final, Self

from google.protobuf.message import DecodeError

from adjourn.internal.v1.trainer_pb2 import HeldAssignment
from adjourn.v1.agent_service_pb2 import FencingToken, Report
from adjourn_worker.host.locks import holder, take
from adjourn_worker.paths import WorkerPaths

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS held (
    job TEXT NOT NULL, attempt INTEGER NOT NULL, nonce TEXT NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (job, attempt, nonce)
);
-- AUTOINCREMENT: a number is never given twice, not even after its report is gone.
CREATE TABLE IF NOT EXISTS report (sequence INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL);
"""
VERSION: Final = 1


class JournalTaken(Exception):
    """Another agent works in the data directory."""


class JournalDamaged(Exception):
    """The journal's file cannot be understood; what the worker held is in it, so nothing is guessed."""


class JournalUnwritable(OSError):
    """The journal could not be read or written (a full disk, most often); nothing was changed."""


class Journal:
    """The journal of a worker: `with Journal(places) as journal`. Calls block on the disk; any thread may make them."""

    def __init__(self, paths: WorkerPaths) -> None:
        """Raises JournalTaken, JournalDamaged, JournalUnwritable."""
        self._path = paths.journal
        lock = take(paths.agent_lock)
        if lock is None:
            raise JournalTaken(f"agent {holder(paths.agent_lock)} already works in {paths.data}")
        self._lock = lock
        self._turn = threading.Lock()
        try:
            self._database = self._open()
        except BaseException:
            os.close(lock)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._turn:
            self._database.close()
            os.close(self._lock)

    def held(self) -> list[HeldAssignment]:
        """Returns every assignment that is held, by job and attempt."""
        with self._transaction() as database:
            rows = database.execute("SELECT body FROM held ORDER BY job, attempt, nonce").fetchall()
            return [HeldAssignment.FromString(body) for (body,) in rows]

    def record(self, held: HeldAssignment, reports: Sequence[Report]) -> list[Report]:
        """Stores how an assignment stands and what follows from it; returns the reports with their sequences."""
        numbered = []
        with self._transaction() as database:
            token = held.assignment.token
            database.execute(
                "INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?)",
                (held.assignment.job, token.attempt, token.nonce, held.SerializeToString()),
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
        """Returns the reports that nobody has acknowledged, oldest first."""
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
                "DELETE FROM held WHERE job = ? AND attempt = ? AND nonce = ?", (job, token.attempt, token.nonce)
            )

    def _open(self) -> sqlite3.Connection:
        with self._explained():
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
        with self._turn, self._explained():
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
        except sqlite3.OperationalError as error:
            raise JournalUnwritable(f"{self._path}: {error}") from error
        except (sqlite3.DatabaseError, DecodeError) as error:
            raise JournalDamaged(f"{self._path}: {error}") from error


def check(database: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError if the file is damaged, or written by a version that we do not know."""
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(verdict)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, VERSION):
        raise sqlite3.DatabaseError(f"it is of version {version}; this agent knows {VERSION}")

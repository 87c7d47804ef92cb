"""PURE. What attempts have printed, as it lies in object storage: the keys of its objects, and how they are read.

    logs/{job_uid}/{attempt}-{nonce8}/{begin}-{end}  the bytes from `begin` up to `end` of all that it printed
    logs/{job_uid}/{attempt}-{nonce8}/{end}          so many bytes it printed in all: the log is whole

An object is written once and never changed. The newest one grows by being replaced: one that begins where it does and
ends later is written, then it is removed. So two may overlap, and where they do they have the same bytes. Objects are
written in order. What is missing before one that is there was left out, as a log has a limit: its middle goes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from adjourn.v1.agent_service_pb2 import FencingToken

SEGMENT_BYTES: Final = 256 << 10
"""Most bytes of an object."""
NAME: Final = re.compile(r"(\d{16})(?:-(\d{16}))?")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """A stretch of a log, in bytes from its beginning."""

    begin: int
    end: int
    """Of the first byte behind it."""

    @property
    def size(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class StoredLog:
    """What is stored of a log."""

    segments: tuple[Segment, ...] = ()
    """In order of their begins."""
    end: int | None = None
    """Bytes that the attempt has printed in all, once its log is whole; None: more may come."""

    @property
    def stored(self) -> int:
        """Bytes up to which the log is stored, what was left out included."""
        return max((segment.end for segment in self.segments), default=0)

    @property
    def size(self) -> int:
        """Bytes that the attempt has printed, as far as they are known of here."""
        return self.stored if self.end is None else self.end

    def after(self, offset: int) -> Segment | None:
        """Returns the segment to go on with at a byte: it has that byte, or is the next one behind a gap.

        Of several that begin soon enough, the one that reaches furthest. None: nothing more is stored.
        """
        ahead = [segment for segment in self.segments if segment.end > offset]
        if not ahead:
            return None
        first = max(offset, min(segment.begin for segment in ahead))
        return max((segment for segment in ahead if segment.begin <= first), key=lambda each: each.end)


def job_prefix(uid: str) -> str:
    """Returns where the logs of a job are."""
    return f"logs/{uid}/"


def attempt_prefix(uid: str, attempt: int) -> str:
    """Returns where the logs of all attempts of a number are: a store that was set back gives a number twice."""
    return f"{job_prefix(uid)}{attempt:06}-"


def log_prefix(token: FencingToken) -> str:
    """Returns where the log of an attempt is."""
    return f"{attempt_prefix(token.job_uid, token.attempt)}{token.nonce[:8]}/"


def segment_key(prefix: str, segment: Segment) -> str:
    return f"{prefix}{segment.begin:016}-{segment.end:016}"


def end_key(prefix: str, end: int) -> str:
    return f"{prefix}{end:016}"


def stored_log(prefix: str, keys: Iterable[str]) -> StoredLog:
    """Returns what is stored of the log below a prefix, by the keys there. Keys of others are passed over."""
    segments, end = [], None
    for key in keys:
        match = NAME.fullmatch(key.removeprefix(prefix))
        if match and key.startswith(prefix):
            if match[2] is None:
                end = int(match[1])
            elif int(match[1]) < int(match[2]):
                segments.append(Segment(int(match[1]), int(match[2])))
    return StoredLog(tuple(sorted(segments)), end)


def logs_below(prefix: str, keys: Iterable[str]) -> dict[str, StoredLog]:
    """Returns the logs below an `attempt_prefix`, by their prefixes."""
    listed = list(keys)
    places = {key[: key.rindex("/") + 1] for key in listed if key.startswith(prefix)}
    return {place: stored_log(place, listed) for place in sorted(places)}

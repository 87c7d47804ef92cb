"""What a URI of data names, and whether jobs may have it with the worker's key."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from adjourn import reasons
from adjourn.data_identities import shown

EVERYTHING: Final = "s3://"
OWN_PREFIXES: Final = ("bundles/", "checkpoints/", "logs/")
"""Keys of Adjourn's own objects: code, checkpoints and logs of all jobs."""
NAME_BYTES: Final = 200
"""Of the name that data has on the disk; file systems take 255."""
UNNAMED: Final = "data"


class DataFailed(Exception):
    """Data cannot be had; trying again would not help. `reason` is one of adjourn.reasons."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a URI names."""

    uri: str
    bucket: str = ""
    """Of S3; empty: it is fetched over HTTP."""
    key: str = ""
    name: str = UNNAMED
    """Its own name, for the file or folder on the disk."""

    @property
    def shown(self) -> str:
        """The URI for people."""
        return shown(self.uri)

    @property
    def is_folder(self) -> bool:
        return bool(self.bucket) and (not self.key or self.key.endswith("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What jobs may read with the key that the worker reads data with."""

    prefixes: Sequence[str]
    """`s3://bucket/folder`, and all below; `s3://`: everything that the key may read."""
    own_bucket: str = ""
    """Bucket of Adjourn's own objects, if it is on the server that data is read from."""

    def check(self, place: Place) -> None:
        """Raises DataFailed."""
        if not place.bucket:
            return
        if place.bucket == self.own_bucket and (not place.key or place.key.startswith(OWN_PREFIXES)):
            raise refused(place.uri, "code, checkpoints and logs of all jobs are there, and none may read those")
        wanted = f"{place.bucket}/{place.key}"
        for prefix in self.prefixes:
            folder = prefix.removeprefix(EVERYTHING).rstrip("/")
            if not folder or wanted == folder or wanted.startswith(f"{folder}/"):
                return
        listed = ", ".join(self.prefixes) or "nothing"
        raise refused(place.uri, f"jobs of this worker may read {listed}; ADJOURN_DATA_PREFIXES on the worker says so")


def place_of(uri: str) -> Place:
    """Returns what a URI names; raises DataFailed."""
    if "\0" in uri or "\n" in uri:
        raise refused(repr(uri), "it has characters that no URI has")
    if uri.startswith(EVERYTHING):
        bucket, _, key = uri.removeprefix(EVERYTHING).partition("/")
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
            raise refused(uri, "it has to be s3://bucket/key, or s3://bucket/folder/")
        return Place(uri=uri, bucket=bucket, key=key, name=named(key.rstrip("/")) if key else bucket)
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise refused(uri, str(error)) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise refused(uri, "it has to begin with s3://bucket/, https://host/, http://host/ or file:///")
    if parts.username is not None:
        raise refused(f"{parts.scheme}://...@{parts.hostname}", "it has credentials in it, which all can read")
    return Place(uri=uri.partition("#")[0], name=named(unquote(parts.path).rstrip("/")))


def named(path: str) -> str:
    """Returns a name for the disk that is like the last of a path."""
    last = path.rpartition("/")[2].replace("\0", "")
    while len(last.encode(errors="replace")) > NAME_BYTES:
        last = last[1:]  # what follows the last dot tells how it is read
    return last if last.strip(".") else UNNAMED


def prefixes(text: str) -> tuple[str, ...]:
    """Parses `s3://bucket/folder,s3://bucket`; raises ValueError."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for each in found:
        if not re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?)?", each):
            raise ValueError("must be s3://bucket/folder,s3://bucket; s3:// alone is everything that the key may read")
    return found


def refused(uri: str, why: str) -> DataFailed:
    return DataFailed(reasons.DATA_REFUSED, f"{uri}: {why}")

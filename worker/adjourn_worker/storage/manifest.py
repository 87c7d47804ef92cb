"""The manifest of a checkpoint: all that is needed to restore it, and to rebuild the job's record from the store alone.

Canonical JSON: the same checkpoint always gives the same bytes, hence the same digest. Reading is strict: what is not
exactly as written here is refused.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Self, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn_worker.storage.parts import PART_BYTES

T = TypeVar("T")
M = TypeVar("M", bound=Message)

FORMAT: Final = "adjourn.checkpoint/1"
DIGEST: Final = r"[0-9a-f]{64}"


class ManifestInvalid(ValueError):
    """Bytes that are no manifest of a format that is known; the text names the place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A piece of a file."""

    digest: str
    """BLAKE3, hex."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file of the snapshot, as its pieces in order."""

    name: str
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A complete snapshot of a job."""

    job: str
    """`jobs/{job}`."""
    attempt: int
    nonce: str
    sequence: int
    """Of the snapshot, within the attempt."""
    spec: JobSpec
    progress: Progress
    """At the snapshot; epoch and step are in it."""
    metrics: Mapping[str, float]
    """Of the epoch it ends."""
    files: tuple[File, ...]
    component_digests: Mapping[str, str]
    """SHA-256, hex, by component."""
    state_digest: str
    """BLAKE3, hex."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def parts(self) -> Mapping[str, int]:
        """Sizes of the distinct parts, by digest."""
        return {part.digest: part.size for file in self.files for part in file.parts}

    def to_json(self) -> bytes:
        document = {
            "format": FORMAT,
            "job": self.job,
            "attempt": self.attempt,
            "nonce": self.nonce,
            "sequence": self.sequence,
            "epoch": self.progress.epoch,
            "step": self.progress.step,
            "size_bytes": self.size,
            "spec": json_format.MessageToDict(self.spec),
            "progress": json_format.MessageToDict(self.progress),
            "metrics": {name: encoded(value) for name, value in self.metrics.items()},
            "files": [
                {"name": file.name, "size": file.size, "parts": [[part.digest, part.size] for part in file.parts]}
                for file in self.files
            ],
            "component_digests": dict(self.component_digests),
            "state_digest": self.state_digest,
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises ManifestInvalid."""
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ManifestInvalid(f"not JSON: {error}") from error
        top = Fields(document, "the manifest")
        if (found := top.take("format", str)) != FORMAT:
            raise ManifestInvalid(f"format {found!r}; this version reads {FORMAT}")
        manifest = cls(
            job=top.text("job", r"jobs/[a-z0-9][a-z0-9-]{0,62}"),
            attempt=top.count("attempt"),
            nonce=top.text("nonce", r"[0-9a-f]{32}"),
            sequence=top.count("sequence"),
            spec=top.message("spec", JobSpec()),
            progress=top.message("progress", Progress()),
            metrics=top.mapping("metrics", decoded),
            files=tuple(read_file(entry) for entry in top.take("files", list)),
            component_digests=top.mapping("component_digests", digest),
            state_digest=top.text("state_digest", DIGEST),
        )
        if top.count("epoch") != manifest.progress.epoch or top.count("step") != manifest.progress.step:
            raise ManifestInvalid("epoch and step are not those of the progress")
        if top.count("size_bytes") != manifest.size:
            raise ManifestInvalid(f"size_bytes is not the {manifest.size} bytes of the files")
        if len({file.name for file in manifest.files}) != len(manifest.files):
            raise ManifestInvalid("two files have one name")
        top.done()
        return manifest


class Fields:
    """Takes an object's fields one by one, and wants none left."""

    def __init__(self, document: object, place: str) -> None:
        if not isinstance(document, dict):
            raise ManifestInvalid(f"{place} is not an object")
        self._left = dict(document)
        self._place = place

    def take(self, name: str, kind: type[T]) -> T:
        value = self._left.pop(name, None)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ManifestInvalid(f"{name} of {self._place} is not of type {kind.__name__}")
        return value

    def text(self, name: str, pattern: str) -> str:
        value = self.take(name, str)
        if not re.fullmatch(pattern, value):
            raise ManifestInvalid(f"{name} of {self._place} is {value!r}")
        return value

    def count(self, name: str) -> int:
        value = self.take(name, int)
        if value < 0:
            raise ManifestInvalid(f"{name} of {self._place} is {value}")
        return value

    def mapping(self, name: str, read: Callable[[object], T]) -> dict[str, T]:
        try:
            return {key: read(value) for key, value in self.take(name, dict).items()}
        except ValueError as error:
            raise ManifestInvalid(f"{name} of {self._place}: {error}") from error

    def message(self, name: str, into: M) -> M:
        try:
            # A newer version may know more fields; those we know mean what they always did.
            return json_format.ParseDict(self.take(name, dict), into, ignore_unknown_fields=True)
        except json_format.ParseError as error:
            raise ManifestInvalid(f"{name} of {self._place}: {error}") from error

    def done(self) -> None:
        if self._left:
            raise ManifestInvalid(f"{self._place} has {', '.join(sorted(self._left))}, which is not known")


def read_file(document: object) -> File:
    fields = Fields(document, "a file")
    # A name of one component: it becomes a path on the worker.
    name = fields.text("name", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
    file = File(name=name, parts=tuple(map(read_part, fields.take("parts", list))))
    if fields.count("size") != file.size:
        raise ManifestInvalid(f"the size of {name} is not the {file.size} bytes of its parts")
    fields.done()
    return file


def read_part(entry: object) -> Part:
    match entry:
        case [str(name), int(size)] if re.fullmatch(DIGEST, name) and 0 < size <= PART_BYTES:
            return Part(digest=name, size=size)
    raise ManifestInvalid(f"{str(entry)[:100]} is not a part")


def digest(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(DIGEST, value):
        raise ValueError(f"{str(value)[:100]} is not a digest")
    return value


def encoded(value: float) -> float | str:
    """Returns what JSON can hold: infinities and NaN by name, as in proto3 JSON."""
    if value != value:  # noqa: PLR0124 - only NaN differs from itself
        return "NaN"
    return {float("inf"): "Infinity", float("-inf"): "-Infinity"}.get(value, value)


def decoded(value: object) -> float:
    match value:
        case "NaN" | "Infinity" | "-Infinity":
            return float(str(value))
        case bool():
            pass
        case int() | float():
            return float(value)
    raise ValueError(f"{str(value)[:100]} is not a number")

"""The manifest of a checkpoint, `adjourn.v1.Manifest`, as bytes; and under which keys a checkpoint's objects are.

The bytes are canonical: the same manifest always gives the same bytes, hence the same digest. Reading checks all that a
restore relies on.
"""

import json
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final
from urllib.parse import urlsplit

from blake3 import blake3
from google.protobuf import json_format

from adjourn import snapshots
from adjourn.v1.checkpoint_pb2 import Checkpoint
from adjourn.v1.manifest_pb2 import Manifest

FAMILY: Final = "adjourn.checkpoint/"
FORMAT: Final = f"{FAMILY}3"
FORMAT_2: Final = f"{FAMILY}2"
"""Still read: each file was a row of whole parts."""
PART_BYTES: Final = 8 << 20
"""Most bytes of a part."""
MANIFEST_LIMIT: Final = 64 << 20
"""Longest manifest that is read, in bytes; a chunk takes about 50 in it, a part or span about 100."""
CHUNK_DIGEST_BYTES: Final = 32
UID: Final = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
"""`Job.uid`."""
DIGEST: Final = r"[0-9a-f]{64}"
JOB: Final = r"jobs/[a-z0-9][a-z0-9-]{0,62}"
NONCE: Final = r"[0-9a-f]{32}"
FILE_NAME: Final = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"
"""One component of a path: the file is made below a directory of the worker's."""


class ManifestInvalid(ValueError):
    """Bytes that are no manifest of the format that is known. The text names the place."""


def encode(manifest: Manifest) -> bytes:
    """Returns the manifest as JSON with sorted keys and no blanks."""
    document = json_format.MessageToDict(manifest)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def decode(data: bytes) -> Manifest:
    """Raises ManifestInvalid."""
    try:
        # A newer version may know more fields; those that are known mean what they always did.
        manifest = json_format.ParseDict(current(json.loads(data)), Manifest(), ignore_unknown_fields=True)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, json_format.ParseError) as error:
        raise ManifestInvalid(f"not a manifest in JSON: {error}") from error
    check(manifest)
    return manifest


def verified(data: bytes, checkpoint: Checkpoint) -> Manifest:
    """Returns the manifest of a checkpoint; raises ManifestInvalid: `data` "is damaged", or is that of another."""
    if digest(data) != checkpoint.manifest_digest:
        raise ManifestInvalid("is damaged")
    try:
        manifest = decode(data)
    except ManifestInvalid as error:
        raise ManifestInvalid(f"is no manifest: {error}") from error
    if manifest.job_uid != checkpoint.job_uid or not checkpoint.name.startswith(f"{manifest.job}/checkpoints/"):
        raise ManifestInvalid(f"belongs to {manifest.job} of uid {manifest.job_uid}")
    if total_size(manifest) != checkpoint.size_bytes:
        raise ManifestInvalid(
            f"has parts of {total_size(manifest)} bytes in all, and the checkpoint {checkpoint.size_bytes}"
        )
    return manifest


def current(document: Any) -> Any:
    """Returns a manifest as this version writes it; of one of version 2, each part is a chunk."""
    if document.get("format") != FORMAT_2:
        return document
    parts: dict[str, Any] = {part["digest"]: part for file in document["files"] for part in file["parts"]}
    places = {digest: place for place, digest in enumerate(parts)}
    files = [
        {
            "name": file["name"],
            "spans": [{"part": places[part["digest"]], "sizeBytes": part["sizeBytes"]} for part in file["parts"]],
            "chunkSizes": [part["sizeBytes"] for part in file["parts"]],
            "chunkDigests": b64encode(bytes.fromhex("".join(part["digest"] for part in file["parts"]))).decode(),
        }
        for file in document["files"]
    ]
    return {**document, "format": FORMAT, "parts": list(parts.values()), "files": files}


def claims(data: bytes) -> bool:
    """Returns whether bytes are somebody's manifest, of any version, sound or not."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and str(document.get("format", "")).startswith(FAMILY)


def check(manifest: Manifest) -> None:
    """Raises ManifestInvalid if a field that a restore relies on cannot be so."""
    if manifest.format != FORMAT:
        raise ManifestInvalid(f"format is {manifest.format!r}, and this version reads {FORMAT!r}")
    for name, pattern in (("job", JOB), ("job_uid", UID), ("nonce", NONCE), ("state_digest", DIGEST)):
        value = getattr(manifest, name)
        if not re.fullmatch(pattern, value):
            raise ManifestInvalid(f"{name} is {value[:100]!r}")
    for name in ("attempt", "sequence"):
        if getattr(manifest, name) < 1:
            raise ManifestInvalid(f"{name} is {getattr(manifest, name)}")
    check_digests(manifest)
    check_parts(manifest)
    names = [file.name for file in manifest.files]
    if len(set(names)) != len(names):
        raise ManifestInvalid("two files have one name")
    for file in manifest.files:
        check_file(file, manifest.parts)


def check_digests(manifest: Manifest) -> None:
    for component, digest in manifest.component_digests.items():
        if not re.fullmatch(DIGEST, digest):
            raise ManifestInvalid(f"component_digests[{component}] is {digest[:100]!r}")
    if manifest.state_digest != snapshots.state_digest(manifest.component_digests):
        raise ManifestInvalid("state_digest is not that of component_digests")


def check_parts(manifest: Manifest) -> None:
    for number, part in enumerate(manifest.parts):
        if not re.fullmatch(DIGEST, part.digest):
            raise ManifestInvalid(f"parts[{number}].digest is {part.digest[:100]!r}")
        if not 0 < part.size_bytes <= PART_BYTES:
            raise ManifestInvalid(f"parts[{number}].size_bytes is {part.size_bytes}")
    if len(distinct_parts(manifest)) != len(manifest.parts):
        raise ManifestInvalid("two parts have one digest")


def check_file(file: Manifest.File, parts: Sequence[Manifest.Part]) -> None:
    if not re.fullmatch(FILE_NAME, file.name):
        raise ManifestInvalid(f"files: {file.name[:100]!r} is not the name of a file")
    for number, span in enumerate(file.spans):
        if not 0 <= span.part < len(parts):
            raise ManifestInvalid(f"files[{file.name}].spans[{number}].part is {span.part}")
        if span.offset < 0 or not 0 < span.size_bytes <= parts[span.part].size_bytes - span.offset:
            raise ManifestInvalid(
                f"files[{file.name}].spans[{number}] has {span.size_bytes} bytes at {span.offset} of a part of"
                f" {parts[span.part].size_bytes}"
            )
    if len(file.chunk_digests) != CHUNK_DIGEST_BYTES * len(file.chunk_sizes):
        raise ManifestInvalid(f"files[{file.name}].chunk_digests has {len(file.chunk_digests)} bytes")
    if min(file.chunk_sizes, default=1) < 1 or not chunks_fit(file):
        raise ManifestInvalid(f"files[{file.name}].chunk_sizes are not those of its spans")


def chunks(file: Manifest.File) -> Iterator[tuple[int, bytes]]:
    """Yields the size and the BLAKE3 of each chunk of a file."""
    for number, size in enumerate(file.chunk_sizes):
        yield size, file.chunk_digests[number * CHUNK_DIGEST_BYTES : (number + 1) * CHUNK_DIGEST_BYTES]


def chunks_fit(file: Manifest.File) -> bool:
    """Returns whether the end of each span is the end of a chunk, and the other way about for the last."""
    ends = set(accumulate(file.chunk_sizes))
    whole = sum(file.chunk_sizes) == file_size(file)
    return whole and ends.issuperset(accumulate(span.size_bytes for span in file.spans))


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where bytes of a part go."""

    file: str
    offset: int
    """In the file."""
    begin: int
    """In the part."""
    end: int


def places(manifest: Manifest) -> Mapping[str, list[Place]]:
    """Returns where the bytes of each part go, by its digest."""
    found: dict[str, list[Place]] = {part.digest: [] for part in manifest.parts}
    for file in manifest.files:
        offset = 0
        for span in file.spans:
            begin, end = span.offset, span.offset + span.size_bytes
            place = Place(file=file.name, offset=offset, begin=begin, end=end)
            found[manifest.parts[span.part].digest].append(place)
            offset += span.size_bytes
    return found


def file_size(file: Manifest.File) -> int:
    """Returns the bytes of a file."""
    return sum(span.size_bytes for span in file.spans)


def total_size(manifest: Manifest) -> int:
    """Returns the bytes of all files."""
    return sum(map(file_size, manifest.files))


def distinct_parts(manifest: Manifest) -> Mapping[str, int]:
    """Returns the sizes of the parts in bytes, by digest."""
    return {part.digest: part.size_bytes for part in manifest.parts}


def digest(data: bytes) -> str:
    """Returns the BLAKE3, hex: what parts are called by, and what a checkpoint says of its manifest."""
    return blake3(data).hexdigest()


def prefix(job_uid: str) -> str:
    """Returns where all objects of a job are; raises ValueError for what is no uid."""
    if not re.fullmatch(UID, job_uid):
        raise ValueError(f"{job_uid!r} is not the uid of a job")
    return f"checkpoints/{job_uid}/"


def part_key(job_uid: str, part: str) -> str:
    return f"{prefix(job_uid)}parts/{part}"


def key_of(checkpoint: Checkpoint, bucket: str) -> str:
    """Returns the key of a checkpoint's manifest; raises ManifestInvalid if it is not in this bucket."""
    uri = urlsplit(checkpoint.uri)
    if (uri.scheme, uri.netloc) != ("s3", bucket):
        raise ManifestInvalid(f"is not in the bucket {bucket}")
    return uri.path.lstrip("/")


def collecting_prefix(job_uid: str) -> str:
    """Returns where it is noted that parts of a job's retired checkpoints are being removed."""
    return f"{prefix(job_uid)}collecting/"


def manifest_prefix(job_uid: str) -> str:
    return f"{prefix(job_uid)}manifests/"


def manifest_key(job_uid: str, checkpoint: str) -> str:
    return f"{manifest_prefix(job_uid)}{checkpoint}.json"

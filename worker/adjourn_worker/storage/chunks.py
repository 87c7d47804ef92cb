"""How a snapshot is cut into chunks, and which of them a checkpoint takes from the one before.

A chunk is what is compared; a part, which is a request, is what is stored. A tensor is cut from its own beginning, into
chunks that suit its size: so a tensor that grows, or comes to be, leaves those of the others as they are. New chunks of
one checkpoint are packed into as few parts as hold them. A part of which little is still used is not used any more:
what a restore reads is never more than twice the state, nor what an old checkpoint keeps from being removed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from adjourn import manifests
from adjourn.manifests import PART_BYTES
from adjourn.v1.manifest_pb2 import Manifest

SMALLEST: Final = 8 << 10
"""Bytes of a chunk, at least, but for what is left over: it takes about 50 in the manifest."""
LARGEST: Final = 1 << 20
MOST: Final = 8192
"""Chunks of a file: more of them are made larger."""
SHARE: Final = 64
"""Of a tensor is a chunk, as far as the limits let it."""
STATE_CHUNK: Final = 4 << 10
"""The same, at least, of `state.json`: little of it changes, and it is small."""


def cut(sizes: Sequence[int], smallest: int = SMALLEST) -> list[int]:
    """Returns the sizes of the chunks of a file that has pieces of these sizes, tensors for instance, one by one.

    Small pieces that follow one another share a chunk.
    """
    smallest = min(max(smallest, power_of_two(sum(sizes) // MOST)), PART_BYTES // 2)
    chunks: list[int] = []
    gathered = 0
    for size in sizes:
        if size < smallest:
            gathered += size
            if gathered >= smallest:
                chunks.append(gathered)
                gathered = 0
            continue
        if gathered:
            chunks.append(gathered)
            gathered = 0
        length = min(max(smallest, min(LARGEST, power_of_two(size // SHARE))), PART_BYTES)
        chunks += [length] * (size // length)
        if rest := size % length:
            chunks.append(rest)
    return [*chunks, gathered] if gathered else chunks


def power_of_two(number: int) -> int:
    """Returns the largest power of two that is not larger; 0 for 0."""
    return 1 << number.bit_length() >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a chunk is stored."""

    part: str
    """Digest of the part."""
    offset: int
    size: int


def stored(manifest: Manifest) -> dict[bytes, Place]:
    """Returns where each chunk of a checkpoint is, by its digest."""
    found: dict[bytes, Place] = {}
    for file in manifest.files:
        spans = iter(file.spans)
        part, offset, left = "", 0, 0
        for size, digest in manifests.chunks(file):
            if not left:
                span = next(spans)
                part, offset, left = manifest.parts[span.part].digest, span.offset, span.size_bytes
            found.setdefault(digest, Place(part=part, offset=offset, size=size))
            offset, left = offset + size, left - size
    return found


def reusable(base: Manifest, chunks: Mapping[bytes, int]) -> dict[bytes, Place]:
    """Returns the chunks that are taken from `base`, of `chunks` with their sizes: from parts of which half is used."""
    found = {digest: place for digest, place in stored(base).items() if chunks.get(digest) == place.size}
    used: dict[str, int] = {}
    for place in found.values():
        used[place.part] = used.get(place.part, 0) + place.size
    sizes = {part.digest: part.size_bytes for part in base.parts}
    return {digest: place for digest, place in found.items() if 2 * used[place.part] >= sizes[place.part]}


def packed(chunks: Iterable[tuple[bytes, int]]) -> Iterator[list[bytes]]:
    """Returns which chunks go into one part, in order, for their digests and sizes."""
    pack: list[bytes] = []
    filled = 0
    for digest, size in chunks:
        if pack and filled + size > PART_BYTES:
            yield pack
            pack, filled = [], 0
        pack.append(digest)
        filled += size
    if pack:
        yield pack


def spans(places: Iterable[Place], numbers: Mapping[str, int]) -> list[Manifest.Span]:
    """Returns the spans of a file whose chunks are at these places; `numbers` are those of the parts, by digest."""
    found: list[Manifest.Span] = []
    for place in places:
        number = numbers[place.part]
        if found and found[-1].part == number and found[-1].offset + found[-1].size_bytes == place.offset:
            found[-1].size_bytes += place.size
        else:
            found.append(Manifest.Span(part=number, offset=place.offset, size_bytes=place.size))
    return found

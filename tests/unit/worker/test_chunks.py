"""What a checkpoint takes from the one before, and what a restore finds where it is looked for."""

import secrets
from dataclasses import dataclass, field
from itertools import accumulate

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from adjourn.manifests import PART_BYTES, check_file, check_parts, digest, distinct_parts, places, total_size
from adjourn.v1.manifest_pb2 import Manifest
from adjourn_worker.storage import chunks
from adjourn_worker.storage.chunks import Place, cut, packed, reusable, spans


@given(st.lists(st.integers(0, 3 << 20)), st.sampled_from([chunks.SMALLEST, chunks.STATE_CHUNK]))
def test_chunks_are_all_of_a_file_and_none_is_empty_or_larger_than_a_part(sizes: list[int], smallest: int) -> None:
    found = cut(sizes, smallest)
    assert sum(found) == sum(sizes)
    assert all(0 < chunk <= chunks.LARGEST for chunk in found)


@pytest.mark.parametrize("total", [5 << 20, 500 << 20, 50 << 30, 500 << 30])
@pytest.mark.parametrize("tensors", [1, 100, 10_000])
def test_a_file_has_few_chunks_however_large_it_is(total: int, tensors: int) -> None:
    found = cut([total // tensors] * tensors)
    assert len(found) < 4 * chunks.MOST + tensors + total / (4 << 20)
    assert max(found) <= PART_BYTES


@given(st.lists(st.integers(1, 200_000), min_size=1), st.data())
def test_a_tensor_that_comes_to_be_leaves_the_chunks_of_later_ones(sizes: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(sizes)))
    large = next((index for index in range(place, len(sizes)) if sizes[index] >= chunks.SMALLEST), len(sizes))
    after = len(cut(sizes[large:]))
    before, grown = cut(sizes), cut([*sizes[:place], 70_001, *sizes[place:]])
    assert before[len(before) - after :] == grown[len(grown) - after :]


def test_chunks_are_smaller_in_a_small_tensor() -> None:
    assert set(cut([1 << 20])) == {16 << 10}
    assert set(cut([16 << 20])) == {256 << 10}
    assert set(cut([256 << 20])) == {1 << 20}
    assert cut([100, 200, 300]) == [600]


@dataclass
class Storage:
    """Parts in a dictionary, and checkpoints made by the rules of `persist`."""

    parts: dict[str, bytes] = field(default_factory=dict)
    sent: int = 0

    def keep(self, files: dict[str, bytes], base: Manifest | None) -> Manifest:
        pieces = {name: split(data) for name, data in files.items()}
        wanted = {blake3(piece).digest(): piece for found in pieces.values() for piece in found}
        sizes = {key: len(piece) for key, piece in wanted.items()}
        found = reusable(base, sizes) if base else {}
        self.sent = 0
        for pack in packed((key, size) for key, size in sizes.items() if key not in found):
            data = b"".join(wanted[key] for key in pack)
            self.parts[digest(data)] = data
            self.sent += len(data)
            for key, offset in zip(pack, accumulate((sizes[key] for key in pack), initial=0), strict=False):
                found[key] = Place(part=digest(data), offset=offset, size=sizes[key])
        order = list(dict.fromkeys(found[blake3(piece).digest()].part for each in pieces.values() for piece in each))
        made = Manifest(parts=[Manifest.Part(digest=part, size_bytes=len(self.parts[part])) for part in order])
        numbers = {part: number for number, part in enumerate(order)}
        for name, row in pieces.items():
            keys = [blake3(piece).digest() for piece in row]
            made.files.add(
                name=name,
                spans=spans((found[key] for key in keys), numbers),
                chunk_sizes=map(len, row),
                chunk_digests=b"".join(keys),
            )
        check_parts(made)
        for file in made.files:
            check_file(file, made.parts)
        return made

    def restored(self, manifest: Manifest) -> dict[str, bytes]:
        whole = {file.name: bytearray(sum(file.chunk_sizes)) for file in manifest.files}
        for part, wanted in places(manifest).items():
            for place in wanted:
                size = place.end - place.begin
                whole[place.file][place.offset : place.offset + size] = self.parts[part][place.begin : place.end]
        return {name: bytes(data) for name, data in whole.items()}


def split(data: bytes, size: int = 4) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


@given(st.lists(st.dictionaries(st.sampled_from("ab"), st.binary(max_size=60), min_size=1), min_size=1, max_size=8))
def test_every_checkpoint_comes_back_and_what_is_read_for_it_is_bounded(states: list[dict[str, bytes]]) -> None:
    """Few values, so that much is equal, within a state and from one to the next."""
    storage = Storage()
    base = None
    for state in states:
        files = {name: bytes(value % 3 for value in data) for name, data in state.items()}
        base = storage.keep(files, base)
        assert storage.restored(base) == files
        distinct = {piece for data in files.values() for piece in split(data)}
        assert sum(distinct_parts(base).values()) <= 2 * sum(map(len, distinct))


def test_a_part_of_which_less_than_half_is_used_is_given_up() -> None:
    storage = Storage()
    old = [secrets.token_bytes(4) for _ in range(10)]
    base = storage.keep({"a": b"".join(old)}, None)
    half = storage.keep({"a": b"".join(old[:5]) + bytes(4)}, base)
    assert (storage.sent, len(half.parts)) == (4, 2)
    fewer = storage.keep({"a": b"".join(old[:4]) + bytes(4)}, half)
    assert storage.sent == 16, "what was left of it"
    assert base.parts[0] not in fewer.parts


def test_equal_chunks_are_stored_once() -> None:
    storage = Storage()
    made = storage.keep({"a": bytes(4000), "b": bytes(8)}, None)
    assert (storage.sent, total_size(made)) == (4, 4008)

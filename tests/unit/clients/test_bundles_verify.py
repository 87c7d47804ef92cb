"""What `bundles.verify` refuses."""

import gzip
import io
import tarfile
import tracemalloc
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn.bundles import BundleInvalid, verify


def archive_of(*members: tuple[tarfile.TarInfo, bytes], **options: Any) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", **options) as archive:
        for member, body in members:
            member.size = member.size or len(body)
            archive.addfile(member, io.BytesIO(body.ljust(member.size, b"\0") if member.isreg() else b""))
    return packed.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info, b""


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ([member("/etc/passwd")], "leads out"),
        ([member("a/../../b")], "leads out"),
        ([member("..")], "leads out"),
        ([member("a", tarfile.SYMTYPE, linkname="/etc")], "neither a regular file"),
        ([member("a", tarfile.LNKTYPE, linkname="b")], "neither a regular file"),
        ([member("a", tarfile.CHRTYPE)], "neither a regular file"),
        ([member("a", tarfile.BLKTYPE)], "neither a regular file"),
        ([member("a", tarfile.FIFOTYPE)], "neither a regular file"),
        ([member("a", tarfile.CONTTYPE)], "neither a regular file"),
        ([member("a"), member("a")], "twice"),
        ([member("a"), member("./a")], "twice"),
        ([member("a"), member("a-b"), member("a/b")], "'a' is both a file and a directory"),
        ([member("a/b"), member("a")], "both a file and a directory"),
        ([member("a", tarfile.DIRTYPE), member("a")], "both a file and a directory"),
        ([member("a"), member("a", tarfile.DIRTYPE)], "twice"),
        ([member("."), member("a")], "both a file and a directory"),
        ([member("a/" * 600)], "too long a name"),
        ([member("a", tarfile.DIRTYPE)], "no file"),
        ([], "no file"),
    ],
)
def test_a_hostile_archive_is_refused(attack: list[tuple[tarfile.TarInfo, bytes]], reason: str) -> None:
    with pytest.raises(BundleInvalid, match=reason):
        verify(archive_of(*attack))


def test_a_sparse_file_is_refused() -> None:
    sparse = {"GNU.sparse.major": "0", "GNU.sparse.size": str(1 << 40), "GNU.sparse.map": f"0,1,{1 << 40},0"}
    with pytest.raises(BundleInvalid, match="neither a regular file"):
        verify(archive_of(member("a", pax_headers=sparse), format=tarfile.PAX_FORMAT))


def test_too_many_members_are_refused() -> None:
    with pytest.raises(BundleInvalid, match="over 10000 members"):
        verify(archive_of(*(member(f"{number}") for number in range(10_001)), compresslevel=1))
    with pytest.raises(BundleInvalid, match="over 10000 members"):
        verify(archive_of(*(member("same", tarfile.DIRTYPE) for _ in range(10_001)), compresslevel=1))


def bomb(*sizes: int) -> bytes:
    """Returns an archive of files of zeros, declared in full and followed by no more than a block."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=1) as zipped:
        for number, size in enumerate(sizes):
            info = tarfile.TarInfo(str(number))
            info.size = size
            zipped.write(info.tobuf(tarfile.GNU_FORMAT))
            for _ in range(size >> 20 if number < len(sizes) - 1 else 0):
                zipped.write(bytes(1 << 20))
    return packed.getvalue()


@pytest.mark.parametrize("sizes", [(1 << 40,), (200 << 20, 300 << 20, 13 << 20)])
def test_a_bomb_fills_no_memory(sizes: tuple[int, ...]) -> None:
    data = bomb(*sizes)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    with pytest.raises(BundleInvalid, match=r"unpacks to over 512\.0 MiB"):
        verify(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - before < 4 << 20


def test_a_header_that_fills_memory_is_refused() -> None:
    with pytest.raises(BundleInvalid, match="a header asks for"):
        verify(archive_of(member("a", pax_headers={"comment": "x" * (1 << 20)}), format=tarfile.PAX_FORMAT))


def test_global_headers_that_fill_memory_are_refused() -> None:
    headers = {f"comment{number}": "x" for number in range(101)}
    with pytest.raises(BundleInvalid, match="too many headers"):
        verify(archive_of(member("a"), format=tarfile.PAX_FORMAT, pax_headers=headers))


def test_headers_without_end_are_refused() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 512
    header = info.tobuf(tarfile.GNU_FORMAT) + b"6 a=b\n".ljust(512, b"\0")
    with pytest.raises(BundleInvalid, match="recursion"):
        verify(gzip.compress(header * 5000))


def test_what_is_hidden_behind_the_end_is_refused() -> None:
    plain = gzip.decompress(archive_of(member("a")))
    with pytest.raises(BundleInvalid, match="after its end"):
        verify(gzip.compress(plain + b"more"))


@pytest.mark.parametrize(
    "data", [b"", b"PK\3\4 a zip", gzip.compress(b""), gzip.compress(b"no tar" * 200), b"\x1f\x8b\x08\0\0\0\0\0\0\xff"]
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(BundleInvalid, match="not a gzip'ed tar"):
        verify(data)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    body = bytearray(gzip.decompress(archive_of(member("a"), member("b/c"), format=tarfile.PAX_FORMAT)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    packed = gzip.compress(bytes(body[:cut]), compresslevel=1)
    try:
        verify(packed)
    except BundleInvalid:
        return
    with TemporaryDirectory() as directory, tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(directory, filter="data")


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_in_one_way(body: bytes) -> None:
    for data in (body, gzip.compress(body)):
        with pytest.raises(BundleInvalid):
            verify(data)

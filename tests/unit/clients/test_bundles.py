"""What `bundles.pack` makes of the files of users, and what `bundles.verify` refuses."""

import gzip
import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn import bundles
from adjourn.bundles import BundleInvalid, pack, verify

NAMES = st.text("abcdefghijklmnopqrstuvwxyzäÖ_0123456789 .-", min_size=1, max_size=30).filter(
    lambda name: name.strip(" .") == name and name not in bundles.LEFT_OUT and not name.endswith((".pyc", ".pyo"))
)
TREES = st.dictionaries(NAMES, st.binary(max_size=2000), min_size=1, max_size=6)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("def main(run): ...\n")
    return path


def contents(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]


@given(tree=TREES, times=st.integers(0, 2**31))
@settings(max_examples=40)
def test_the_same_files_give_the_same_bytes(tree: dict[str, bytes], times: int) -> None:
    def packed(names: list[str], time: int, mode: int) -> bytes:
        with TemporaryDirectory() as directory:
            root = Path(directory, "package")
            root.mkdir()
            for name in names:
                (root / name).write_bytes(tree[name])
                (root / name).chmod(mode)
                os.utime(root / name, (time, time))
            return pack(None, [root])

    first, second = packed(sorted(tree), 0, 0o644), packed(sorted(tree, reverse=True), times, 0o755)
    assert first == second
    verify(first)
    assert contents(first) == {f"package/{name}": body for name, body in tree.items()}


def test_script_and_includes_lie_side_by_side(script: Path, tmp_path: Path) -> None:
    package = tmp_path / "src" / "nets"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "cnn.py").write_text("x = 1\n")
    extra = tmp_path / "src" / "extra.py"
    extra.write_text("y = 2\n")
    data = pack(script, [package, extra, script])
    verify(data)
    assert sorted(contents(data)) == ["extra.py", "nets/__init__.py", "nets/deep/cnn.py", "train.py"]


def test_owner_time_and_mode_are_left_out(script: Path) -> None:
    script.chmod(0o4755)
    with tarfile.open(fileobj=io.BytesIO(pack(script))) as archive:
        (found,) = archive.getmembers()
    assert (found.uid, found.gid, found.uname, found.gname, found.mtime, found.mode) == (0, 0, "", "", 0, 0o644)


def test_caches_and_version_control_are_left_out(tmp_path: Path) -> None:
    package = tmp_path / "nets"
    for name in ("__pycache__/a.pyc", ".git/config", "deep/__pycache__/b.pyc", "deep/b.py", "stale.pyc", ".DS_Store"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text("x")
    (package / ".venv").symlink_to("/usr")
    assert list(contents(pack(None, [package]))) == ["nets/deep/b.py"]


def test_the_current_directory_goes_under_its_own_name(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (script.parent / "here").mkdir()
    (script.parent / "here" / "a.py").write_text("")
    monkeypatch.chdir(script.parent / "here")
    assert list(contents(pack(None, [Path()]))) == ["here/a.py"]


def test_a_link_inside_becomes_what_it_shows(tmp_path: Path) -> None:
    package = tmp_path / "nets"
    package.mkdir()
    (package / "a.py").write_text("a")
    (package / "b.py").symlink_to("a.py")
    data = pack(None, [package])
    verify(data)
    assert contents(data) == {"nets/a.py": b"a", "nets/b.py": b"a"}


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda root: (root / "x").symlink_to("/etc/passwd"), "leads out of"),
        (lambda root: (root / "x").symlink_to(root.parent), "leads out of"),
        (lambda root: (root / "x").symlink_to("missing"), "to nothing"),
        (lambda root: (root / "x").symlink_to("."), "link to a directory"),
        (lambda root: (root / "x").symlink_to("x"), "to nothing"),
        (lambda root: os.mkfifo(root / "x"), "neither a file nor a directory"),
    ],
)
def test_what_no_worker_could_unpack_is_refused(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    root = tmp_path / "nets"
    root.mkdir()
    make(root)
    with pytest.raises(BundleInvalid, match=reason):
        pack(None, [root])


def test_two_files_of_one_name_are_refused(script: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "train.py"
    other.parent.mkdir()
    other.write_text("")
    with pytest.raises(BundleInvalid, match=r"would both be train\.py"):
        pack(script, [other])


def test_what_is_not_there_is_told(script: Path) -> None:
    with pytest.raises(BundleInvalid, match=r"nets does not exist"):
        pack(script, [Path("nets")])
    with pytest.raises(BundleInvalid, match="no regular file"):
        pack(script, [Path(os.devnull)])
    with pytest.raises(BundleInvalid, match="no file in it"):
        pack(None)


def test_a_file_that_cannot_be_read_is_told(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> object:
        raise PermissionError(13, "Permission denied", "train.py")

    monkeypatch.setattr(Path, "open", locked)
    with pytest.raises(BundleInvalid, match=r"train\.py: Permission denied"):
        pack(script)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("train-me.py", "'train-me' must be a Python identifier"),
        ("2nd.py", "identifier"),
        ("class.py", "identifier"),
        ("random.py", "would hide the module 'random'"),
        ("torch.py", "would hide"),
    ],
)
def test_a_script_must_be_importable_by_its_name(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(BundleInvalid, match=reason):
        pack(tmp_path / name)
    assert bundles.module_name(Path("some/where/train.py")) == "train"


@pytest.mark.parametrize(
    ("name", "limit", "reason"),
    [
        ("BUNDLE_LIMIT_BYTES", 2000, r"packed.*largest file is data\.bin"),
        ("UNPACKED_LIMIT_BYTES", 2000, r"of files.*largest file is data\.bin"),
        ("MEMBER_LIMIT", 1, "2 files; at most 1"),
    ],
)
def test_limits_are_told_before_anything_is_sent(
    script: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: int, reason: str
) -> None:
    (script.parent / "data.bin").write_bytes(os.urandom(3000))
    monkeypatch.setattr(bundles, name, limit)
    with pytest.raises(BundleInvalid, match=reason):
        pack(script, [script.parent / "data.bin"])


def test_a_bundle_cut_short_is_refused(script: Path) -> None:
    data = pack(script)
    for cut in range(len(data)):
        with pytest.raises(BundleInvalid):
            verify(data[:cut])


def test_bundles_need_no_grpc() -> None:
    import subprocess
    import sys

    program = "import sys, adjourn, adjourn.bundles, adjourn.errors, adjourn.channel; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_the_place_of_a_bundle_in_object_storage() -> None:
    assert bundles.object_key("bundles/ab12") == "bundles/ab12.tar.gz"


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
    "data",
    [
        b"",
        b"PK\3\4 a zip",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"no tar" * 200, mtime=0),
        b"\x1f\x8b\x08\0\0\0\0\0\0\xff",
    ],
)
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(BundleInvalid, match="not a gzip'ed tar"):
        verify(data)


@given(data=st.data())
@settings(max_examples=300)
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
@settings(max_examples=200)
def test_any_bytes_are_refused_in_one_way(body: bytes) -> None:
    for data in (body, gzip.compress(body)):
        with pytest.raises(BundleInvalid):
            verify(data)

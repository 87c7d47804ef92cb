"""The files of a run in a snapshot: packed, listed, unpacked."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adjourn import outputs
from adjourn.outputs import OutputFile, OutputsInvalid, decode

PATHS = st.text("ab/.ü \\", min_size=1, max_size=6).filter(outputs.is_inside)
TREES = st.dictionaries(PATHS, st.binary(max_size=50), max_size=5).filter(
    lambda tree: not any(other.startswith(f"{path}/") for path in tree for other in tree)
)


def write(directory: Path, tree: dict[str, bytes]) -> None:
    for path, content in tree.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)


def read(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def listed(tree: dict[str, bytes]) -> list[OutputFile]:
    files: list[OutputFile] = []
    for path, content in sorted(tree.items()):
        files.append(OutputFile(path=path, size=len(content), offset=sum(file.size for file in files)))
    return files


@given(tree=TREES, other=TREES)
@settings(max_examples=60)
def test_what_is_packed_is_unpacked_whatever_was_there(tree: dict[str, bytes], other: dict[str, bytes]) -> None:
    with TemporaryDirectory() as directory:
        source, slot, into = (Path(directory, name) for name in ("source", "slot", "into"))
        for path in (source, slot, into):
            path.mkdir()
        write(source, other)
        outputs.pack(source, listed(other), slot)
        outputs.unpack(slot, source)
        write(source / "new", tree)
        write(into, other)
        size = outputs.pack(source / "new", listed(tree), slot)
        assert size == sum(path.stat().st_size for path in slot.iterdir())
        assert {path.name for path in slot.iterdir()} == (set(outputs.FILES) if tree else set())
        if tree:
            assert decode((slot / outputs.INDEX).read_bytes()) == listed(tree)
        outputs.unpack(slot, into)
        assert read(into) == tree


@pytest.mark.parametrize(
    "paths",
    [
        ["/a"],
        ["../a"],
        ["a/../b"],
        ["a//b"],
        ["./a"],
        [""],
        ["a\0"],
        ["a/"],
        ["a", "a"],
        ["a/b", "a"],
        ["a", "a b", "a/b"],
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(paths: list[str]) -> None:
    data = json.dumps({"format": 1, "files": [{"path": path, "size": 1} for path in paths]}).encode()
    with pytest.raises(OutputsInvalid):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"format":2,"files":[]}',
        b'{"format":1}',
        b'{"format":1,"files":[{"path":"a","size":-1}]}',
        b"\xff",
    ],
)
def test_what_is_no_index_is_refused(data: bytes) -> None:
    with pytest.raises(OutputsInvalid, match=outputs.INDEX):
        decode(data)


def test_files_that_change_while_they_are_packed_are_there_as_far_as_they_are(tmp_path: Path) -> None:
    files = listed({"cut": b"12345", "gone": b"123", "grown": b"1"})
    write(tmp_path, {"cut": b"12", "grown": b"123456"})
    (tmp_path / "slot").mkdir()
    outputs.pack(tmp_path, files, tmp_path / "slot")
    outputs.unpack(tmp_path / "slot", tmp_path / "into")
    assert read(tmp_path / "into") == {"cut": b"12", "grown": b"1"}


def test_content_that_ends_early_is_told(tmp_path: Path) -> None:
    (tmp_path / outputs.INDEX).write_bytes(outputs.encode(listed({"a": b"12"})))
    (tmp_path / outputs.DATA).write_bytes(b"1")
    with pytest.raises(OutputsInvalid, match="ends within a"):
        outputs.unpack(tmp_path, tmp_path / "into")


def test_who_appends_goes_on_behind_what_was_put_back(tmp_path: Path) -> None:
    for name in ("slot", "into"):
        (tmp_path / name).mkdir()
    write(tmp_path / "into", {"log": b"one\n"})
    outputs.pack(tmp_path / "into", listed({"log": b"one\n"}), tmp_path / "slot")
    write(tmp_path / "into", {"other": b"stays"})
    with (tmp_path / "into" / "log").open("a") as log:
        print("twice", file=log, flush=True)
        outputs.put(tmp_path / "slot", tmp_path / "into")
        print("two", file=log)
    assert read(tmp_path / "into") == {"log": b"one\ntwo\n", "other": b"stays"}

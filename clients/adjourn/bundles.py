"""Bundles: a user's code as an archive. The client packs it, the control plane verifies it, a worker unpacks it.

The same files always give the same bytes, hence the same `bundles/{sha256}`. Imports no grpc.
"""

import gzip
import io
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import pairwise
from keyword import iskeyword
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from adjourn.channel import BUNDLE_LIMIT_BYTES

PREFIX: Final = "bundles/"
SUFFIX: Final = ".tar.gz"
"""Of keys in object storage."""
UNPACKED_LIMIT_BYTES: Final = 512 << 20
MEMBER_LIMIT: Final = 10_000
READ_LIMIT_BYTES: Final = 64 << 10
"""Most bytes read at once; only a hostile header asks for more."""

NAME_LIMIT: Final = 1024
"""Characters in the name of a member."""
GLOBAL_HEADERS: Final = 100

PLAIN: Final = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE})
PRELOADED: Final = frozenset({"adjourn", "adjourn_worker", "numpy", "torch"})
"""Modules that the process has loaded before it imports a script."""

LEFT_OUT: Final = frozenset(
    {
        "__pycache__", ".git", ".hg", ".svn", ".venv", ".tox", ".mypy_cache", ".pytest_cache", ".ruff_cache",
        ".ipynb_checkpoints", ".DS_Store", "node_modules",
    }
)  # fmt: skip
LEFT_OUT_SUFFIXES: Final = frozenset({".pyc", ".pyo"})


class BundleInvalid(ValueError):
    """Files that cannot become a bundle, or bytes that are none; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def module_name(script: Path) -> str:
    """Returns the name under which a worker imports `script`; raises BundleInvalid if it cannot be imported."""
    name = script.stem
    if not name.isidentifier() or iskeyword(name):
        why = f"{script.name} is imported on the worker, so {name!r} must be a Python identifier"
        raise BundleInvalid(f"{why}: {advice(name)}")
    if name in sys.stdlib_module_names or name in PRELOADED:
        raise BundleInvalid(f"{script.name} would hide the module {name!r} that Python or torch needs: rename it")
    return name


def advice(name: str) -> str:
    """Says to rename a module, to a name that is like its own if there is one that can be imported."""
    like = re.sub(r"\W", "_", name)
    return f"rename it, to {like}.py for example" if like.isidentifier() and not iskeyword(like) else "rename it"


def pack(script: Path | None, include: Sequence[Path] = ()) -> bytes:
    """Returns a .tar.gz with `script` at its root, and each included file or directory under its own name.

    Caches and version control are left out. Raises BundleInvalid: a path that does not exist or cannot be read, a
    link that leads out of its directory, two things of one name, too many or too large files.
    """
    if script is not None:
        module_name(script)
    try:
        return packed(collected([script, *include] if script else include))
    except OSError as error:
        raise BundleInvalid(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


def packed(files: Mapping[str, Path]) -> bytes:
    if not files:
        raise BundleInvalid("there is no file in it")
    if len(files) > MEMBER_LIMIT:
        raise BundleInvalid(f"{len(files)} files; at most {MEMBER_LIMIT} are accepted")
    sizes = {name: source.stat().st_size for name, source in files.items()}
    if sum(sizes.values()) > UNPACKED_LIMIT_BYTES:
        raise too_large(f"{mebibytes(sum(sizes.values()))} of files", UNPACKED_LIMIT_BYTES, sizes)
    data = archived(files)
    if len(data) > BUNDLE_LIMIT_BYTES:
        raise too_large(f"{mebibytes(len(data))} packed", BUNDLE_LIMIT_BYTES, sizes)
    return data


def collected(paths: Iterable[Path], names: Mapping[Path, PurePosixPath] = MappingProxyType({})) -> Mapping[str, Path]:
    """Returns every file below `paths`, by its name in the bundle; a path without one in `names` has its own name."""
    files: dict[str, Path] = {}
    for path in paths:
        root = Path(os.path.realpath(path))  # Path.resolve() raises RuntimeError for a link to itself
        own = names.get(path) or PurePosixPath(root.name if path.name in ("", "..") else path.name)
        found = [(own, root)] if not root.is_dir() else [(own / inner, root / inner) for inner in inside(root)]
        for name, source in found:
            if not source.is_file():
                raise BundleInvalid(f"{path} {'is no regular file' if source.exists() else 'does not exist'}")
            if files.setdefault(str(name), source).resolve() != source.resolve():
                raise BundleInvalid(f"{source} and {files[str(name)]} would both be {name} in the bundle")
    return files


def inside(root: Path) -> Iterator[PurePosixPath]:
    """Yields the files under a directory; raises BundleInvalid for what no worker could unpack."""
    for folder, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for name in (*folders, *names):
            found = Path(folder, name)
            if name in LEFT_OUT or found.suffix in LEFT_OUT_SUFFIXES:
                continue
            target = Path(os.path.realpath(found))
            if found.is_symlink() and not target.is_relative_to(root):
                raise BundleInvalid(f"{found} is a link that leads out of {root}")
            if found.is_symlink() and not target.is_file():
                raise BundleInvalid(f"{found} is a link to a directory, or to nothing")
            if target.is_file():
                yield PurePosixPath(*found.relative_to(root).parts)
            elif not target.is_dir():
                raise BundleInvalid(f"{found} is neither a file nor a directory")


def refuse(error: OSError) -> None:
    """Makes os.walk raise errors, which it would ignore."""
    raise error


def archived(files: Mapping[str, Path]) -> bytes:
    archive_bytes = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=archive_bytes, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name in sorted(files):
            with files[name].open("rb") as source:
                member = tarfile.TarInfo(name)  # owner 0, time 0, no owner's name
                member.mode = 0o644
                member.size = os.fstat(source.fileno()).st_size
                archive.addfile(member, source)
    return archive_bytes.getvalue()


def too_large(what: str, limit: int, sizes: Mapping[str, int]) -> BundleInvalid:
    largest = max(sizes, key=lambda name: sizes[name])
    return BundleInvalid(
        f"{what}, at most {mebibytes(limit)} are accepted; the largest file is {largest} ({mebibytes(sizes[largest])})"
    )


def mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def verify(data: bytes) -> None:
    """Checks that `data` can be unpacked safely; raises BundleInvalid. Unpacks only a little at a time."""
    try:
        with Unzipping(fileobj=io.BytesIO(data)) as zipped:
            with tarfile.open(fileobj=zipped, mode="r:") as archive:
                check_members(archive)
            check_rest(zipped)
    except BundleInvalid:
        raise
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise BundleInvalid(f"it is not a gzip'ed tar archive: {error}") from error


class Unzipping(gzip.GzipFile):
    """A gzip reader that only goes forward, in small steps, up to the limit."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= READ_LIMIT_BYTES:
            raise BundleInvalid(f"a header asks for {size} bytes")
        data = super().read(size)
        self.allow(self.tell())
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR and offset == 0:  # this is how tell() asks
            return super().seek(0, io.SEEK_CUR)
        if whence != io.SEEK_SET or offset < self.tell():
            raise BundleInvalid("a member has an impossible size")
        self.allow(offset)  # before anything is unpacked
        return super().seek(offset)

    def allow(self, position: int) -> None:
        if position > UNPACKED_LIMIT_BYTES:
            raise BundleInvalid(f"it unpacks to over {mebibytes(UNPACKED_LIMIT_BYTES)}")


def check_members(archive: tarfile.TarFile) -> None:
    files: set[tuple[str, ...]] = set()
    folders: set[tuple[str, ...]] = {()}
    for count in range(MEMBER_LIMIT + 1):
        if (member := archive.next()) is None:
            break
        archive.members = []  # type: ignore[attr-defined]  # or it keeps them all, extended headers included
        if count == MEMBER_LIMIT:
            raise BundleInvalid(f"it has over {MEMBER_LIMIT} members")
        if len(member.name) > NAME_LIMIT or len(archive.pax_headers) > GLOBAL_HEADERS:
            raise BundleInvalid(f"{member.name[:NAME_LIMIT]!r} has too long a name, or too many headers")
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or "\0" in member.name:
            raise BundleInvalid(f"{member.name!r} leads out of the bundle")
        if member.type not in PLAIN or member.issparse():
            raise BundleInvalid(f"{member.name!r} is neither a regular file nor a directory")
        if path.parts in files:
            raise BundleInvalid(f"{member.name!r} is in it twice")
        (folders if member.isdir() else files).add(path.parts)
    check_tree(files, folders)


def check_tree(files: AbstractSet[tuple[str, ...]], folders: AbstractSet[tuple[str, ...]]) -> None:
    """Raises BundleInvalid if there is no file, or if a file would have to be a directory as well."""
    if not files:
        raise BundleInvalid("there is no file in it")
    for path, following in pairwise(sorted(files | folders)):  # what lies in a directory follows it
        if path in files and following[: len(path)] == path:
            raise BundleInvalid(f"{'/'.join(path)!r} is both a file and a directory")
    if clash := sorted(files & folders):
        raise BundleInvalid(f"{'/'.join(clash[0])!r} is both a file and a directory")


def check_rest(zipped: Unzipping) -> None:
    """Reads to the end, where gzip has its checksum; only padding may follow the last member."""
    while rest := zipped.read(READ_LIMIT_BYTES):
        if rest.strip(b"\0"):
            raise BundleInvalid("it goes on after its end, or is damaged")


def object_key(bundle: str) -> str:
    """Returns the key under which object storage has the bundle `bundles/{sha256}`."""
    return f"{bundle}{SUFFIX}"


def of_key(key: str) -> str:
    """Returns the bundle `bundles/{sha256}` that object storage has under a key; empty if the key is no bundle's."""
    bundle = key.removesuffix(SUFFIX)
    return bundle if key == object_key(bundle) and re.fullmatch(f"{PREFIX}[0-9a-f]{{64}}", bundle) else ""

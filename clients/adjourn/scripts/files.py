"""Gathers the files that a script needs from its own folder: modules, packages as a whole, and what is included.

A file that is not Python goes along with a package if it is small. What `.gitignore` leaves out stays, unless it is
asked for. The imports are those that the text shows: code is not run.
"""

import os
import sys
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from adjourn.bundles import (
    LEFT_OUT,
    LEFT_OUT_SUFFIXES,
    PRELOADED,
    BundleInvalid,
    collected,
    mebibytes,
    module_name,
    refuse,
)
from adjourn.scripts import source
from adjourn.scripts.errors import ScriptInvalid
from adjourn.scripts.ignored import GITIGNORE, Ignored

SMALL_BYTES: Final = 1 << 20
"""Size of a file that goes along with a package though it is not Python."""
SMALL_TOTAL_BYTES: Final = 8 << 20
"""Size of all of them in a package; of a package with more, none goes along."""
ENVIRONMENT: Final = "pyvenv.cfg"
"""File that makes a directory a virtual environment."""
PATH_LIMIT: Final = 200
"""Bytes of a text that may name a file."""


@dataclass(slots=True, kw_only=True)
class ScriptFiles:
    """What goes along with a script, and what does not."""

    files: dict[str, Path] = field(default_factory=dict)
    """By the name in the bundle."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Files of the script's folder that it may want, and why they stay: a size, `.gitignore`, or who names them."""


def gather(script: Path | None, function: str = "", include: Sequence[Path] = ()) -> ScriptFiles:
    """Returns the files of a script, those it imports from its folder, and the included ones.

    An included path in the script's folder keeps its place there, unless it is Python code: that goes to the root, so
    that it can be imported by its own name, as does what lies elsewhere. Raises ScriptInvalid, BundleInvalid.
    """
    try:
        return gathered(script, function, include)
    except OSError as error:
        raise BundleInvalid(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error


def gathered(script: Path | None, function: str, include: Sequence[Path]) -> ScriptFiles:
    if script is None:
        return ScriptFiles(files=dict(collected(include)))
    module_name(script)
    folder = Path(os.path.realpath(script)).parent
    found = Gathering(folder)
    found.follow(script, function)
    names = {path: place for path in include if (place := place_below(folder, path))}
    taken = ScriptFiles(files=dict(collected([script, *include], names)))
    for name, path in found.files.items():
        taken.files.setdefault(name, path)
    taken.left_out = {
        name: why
        for name, why in found.left_out.items()
        if name not in taken.files and not any(each.startswith(f"{name}/") for each in taken.files)
    }
    return taken


def place_below(folder: Path, path: Path) -> PurePosixPath | None:
    """Returns the place of what is no Python code below the script's folder; None for everything else."""
    real = Path(os.path.realpath(path))
    if real == folder or not real.is_relative_to(folder) or is_code(real):
        return None
    return PurePosixPath(*real.relative_to(folder).parts)


def is_code(path: Path) -> bool:
    """Tells whether a path is a module, or a directory that holds some."""
    return path.suffix == ".py" or (path.is_dir() and any(each.suffix == ".py" for each in path.iterdir()))


class Gathering:
    """Follows imports from a script through its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}
        self.left_out: dict[str, str] = {}
        self._ignored = Ignored(folder)
        self._packages: set[str] = set()
        self._todo: deque[tuple[Path, bool]] = deque()
        """Modules to look at; whether the script imports them for certain, so that they must be whole."""

    def follow(self, script: Path, function: str) -> None:
        """Finds what the script imports; raises ScriptInvalid if it or a module that it imports cannot be imported."""
        text = self._read(script, (), certain=True)
        if text and text.outside:
            raise ScriptInvalid(
                f"{script.name}, line {text.outside}: a script is imported by itself, so it has no package that a"
                " relative import could lead to: import by the whole name"
            )
        if text and function and text.defines is not None and function not in text.defines:
            there = ", ".join(sorted(name for name in text.defines if not name.startswith("_"))[:8])
            raise ScriptInvalid(f"{script.name} has no function {function!r}{there and f'; it has {there}'}")
        seen: set[Path] = {Path(os.path.realpath(script))}
        self._take(text, script.name, certain=True)
        while self._todo:
            path, certain = self._todo.popleft()
            if path not in seen:
                seen.add(path)
                found = self._read(path, path.relative_to(self.folder).parent.parts, certain=certain)
                self._take(found, self._name(path), certain=certain)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _read(self, path: Path, package: tuple[str, ...], *, certain: bool) -> source.Source | None:
        try:
            return source.read(path.read_bytes(), str(path), package)
        except SyntaxError as error:
            why = syntax_error(path.name if not package else self._name(path), error)
        except (ValueError, RecursionError, MemoryError) as error:
            why = f"{path.name} cannot be read as Python: {error}"
        if certain:
            raise ScriptInvalid(why)
        return None  # nobody is known to import it

    def _take(self, text: source.Source | None, name: str, *, certain: bool) -> None:
        """Takes what a module imports from the folder, to be looked at in turn."""
        if text is None:
            return
        for parts in sorted(text.imports):
            if parts and parts[0] in sys.stdlib_module_names | PRELOADED:
                self._refuse_hiding(parts[0], name)
                continue
            for path in self._modules(parts):
                if path in self._ignored:
                    self.left_out[self._name(path)] = GITIGNORE
                    break
                if len(path.relative_to(self.folder).parts) == 1:
                    self.files[path.name] = path
                else:
                    self._take_package(parts[0])
                if certain:
                    self._todo.appendleft((path, True))
                else:
                    self._todo.append((path, False))
        if certain:
            self._mention(text, name)

    def _refuse_hiding(self, module: str, importer: str) -> None:
        beside = self.folder / f"{module}.py"
        if module in sys.stdlib_module_names and beside.is_file():
            raise ScriptInvalid(f"{importer} imports {module!r}, and {beside.name} would hide Python's own: rename it")

    def _modules(self, parts: tuple[str, ...]) -> Iterator[Path]:
        """Yields the files that an import of `parts` loads from the folder, outermost first."""
        place = self.folder
        for part in parts:
            package, module = place / part / "__init__.py", place / f"{part}.py"
            if package.is_file():
                yield package
            elif module.is_file():
                yield module
                return
            place /= part
            if not place.is_dir():
                return

    def _take_package(self, name: str) -> None:
        """Takes all Python code of a package, and what else in it is small."""
        if name in self._packages:
            return
        self._packages.add(name)
        small: dict[str, Path] = {}
        for path in self._inside(self.folder / name):
            own, size = self._name(path), path.stat().st_size
            if path.suffix == ".py":
                self.files[own] = path
                self._todo.append((path, False))
            elif size > SMALL_BYTES:
                self.left_out[own] = mebibytes(size)
            else:
                small[own] = path
        total = sum(path.stat().st_size for path in small.values())
        if total > SMALL_TOTAL_BYTES:
            self.left_out[f"{len(small)} files of {name}/ that are not Python"] = mebibytes(total)
        else:
            self.files |= small

    def _inside(self, root: Path) -> Iterator[Path]:
        """Yields the regular files below a directory that are neither hidden nor ignored; follows each link once."""
        seen: set[str] = set()
        for place, folders, names in os.walk(root, onerror=refuse, followlinks=True):
            real = os.path.realpath(place)
            if real in seen or ENVIRONMENT in names:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(
                name
                for name in folders
                if self._is_wanted(Path(place, name)) and Path(place, name) not in self._ignored
            )
            for name in sorted(names):
                path = Path(place, name)
                if self._is_wanted(path) and path.is_file() and path not in self._ignored:
                    yield path

    def _is_wanted(self, path: Path) -> bool:
        hidden = path.name.startswith(".") or path.name in LEFT_OUT or path.suffix in LEFT_OUT_SUFFIXES
        return not hidden and path not in self._ignored

    def _mention(self, text: source.Source, name: str) -> None:
        """Remembers files of the folder that a module names: it may open them."""
        for each in text.texts:
            if 0 < len(each.encode(errors="replace")) <= PATH_LIMIT and each.isprintable() and self._is_data(each):
                self.left_out.setdefault(os.path.normpath(each), f"named in {name}")

    def _is_data(self, text: str) -> bool:
        """Tells whether a text names a file of the folder, or, with a slash at its end, a directory of it."""
        path = Path(os.path.normpath(self.folder / text))
        inside = path.is_relative_to(self.folder) and path != self.folder and not Path(text).is_absolute()
        if not inside or path.suffix == ".py":
            return False
        with suppress(OSError):
            return path.is_file() or (text.endswith("/") and path.is_dir())
        return False


def syntax_error(name: str, error: SyntaxError) -> str:
    """Returns file, line and reason, then the line with a mark where Python stopped."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    place = f"{name}, line {error.lineno}" if error.lineno else name
    shown = traceback.format_exception_only(error)[1:-1]
    return "\n".join([f"{place}: {error.msg} (read by Python {version})", *("".join(shown).rstrip("\n").splitlines())])

"""What `.gitignore` files leave out. `.git/info/exclude` and a user's own settings of git are not looked at."""

from functools import cache
from pathlib import Path
from typing import Final

from pathspec import GitIgnoreSpec

GITIGNORE: Final = ".gitignore"


class Ignored:
    """The `.gitignore` files of a folder, of those below it, and of those above it in its repository.

    Those above do not count if they leave out the folder itself: work is done there all the same.
    """

    def __init__(self, folder: Path) -> None:
        above = (folder, *folder.parents)
        self._top = next((place for place in above if (place / ".git").exists()), folder)
        if folder in self:
            self._top = folder

    def __contains__(self, path: Path) -> bool:
        """Tells whether git would leave out a path below the folder, or a directory that it lies in."""
        parts = path.relative_to(self._top).parts
        return any(self._matches(self._top.joinpath(*parts[: count + 1])) for count in range(len(parts)))

    def _matches(self, path: Path) -> bool:
        """Asks the files from the nearest on: the first that has a word on the path decides."""
        for place in path.parents:
            if spec := patterns(place):
                found = spec.check_file(f"{path.relative_to(place).as_posix()}{'/' if path.is_dir() else ''}")
                if found.include is not None:
                    return found.include
            if place == self._top:
                break
        return False


@cache
def patterns(folder: Path) -> GitIgnoreSpec | None:
    path = folder / GITIGNORE
    return GitIgnoreSpec.from_lines(path.read_text(errors="replace").splitlines()) if path.is_file() else None

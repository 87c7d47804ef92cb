"""What a job needs to be installed on its worker: read from a file as pip has it, and compared with what there is."""

from collections.abc import Iterable, Iterator
from importlib import metadata
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

OURS: Final = ("adjourn[worker]", "torch", "numpy")
"""What the launcher has loaded when it forks a training process, and all that this needs: no job changes that."""


class RequirementsInvalid(ValueError):
    """A line that is no requirement of a distribution; the text says which and why."""


def read(text: str) -> list[str]:
    """Returns the requirements of a file, without comments; raises RequirementsInvalid.

    Options of pip, other files and places to install from are refused: where from is the worker's to say.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        wanted = line.partition(" #")[0].strip()
        if not wanted or wanted.startswith("#"):
            continue
        try:
            requirement = Requirement(wanted)
        except InvalidRequirement as error:
            why = "an option of pip; those are the worker's" if wanted.startswith("-") else str(error).splitlines()[0]
            raise RequirementsInvalid(f"line {number}, {wanted!r}: {why}") from error
        if requirement.url:
            why = "a place to install from, which is the worker's to say"
            raise RequirementsInvalid(f"line {number}, {wanted!r}: {why}")
        found.append(str(requirement))
    return found


def unmet(requirements: Iterable[str]) -> Iterator[str]:
    """Yields, for each requirement that this Python does not meet, what it has instead.

    Of extras only the distribution itself is looked at. Raises InvalidRequirement.
    """
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{text} is not installed"
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            yield f"{text} is installed in version {version}"


def ours() -> dict[str, str]:
    """Returns the versions, by name, of the distributions that no job changes."""
    return installed(OURS)


def pins(requirements: Iterable[str]) -> dict[str, str]:
    """Returns the versions, by name, of what meets requirements here, with all that it needs; without `ours`."""
    fixed = ours()
    return {name: version for name, version in installed(requirements).items() if name not in fixed}


def installed(requirements: Iterable[str]) -> dict[str, str]:
    """Returns the versions of what meets requirements here, and of all that those need in turn; sorted by name."""
    found: dict[str, str] = {}
    left = [Requirement(text) for text in requirements]
    seen: set[tuple[str, str]] = set()
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            distribution = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        for extra in {"", *requirement.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                left += needed(distribution, extra)
    return dict(sorted(found.items()))


def needed(distribution: metadata.Distribution, extra: str) -> Iterator[Requirement]:
    """Yields what a distribution requires, with one of its extras, without their markers."""
    for text in distribution.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            yield requirement

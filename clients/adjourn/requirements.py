"""What a job needs to be installed on its worker: read from a file as pip has it, and compared with what there is."""

from collections.abc import Iterable, Iterator
from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement


class RequirementsInvalid(ValueError):
    """A line that is no requirement of a distribution; the text says which and why."""


def read(text: str) -> list[str]:
    """Returns the requirements of a file, without comments; raises RequirementsInvalid.

    Options of pip, other files and places to install from are refused: nothing is installed.
    """
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        wanted = line.partition(" #")[0].strip()
        if not wanted or wanted.startswith("#"):
            continue
        try:
            requirement = Requirement(wanted)
        except InvalidRequirement as error:
            why = "an option of pip, and nothing is installed" if wanted.startswith("-") else str(error).splitlines()[0]
            raise RequirementsInvalid(f"line {number}, {wanted!r}: {why}") from error
        if requirement.url:
            raise RequirementsInvalid(f"line {number}, {wanted!r}: a place to install from, and nothing is installed")
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

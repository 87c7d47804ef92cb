"""Reads settings from environment variables, and reports all that is wrong with them at once."""

from collections.abc import Callable, Mapping
from typing import TypeVar, cast

T = TypeVar("T")


class InvalidSettings(ValueError):
    """Variables are missing or cannot be parsed; `problems` says why, by name."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in problems.items()))
        self.problems = dict(problems)


class SettingsReader:
    """Takes variables one by one and collects the problems; `check` raises them.

    Values are never quoted in problems: some are secret.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self.problems: dict[str, str] = {}

    def take(self, name: str, parse: Callable[[str], T], default: T | None = None) -> T:
        """Returns the value of a variable, which is required unless there is a default.

        `parse` raises ValueError with a sentence on what is expected. After a problem the result is meaningless, and
        `check` raises.
        """
        text = self._environment.get(name, "").strip()
        if not text:
            if default is None:
                self.problems[name] = "is not set"
            return cast(T, default)
        try:
            return parse(text)
        except ValueError as error:
            self.problems[name] = str(error)
            return cast(T, default)

    def nested(self, read: Callable[[Mapping[str, str]], T]) -> T:
        """Returns the settings of another part and adds its problems to these."""
        try:
            return read(self._environment)
        except InvalidSettings as error:
            self.problems.update(error.problems)
            return cast(T, None)

    def check(self) -> None:
        """Raises InvalidSettings if anything was wrong."""
        if self.problems:
            raise InvalidSettings(self.problems)


def within(low: int, high: int) -> Callable[[str], int]:
    """Returns a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError("must be a whole number") from None
        if not low <= number <= high:
            raise ValueError(f"must be from {low} to {high}")
        return number

    return parse


def address(text: str) -> str:
    """Parses `host:port`."""
    host, colon, port = text.rpartition(":")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("must be host:port")
    return text

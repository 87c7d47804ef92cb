"""Formats durations, bytes, times and shares as text. Pure functions."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

V = TypeVar("V")

MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


def duration(span: timedelta | float) -> str:
    """Returns `850 ms`, `4.2 s`, `3 min 12 s`, `2 h 05 min` or `3 d 4 h`; clocks that disagree give `0 ms`."""
    seconds = max(span.total_seconds() if isinstance(span, timedelta) else span, 0.0)
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02} s"
    if whole < DAY:
        return f"{whole // HOUR} h {whole % HOUR // MINUTE:02} min"
    return f"{whole // DAY} d {whole % DAY // HOUR} h"


def brief(span: timedelta | float) -> str:
    """Returns `0.9s`, `47s`, `12m53s`, `2h05m` or `3d04h`, for columns of a table."""
    seconds = max(span.total_seconds() if isinstance(span, timedelta) else span, 0.0)
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole}s"
    if whole < HOUR:
        return f"{whole // MINUTE}m{whole % MINUTE:02}s"
    if whole < DAY:
        return f"{whole // HOUR}h{whole % HOUR // MINUTE:02}m"
    return f"{whole // DAY}d{whole % DAY // HOUR:02}h"


def rate(per_second: float | None) -> str:
    """Returns `12.5/s`, `14.2/min` or `3.1/h`; a dash if it is not known."""
    if per_second is None:
        return "-"
    for unit, seconds in (("s", 1), ("min", MINUTE), ("h", HOUR)):
        if per_second * seconds >= 1 or unit == "h":
            break
    return f"{per_second * seconds:.1f}/{unit}" if per_second * seconds < 1000 else f"{per_second:.0f}/{unit}"


def since(time: Timestamp, now: datetime) -> str:
    """Returns how long ago a moment was; a dash for an unset one."""
    return brief(now - time.ToDatetime(tzinfo=UTC)) if time.ByteSize() else "-"


def size(count: int) -> str:
    """Returns `512 B`, `4.2 KiB`, `1.3 GiB`..."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(amount) < 1023.95:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} PiB"


def size_of(count: int, whole: int) -> str:
    """Returns `70.4 of 80.0 GiB`: how much of something is used, in the unit of the whole."""
    total, unit = size(whole).split()
    share = count / whole * float(total) if whole else 0.0
    return f"{share:.0f} of {total} {unit}" if unit == "B" else f"{share:.1f} of {total} {unit}"


def moment(time: Timestamp) -> str:
    """Returns local date and time with the zone's name; a dash for an unset time."""
    if not time.ByteSize():
        return "-"
    return f"{time.ToDatetime(tzinfo=UTC).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def clock(time: Timestamp) -> str:
    """Returns the local time of day; dashes of the same width for an unset time."""
    if not time.ByteSize():
        return "--------"
    return f"{time.ToDatetime(tzinfo=UTC).astimezone():%H:%M:%S}"


def counted(count: int, what: str) -> str:
    """Returns `1 job` or `12 jobs`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def percent(share: float) -> str:
    return f"{share:.0f} %"


def level(share: float) -> str:
    """Returns the colour of a share in percent: red over 90, yellow over 70, else green."""
    return "red" if share > 90 else "yellow" if share > 70 else "green"


def figure(value: float) -> str:
    """Returns a metric's value, to five digits."""
    return f"{value:.5g}"


def pairs(values: Mapping[str, object]) -> str:
    """Returns `a=1, b=2`, sorted."""
    return printable(", ".join(f"{key}={value}" for key, value in sorted(values.items())))


def name_of(name: Callable[[V], str], value: V) -> str:
    """Returns an enum value's name in lower case; `unknown (n)` for a value of a newer version."""
    try:
        return name(value).lower()
    except ValueError:
        return f"unknown ({value})"


def short(name: str) -> str:
    """Returns the last segment of a resource name, which people type."""
    return printable(name.rpartition("/")[2])


def printable(text: str) -> str:
    """Replaces control characters, which could steer the terminal; line breaks stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)

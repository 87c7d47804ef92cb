"""Parses arguments and options of the command line; bad input is a usage error (exit status 2)."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Final, NoReturn

import typer
from google.protobuf.duration_pb2 import Duration

from adjourn import bundles
from adjourn.v1.job_pb2 import Job, JobSpec, PauseMode

EXACT_INTEGERS = 1 << 53
"""Arguments are sent as JSON numbers, which are exact up to this size."""


SPANS: Final = {
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
LONGEST: Final = timedelta(days=1000)


def entry_point(target: str, folder: Path = Path()) -> tuple[Path | None, str]:
    """Returns the script, if `target` names one, and `module:function`. The script is looked for from `folder`."""
    place, colon, function = target.rpartition(":")
    if not (colon and place and function.isidentifier()):
        wrong("TARGET", f"{target!r} should be script.py:function or package.module:function")
    if place.endswith(".ipynb"):
        advice = f"`jupyter nbconvert --to script {place}` makes a script of it"
        wrong("TARGET", f"{place} is a notebook, which cannot be imported; {advice}")
    if not place.endswith(".py"):
        if not all(part.isidentifier() for part in place.split(".")):
            wrong("TARGET", f"{place!r} is neither a file ending in .py nor a package.module")
        return None, target
    script = folder / place
    if not script.is_file():
        wrong("TARGET", f"there is no file {script}")
    try:
        return script, f"{bundles.module_name(script)}:{function}"
    except bundles.BundleInvalid as error:
        wrong("TARGET", error.reason)


def with_value(args: Iterable[str], option: str, value: str, belongs: Callable[[str], bool]) -> Iterator[str]:
    """Yields the arguments, with a value behind each `option` that has none: where the next word does not belong."""
    for word, following in pairwise([*args, ""]):
        yield word
        if word == option and not belongs(following):
            yield value


def pairs(option: str, values: Iterable[str]) -> dict[str, str]:
    """Reads repeated `key=value`."""
    found: dict[str, str] = {}
    for given in values:
        key, equals, value = given.partition("=")
        if not (equals and key):
            wrong(option, f"{given!r} should be key=value")
        if key in found:
            wrong(option, f"{key!r} is given twice")
        found[key] = value
    return found


def training_arguments(single: Iterable[str], together: str) -> dict[str, object]:
    """Reads `--arg key=value`, each value JSON if it can be and text otherwise, on top of `--args {...}`."""
    found: dict[str, object] = {}
    if together:
        try:
            parsed = strict_json(together)
        except ValueError as error:
            wrong("--args", f"is not JSON: {error}")
        if not isinstance(parsed, dict):
            wrong("--args", 'should be a JSON object, such as {"lr": 0.001}')
        found.update(parsed)
    for key, text in pairs("--arg", single).items():
        try:
            found[key] = strict_json(text)
        except ValueError as error:
            if text[:1] in ("{", "[", '"') or text.lstrip("-") in ("NaN", "Infinity"):
                wrong("--arg", f"{text} looks like JSON and is none ({error}); as text: '{key}={json.dumps(text)}'")
            found[key] = text
    refuse_inexact(found)
    return found


def strict_json(text: str) -> object:
    """Reads JSON proper: NaN and Infinity are not in it. Raises ValueError."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not in JSON")

    return json.loads(text, parse_constant=refuse)


def refuse_inexact(value: object) -> None:
    match value:
        case dict():
            for each in value.values():
                refuse_inexact(each)
        case list():
            for each in value:
                refuse_inexact(each)
        case int() if abs(value) > EXACT_INTEGERS:
            wrong("--arg", f"{value} does not fit a JSON number exactly; pass it as text: '\"{value}\"'")
        case float() if value in (float("inf"), float("-inf")):
            wrong("--arg", "a number is too large; pass it as text")


def refuse_out_of_range(option: str, value: int | None, *, bits: int = 32) -> None:
    """Refuses a number that does not fit its field of the contract, which has so many bits."""
    limit = 1 << bits - 1
    if value is not None and not -limit <= value < limit:
        wrong(option, f"{value} is out of range; the field has {bits} bits")


def states(values: Iterable[str]) -> list[Job.State.ValueType]:
    """Reads `--state`, in any case."""
    known = [name for name in Job.State.keys() if name != "STATE_UNSPECIFIED"]  # noqa: SIM118 - an enum, not a dict
    found = []
    for given in values:
        if given.upper() not in known:
            wrong("--state", f"{given!r} is none of {', '.join(name.lower() for name in known)}")
        found.append(Job.State.Value(given.upper()))
    return found


def pause_mode(given: str) -> PauseMode.ValueType:
    modes = {"epoch": PauseMode.EPOCH, "step": PauseMode.STEP, "latest": PauseMode.LATEST}
    if given.lower() not in modes:
        wrong("--mode", f"{given!r} is none of {', '.join(modes)}")
    return modes[given.lower()]


def hang_policy(given: str) -> JobSpec.HangPolicy.ValueType:
    """Reads `--hang-policy`, in any case; empty: the default."""
    policies = {"": JobSpec.HANG_POLICY_UNSPECIFIED, "restart": JobSpec.RESTART, "report": JobSpec.REPORT}
    if given.lower() not in policies:
        wrong("--hang-policy", f"{given!r} is neither restart nor report")
    return policies[given.lower()]


def retention(keep_last: int | None, best: str) -> JobSpec.Retention | None:
    """Reads `--keep-last` and `--best`, `loss`, `min:loss` or `max:accuracy`; None if neither is given."""
    if keep_last is None and not best:
        return None
    kinds = {"min": JobSpec.Retention.MINIMUM, "max": JobSpec.Retention.MAXIMUM}
    head, colon, metric = best.partition(":")
    if not colon:
        return JobSpec.Retention(keep_last=keep_last, best_metric=best)
    if head not in kinds or not metric:
        wrong("--best", f"{best!r} should be METRIC, min:METRIC or max:METRIC")
    return JobSpec.Retention(keep_last=keep_last, best_metric=metric, best=kinds[head])


def duration(option: str, given: str) -> Duration | None:
    """Reads `90`, `90s`, `1.5m`, `2h` or `1d`; None if nothing is given."""
    if not given:
        return None
    found = re.fullmatch(r"(\d{1,7}(?:\.\d{1,6})?)(s|m|h|d)?", given.strip())
    span = float(found[1]) * SPANS[found[2] or "s"] if found else timedelta()
    if not timedelta() < span <= LONGEST:
        wrong(option, f"{given!r} should be a number and s, m, h or d, such as 90s, up to {LONGEST.days}d")
    read = Duration()
    read.FromTimedelta(span)
    return read


def requirements(path: Path | None) -> list[str]:
    """Reads the file of `--requirements`."""
    if path is None:
        return []
    from adjourn.requirements import RequirementsInvalid, read

    try:
        return read(path.read_text(encoding="utf-8"))
    except RequirementsInvalid as error:
        wrong("--requirements", f"{path}, {error}")
    except (OSError, UnicodeDecodeError) as error:
        wrong("--requirements", f"{path}: {getattr(error, 'strerror', None) or 'no text in UTF-8'}")


def address(given: str) -> str:
    """Checks `host:port`."""
    if not re.fullmatch(r"(?!https?:)\S+:\S+", given):
        wrong("--address", f"{given!r} should be host:port, such as 127.0.0.1:7400")
    return given


def wrong(option: str, why: str) -> NoReturn:
    raise typer.BadParameter(why, param_hint=option)

"""A job in a file, for `adjourn submit job.yaml`. Pure, but for `read`: it opens the file.

`adjourn submit --template` prints a file with everything that may stand in one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict, ParseError

from adjourn.cli import arguments, yaml_text
from adjourn.v1.job_pb2 import Job, JobSpec

SUFFIXES: Final = (".yaml", ".yml")
TEMPLATE: Final = Path(__file__).with_name("job.yaml")
KEYS: Final = ("name", "labels", "include", "spec")
IGNORED: Final = frozenset(name for known in Job.DESCRIPTOR.fields for name in (known.name, known.json_name))
"""What `adjourn get -o yaml` prints beside: only the control plane sets it."""
DURATIONS: Final = frozenset(
    name
    for known in JobSpec.DESCRIPTOR.fields
    if known.message_type and known.message_type.full_name == Duration.DESCRIPTOR.full_name
    for name in (known.name, known.json_name)
)
EPOCHS: Final = frozenset({"total_epochs", "totalEpochs"})
TEXTS: Final = ("worker_selector", "workerSelector", "environment")
NAMES: Final = [known.name for known in JobSpec.DESCRIPTOR.fields]


@dataclass(frozen=True)
class JobFile:
    """What a file says; what it does not say is empty."""

    job_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    include: tuple[Path, ...] = ()
    spec: JobSpec = field(default_factory=JobSpec)
    """`entry_point` as in TARGET of `adjourn submit`, a script relative to the file."""
    folder: Path = Path()
    has_epochs: bool = False


def is_file(target: str) -> bool:
    return target.endswith(SUFFIXES)


def read(path: Path) -> JobFile:
    """Returns what a file says; a usage error, with the place, if that is no job."""
    from yaml import YAMLError  # not needed for scripts

    try:
        found = yaml_text.load(path.read_text(encoding="utf-8"))
    except OSError as error:
        arguments.wrong("TARGET", f"{path}: {error.strerror}")
    except UnicodeDecodeError:
        arguments.wrong("TARGET", f"{path} is no text in UTF-8")
    except YAMLError as error:
        arguments.wrong("TARGET", f"{path} is not YAML: {' '.join(str(error).split())}")
    return parse(found, path)


def parse(found: Any, path: Path) -> JobFile:
    """Returns what a document says; `path` is where it is from, for messages and for what is beside it."""
    if not isinstance(found, Mapping):
        refuse(path, f"should have {', '.join(KEYS)}; `adjourn submit --template` prints one")
    for key in found:
        if key not in KEYS and key not in IGNORED:
            inside = "; it belongs below spec" if key in NAMES else suggestion(str(key), KEYS)
            refuse(path, f"{key} is not known{inside}")
    labels = text_pairs(found.get("labels"), "labels", path)
    include = found.get("include") or []
    if not (isinstance(include, list) and all(isinstance(each, str) for each in include)):
        refuse(path, "include should be a list of paths")
    return JobFile(
        job_id=str(found.get("name") or "").removeprefix("jobs/"),
        labels=labels,
        include=tuple(path.parent / each for each in include),
        spec=parse_spec(found.get("spec"), path),
        folder=path.parent,
        has_epochs=not EPOCHS.isdisjoint(found["spec"]),
    )


def parse_spec(found: Any, path: Path) -> JobSpec:
    if not isinstance(found, Mapping):
        refuse(path, "spec is missing; it says what to train: entry_point, total_epochs")
    arguments.refuse_inexact(found.get("args"))
    plain = {
        key: seconds(f"spec.{key}", value, path) if key in DURATIONS else value
        for key, value in found.items()
        if value is not None  # a key without a value is not said
    }
    for key in TEXTS:
        if key in plain:
            plain[key] = text_pairs(plain[key], f"spec.{key}", path)
    spec = JobSpec()
    for key, value in plain.items():
        try:
            ParseDict({str(key): value}, spec)
        except (ParseError, TypeError, ValueError) as error:
            if key not in NAMES and key not in (known.json_name for known in JobSpec.DESCRIPTOR.fields):
                refuse(path, f"spec.{key} is not known{suggestion(str(key), NAMES)}")
            first = str(error).splitlines()[0].rpartition(" field: ")[2]
            refuse(path, f"spec.{key}: {first}")
    return spec


def seconds(key: str, value: Any, path: Path) -> str:
    """Returns a duration as protobuf JSON has it; a number is seconds."""
    found = arguments.duration(f"{path}: {key}", str(value))
    return found.ToJsonString() if found else "0s"


def text_pairs(value: Any, key: str, path: Path) -> dict[str, str]:
    """Returns keys and values as text: YAML makes numbers and truths of what looks like them."""
    if value is None:
        return {}
    if not isinstance(value, Mapping) or any(isinstance(each, (Mapping, list)) for each in value.values()):
        refuse(path, f"{key} should be pairs of a key and a text")
    for name, each in value.items():
        if not isinstance(each, str):
            refuse(path, f'{key}.{name} should be text: write it in quotes, "{each}"')
    return {str(name): each for name, each in value.items()}


def suggestion(key: str, known: tuple[str, ...] | list[str]) -> str:
    close = get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


def refuse(path: Path, why: str) -> NoReturn:
    arguments.wrong("TARGET", f"{path}: {why}")

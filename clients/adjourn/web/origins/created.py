"""PURE  Jobs that are created through an origin's interface: what trains, and what was asked for.

What an origin calls the config of a job becomes the arguments of one entry point, which is a setting. It is also kept
as it was given, beside them, under the origin's own key, so that it can be told again.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

from google.protobuf import json_format

from adjourn.settings_reader import SettingsReader, within
from adjourn.v1.job_pb2 import Job, JobSpec

HEIMDALL: Final = "heimdall"
PEFT_STUDIO: Final = "peft_studio"
"""Keys of the arguments under which a job keeps what was asked for."""

EXAMPLE: Final = "adjourn.examples.digits:main"
RENAMED: Final[Mapping[str, str]] = {
    "dropout_rate": "dropout",
    "early_stop_patience": "patience",
    "lora_dropout": "dropout",
}
"""What the entry point of the example calls a key of a config."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What trains for a job that an origin's client creates."""

    entry_point: str = EXAMPLE
    renamed: Mapping[str, str] = field(default_factory=lambda: RENAMED)
    """Names of arguments by keys of a config; other keys keep their names."""
    arguments: Mapping[str, object] = field(default_factory=dict)
    """Arguments beside those of the config, which come after them."""
    gpu_count: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads ADJOURN_ORIGIN_JOB_*; raises InvalidSettings."""
        reader = SettingsReader(environment)
        settings = cls(
            entry_point=reader.take("ADJOURN_ORIGIN_JOB_ENTRY_POINT", entry_point, EXAMPLE),
            renamed=reader.take("ADJOURN_ORIGIN_JOB_RENAMED", names, RENAMED),
            arguments=reader.take("ADJOURN_ORIGIN_JOB_ARGUMENTS", arguments, {}),
            gpu_count=reader.take("ADJOURN_ORIGIN_JOB_GPUS", within(0, 1024), 0),
        )
        reader.check()
        return settings

    def spec(
        self,
        origin: str,
        asked: Mapping[str, object],
        *,
        config: Mapping[str, object],
        total_epochs: int,
        model_name: str,
        dataset_uri: str,
    ) -> JobSpec:
        """Returns what to train; `asked` is kept as it is, `config` becomes arguments."""
        named = {self.renamed.get(key, key): value for key, value in config.items()}
        spec = JobSpec(
            entry_point=self.entry_point,
            total_epochs=total_epochs,
            gpu_count=self.gpu_count,
            model_name=model_name,
            dataset_uri=dataset_uri,
        )
        json_format.ParseDict({**named, **self.arguments, origin: asked}, spec.args)
        return spec


def asked(job: Job, origin: str) -> dict[str, Any]:
    """Returns what an origin's client asked for when it created a job; empty if none did."""
    if origin not in job.spec.args.fields:
        return {}
    kept = plain(json_format.MessageToDict(job.spec.args.fields[origin]))
    return kept if isinstance(kept, dict) else {}


def config(job: Job, origin: str) -> dict[str, Any]:
    """Returns the config of a job as it was given, or its arguments if no client of the origin created it."""
    kept = asked(job, origin).get("config")
    if isinstance(kept, dict):
        return kept
    arguments: dict[str, Any] = plain(json_format.MessageToDict(job.spec.args))
    return {key: value for key, value in arguments.items() if key not in (HEIMDALL, PEFT_STUDIO)}


def plain(value: Any) -> Any:
    """Returns a JSON value in which numbers without a fraction are integers: protobuf knows one kind of number only."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def entry_point(text: str) -> str:
    module, colon, function = text.partition(":")
    if not module or not colon or not function:
        raise ValueError("must be package.module:function")
    return text


def names(text: str) -> dict[str, str]:
    """Parses `key=argument,key=argument`."""
    pairs = [item.partition("=") for item in text.split(",")]
    if not all(key.strip() and equals and name.strip() for key, equals, name in pairs):
        raise ValueError("must be key=argument,key=argument")
    return {key.strip(): name.strip() for key, _, name in pairs}


def arguments(text: str) -> dict[str, object]:
    """Parses a JSON object."""
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    raise ValueError('must be a JSON object, such as {"slow": true}')

"""Fields of the contract by the names that people write them by: options, arguments, keys of job.yaml. Pure."""

import re
from collections.abc import Mapping
from typing import Final

OPTIONS: Final[Mapping[str, str]] = {
    "job_id": "--name",
    "job.labels": "--label",
    "job.name": "JOB",
    "job.spec.args": "--arg",
    "job.spec.bundle": "TARGET",
    "job.spec.checkpoint_epochs": "--checkpoint-epochs",
    "job.spec.checkpoint_interval": "--checkpoint-interval",
    "job.spec.checkpoint_steps": "--checkpoint-steps",
    "job.spec.dataset_uri": "--dataset-uri",
    "job.spec.drill_steps": "--drill",
    "job.spec.entry_point": "TARGET",
    "job.spec.environment": "--env",
    "job.spec.gpu_count": "--gpus",
    "job.spec.hang_policy": "--hang-policy",
    "job.spec.hang_timeout": "--hang-timeout",
    "job.spec.max_restarts": "--max-restarts",
    "job.spec.model_name": "--model-name",
    "job.spec.requirements": "--requirements",
    "job.spec.retention.best": "--best",
    "job.spec.retention.best_metric": "--best",
    "job.spec.retention.keep_last": "--keep-last",
    "job.spec.seed": "--seed",
    "job.spec.total_epochs": "--epochs",
    "job.spec.worker_selector": "--worker-selector",
    "labels": "--label",
    "names": "JOB",
    "parent": "JOB",
    "mode": "--mode",
    "reason": "--reason",
    "resume_token": "--resume-token",
    "attempt": "--attempt",
    "tail_lines": "--tail",
    "instance": "--instance",
}
"""The option of each field; what is in brackets behind it is said beside the option."""


def option(field: str) -> str:
    """Returns what stands for a field on the command line: `--label 'a b'` for `job.labels['a b']`.

    A field that has no option stays as it is.
    """
    path, inner = parted(field)
    known = OPTIONS.get(path)
    return f"{known} {inner}".rstrip() if known else field


def key(field: str) -> str:
    """Returns what stands for a field of CreateJob in job.yaml."""
    return "name" if field == "job_id" else field.removeprefix("job.")


def parted(field: str) -> tuple[str, str]:
    """Returns a path and the keys behind it: `job.spec.args`, `a.b` for `job.spec.args['a']['b']`."""
    path, bracket, rest = field.partition("[")
    return path, ".".join(re.findall(r"'((?:[^'\\]|\\.)*)'", rest)) if bracket else ""

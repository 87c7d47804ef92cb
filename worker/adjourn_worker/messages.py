"""PURE. How much of a worker's state goes into one message: a limit must never keep an agent from speaking."""

from collections.abc import Iterable, MutableMapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Final

from adjourn.v1.agent_service_pb2 import AssignmentStatus, Report

REPORTS_BYTES: Final = 4 << 20
"""Reports in one message; the others follow as these are acknowledged."""
STATUSES_BYTES: Final = 8 << 20
"""Statuses in one message."""
REPORT_BYTES: Final = 1 << 20
"""One report. Training code has limits of its own that are far below."""
TEXT_CHARACTERS: Final = 16 << 10
"""Of a text in a report that is too large."""
VALUES: Final = 100
NAME_CHARACTERS: Final = 256
"""Metrics in a report that is too large, and the longest name of one."""


def next_reports(reports: Sequence[Report], limit: int = REPORTS_BYTES) -> list[Report]:
    """Returns the oldest reports that fit into a message, one at least."""
    size = 0
    for count, report in enumerate(reports):
        size += report.ByteSize()
        if size > limit and count:
            return list(reports[:count])
    return list(reports)


def fitting_statuses(statuses: Iterable[AssignmentStatus], limit: int = STATUSES_BYTES) -> list[AssignmentStatus]:
    """Returns the statuses; if together they are too large, without metrics, which come with their epochs as well."""
    found = list(statuses)
    if sum(status.ByteSize() for status in found) <= limit:
        return found
    return [without_metrics(status) for status in found]


def aged(status: AssignmentStatus, now: datetime) -> AssignmentStatus:
    """Returns the status as it is sent `now`: it says how old its progress is, which no other clock can tell."""
    if not status.progress.HasField("report_time"):
        return status
    copy = AssignmentStatus()
    copy.CopyFrom(status)
    copy.progress_age.FromTimedelta(max(now - status.progress.report_time.ToDatetime(UTC), timedelta()))
    return copy


def without_metrics(status: AssignmentStatus) -> AssignmentStatus:
    copy = AssignmentStatus()
    copy.CopyFrom(status)
    copy.progress.metrics.clear()
    return copy


def cut(report: Report, limit: int = REPORT_BYTES) -> Report:
    """Returns the report, cut if it is too large: texts say so, and of metrics the first by name are kept."""
    if report.ByteSize() <= limit:
        return report
    copy = Report()
    copy.CopyFrom(report)
    match copy.WhichOneof("report"):
        case "epoch":
            keep_first(copy.epoch.values)
        case "checkpoint":
            keep_first(copy.checkpoint.metrics)
            keep_first(copy.checkpoint.progress.metrics)
        case "exit":
            copy.exit.failure.message = cut_text(copy.exit.failure.message)
        case "condition":
            copy.condition.condition.message = cut_text(copy.condition.condition.message)
        case "pause":
            shown = [cut_text(reason) for reason in islice(copy.pause.verdict_reasons, VALUES)]
            del copy.pause.verdict_reasons[:]
            copy.pause.verdict_reasons.extend(shown)
    return copy


def keep_first(values: MutableMapping[str, float]) -> None:
    kept = set(sorted(name for name in values if len(name) <= NAME_CHARACTERS)[:VALUES])
    for name in values.keys() - kept:
        del values[name]


def cut_text(text: str) -> str:
    """Returns a text whose middle is left out if it is long: the end of a traceback says most."""
    if len(text) <= TEXT_CHARACTERS:
        return text
    half = TEXT_CHARACTERS // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters are left out here]\n{text[-half:]}"

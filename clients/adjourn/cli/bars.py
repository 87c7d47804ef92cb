"""Bars of a terminal: how far something has come, and how much of something is used. Pure."""

from collections.abc import Sequence
from typing import Final

from rich.text import Text

from adjourn.cli import formatting
from adjourn.v1.usage_pb2 import GpuSample, ResourceSample

FULL: Final = "█"
EMPTY: Final = "░"
LEVELS: Final = "▁▂▃▄▅▆▇█"
"""One GPU of several is a column of one of these heights."""
PROGRESS_WIDTH: Final = 8
USED_WIDTH: Final = 6


def progress(share: float | None) -> Text:
    """Returns a bar of `share`, 0 to 1: full only at the end, empty only at the beginning; else a dash."""
    if share is None:
        return Text("-")
    full = round(share * PROGRESS_WIDTH)
    if 0 < share < 1:
        full = min(max(full, 1), PROGRESS_WIDTH - 1)
    return drawn(full, PROGRESS_WIDTH, "cyan" if share < 1 else "green")


def used(percent: float | None) -> Text:
    """Returns a bar of a share in percent: red over 90, yellow over 70, else green; a dash if it is not known."""
    if percent is None:
        return Text("-")
    colour = formatting.level(percent)
    full = round(min(max(percent, 0), 100) / 100 * USED_WIDTH)
    return drawn(full, USED_WIDTH, colour) + Text(f" {percent:3.0f} %", style=colour)


def drawn(full: int, width: int, colour: str) -> Text:
    return Text(FULL * full, style=colour) + Text(EMPTY * (width - full), style="bright_black")


def gpus(sample: ResourceSample | None) -> Text:
    """Returns how busy the job's GPUs are: a bar for one; for several a column each, and their average."""
    known = [each.utilization_percent for each in sample.gpus if each.HasField("utilization_percent")] if sample else []
    return together(known)


def gpu_memory(sample: ResourceSample | None) -> Text:
    """Returns how much of the memory of the job's GPUs is used, by everybody."""
    shares = [memory_share(each) for each in sample.gpus] if sample else []
    return together([share for share in shares if share is not None])


def together(shares: Sequence[float]) -> Text:
    if len(shares) < 2:
        return used(shares[0] if shares else None)
    average = sum(shares) / len(shares)
    columns = [Text(column(share), style=formatting.level(share)) for share in shares]
    return Text("").join(columns) + Text(f" {average:3.0f} %", style=formatting.level(average))


def column(percent: float) -> str:
    return LEVELS[min(int(max(percent, 0) / 100 * len(LEVELS)), len(LEVELS) - 1)]


def cpu(sample: ResourceSample | None) -> Text:
    """Returns how busy the CPU of the job's worker is."""
    return used(sample.worker_cpu_percent if sample and sample.HasField("worker_cpu_percent") else None)


def memory(sample: ResourceSample | None) -> Text:
    """Returns how much of the memory that the job's worker may use is used."""
    known = sample and sample.HasField("worker_memory_bytes") and sample.worker_memory_limit_bytes
    return used(100 * sample.worker_memory_bytes / known if sample and known else None)


def memory_share(gpu: GpuSample) -> float | None:
    """Returns the share of a GPU's memory that is used, in percent; None if that is not known."""
    if not (gpu.HasField("memory_used_bytes") and gpu.memory_total_bytes):
        return None
    return 100 * gpu.memory_used_bytes / gpu.memory_total_bytes

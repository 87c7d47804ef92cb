"""Shows a ResourceSample as a table. Pure functions."""

from collections.abc import Sequence

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from adjourn.cli import formatting
from adjourn.cli.bars import memory_share
from adjourn.v1.usage_pb2 import GpuSample, ResourceSample


def usage_table(sample: ResourceSample) -> Table:
    """Returns the use of each GPU, their average, CPU and memory; coloured over 70 and over 90 percent.

    What the machine cannot tell is a dash.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for title in ("", "busy", "memory", "", "by the job", "heat", "power"):
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for gpu in sample.gpus:
        table.add_row(*gpu_cells(gpu))
    if len(sample.gpus) > 1:
        busy = [gpu.utilization_percent for gpu in sample.gpus if gpu.HasField("utilization_percent")]
        full = [share for gpu in sample.gpus if (share := memory_share(gpu)) is not None]
        table.add_row("GPU average", mean(busy), "", mean(full), "", "", "")
    table.add_row(*cpu_cells(sample))
    table.add_row(*memory_cells(sample))
    return table


def gpu_cells(gpu: GpuSample) -> tuple[RenderableType, ...]:
    used = formatting.size(gpu.memory_used_bytes) if gpu.HasField("memory_used_bytes") else "-"
    if gpu.memory_total_bytes:
        known = gpu.HasField("memory_used_bytes")
        whole = gpu.memory_total_bytes
        used = formatting.size_of(gpu.memory_used_bytes, whole) if known else f"- of {formatting.size(whole)}"
    return (
        f"GPU {gpu.index}",
        coloured(gpu.utilization_percent if gpu.HasField("utilization_percent") else None),
        used,
        coloured(memory_share(gpu)),
        formatting.size(gpu.job_memory_bytes) if gpu.HasField("job_memory_bytes") else "-",
        f"{gpu.temperature_celsius:.0f} °C" if gpu.HasField("temperature_celsius") else "-",
        f"{gpu.power_watts:.0f} W" if gpu.HasField("power_watts") else "-",
    )


def cpu_cells(sample: ResourceSample) -> tuple[RenderableType, ...]:
    whole = sample.worker_cpu_percent if sample.HasField("worker_cpu_percent") else None
    own = f"{sample.cpu_percent / 100:.1f} cores" if sample.HasField("cpu_percent") else "-"
    return "CPU", coloured(whole), "", "", own, "", ""


def memory_cells(sample: ResourceSample) -> tuple[RenderableType, ...]:
    used, share = "-", None
    if sample.HasField("worker_memory_bytes"):
        used = formatting.size(sample.worker_memory_bytes)
        if limit := sample.worker_memory_limit_bytes:
            used = formatting.size_of(sample.worker_memory_bytes, limit)
            share = 100 * sample.worker_memory_bytes / limit
    own = formatting.size(sample.memory_bytes) if sample.HasField("memory_bytes") else "-"
    return "RAM", "", used, coloured(share), own, "", ""


def mean(shares: Sequence[float]) -> Text:
    return coloured(sum(shares) / len(shares) if shares else None)


def coloured(share: float | None) -> Text:
    return Text("-") if share is None else Text(formatting.percent(share), style=formatting.level(share))

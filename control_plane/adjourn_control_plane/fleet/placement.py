"""PURE. Which queued job goes to which worker.

First created, first placed; a job that fits nowhere just now holds up none that does. Among the workers that fit, the
one with most to spare, so that jobs spread; ties by name, so that two replicas decide alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from adjourn.v1.job_pb2 import JobSpec
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.store.interface import Allocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker has to spare."""

    worker: str
    labels: tuple[tuple[str, str], ...]
    gpus: tuple[str, ...]
    """UUIDs of free GPUs, in the order of their index."""
    cpu_slots: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Where a job goes."""

    worker: str
    device_uuids: tuple[str, ...]


def capacity(worker: Worker, allocation: Allocation) -> Capacity:
    """Returns what is free on a worker: what its jobs have not released is taken, what is quarantined not offered."""
    busy = [stored.record for stored in allocation.jobs if not stored.record.released]
    taken = {uuid for record in busy for uuid in record.device_uuids}
    devices = sorted(worker.devices, key=lambda device: device.index)
    free = tuple(device.uuid for device in devices if device.uuid not in taken and not device.quarantined)
    slots = worker.cpu_slots - sum(1 for record in busy if not record.job.spec.gpu_count)
    return Capacity(worker=worker.name, labels=tuple(worker.labels.items()), gpus=free, cpu_slots=max(slots, 0))


def choose(spec: JobSpec, capacities: Sequence[Capacity]) -> Binding | None:
    """Returns the place for a job, or None if no worker fits it now."""
    wanted = set(spec.worker_selector.items())
    fitting = [
        each
        for each in capacities
        if wanted <= set(each.labels) and (len(each.gpus) >= spec.gpu_count if spec.gpu_count else each.cpu_slots > 0)
    ]
    if not fitting:
        return None
    best = min(fitting, key=lambda each: (-(len(each.gpus) if spec.gpu_count else each.cpu_slots), each.worker))
    return Binding(worker=best.worker, device_uuids=best.gpus[: spec.gpu_count])

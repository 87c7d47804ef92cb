"""PURE. Which worker a queued job goes to, or why it goes to none.

A worker matches a job if it carries the job's labels and has as many GPUs (or a CPU slot), free or not. A job that goes
on from a checkpoint also needs the checkpoint's environment; with `allow_inexact` an equal one is preferred only. A job
with requirements goes to a worker that installs them, if there is any that matches.

A job that goes on from a checkpoint returns to the worker where it left off (`home`), among those that suit it
equally: its snapshot may still be there. Any other job goes where it serves the fleet best. A GPU job goes to the one
that it leaves the fewest free GPUs: whole machines stay free for jobs of many GPUs. For the same reason it does not
return to a machine whose GPUs are all free to take some of them, if it need not break up one. A job without a GPU goes
to the worker with the most free slots. Ties go by name, so that two replicas decide alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from adjourn import reasons
from adjourn.environments import fits, gpu_models
from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Condition
from adjourn.v1.worker_pb2 import Worker
from adjourn_control_plane.job.releases import is_of
from adjourn_control_plane.store.interface import Allocation, Unconfirmed

LISTED: Final = 10
"""Workers that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What decides where a job can go. Jobs with equal needs are placed, or not, alike."""

    gpu_count: int = 0
    selector: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    """Of the checkpoint to go on from; empty: there is none, or nothing is known of it."""
    allow_inexact: bool = False
    requirements: bool = False
    """There are distributions that have to be installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The worker where a job left off, with its newest checkpoint."""

    worker: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a worker has to spare."""

    worker: str
    instance: str = ""
    """`Worker.instance`."""
    gpus: tuple[tuple[str, str], ...] = ()
    """UUID and model of each free GPU, in the order of their index."""
    whole: bool = False
    """All its GPUs are free."""
    cpu_slots: int = 0

    @property
    def free(self) -> bool:
        return bool(self.gpus) or self.cpu_slots > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """The workers that a job could go to if they had room, and why it is not placed as long as none has."""

    equal: frozenset[str]
    """Workers with the environment of the checkpoint, or any if there is no checkpoint."""
    inexact: frozenset[str]
    """Workers with another environment, if the job may go there."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Where a job goes."""

    worker: str
    device_uuids: tuple[str, ...]


def needs(record: JobRecord) -> Needs:
    """Returns what a job needs."""
    spec = record.job.spec
    return Needs(
        gpu_count=spec.gpu_count,
        selector=tuple(sorted(spec.worker_selector.items())),
        environment=tuple(sorted(record.checkpoint.environment.items())),
        allow_inexact=record.allow_inexact,
        requirements=bool(spec.requirements),
    )


def home(record: JobRecord) -> Home | None:
    """Returns where a job left off; None if it was somewhere else since, or failed there: another may do better."""
    checkpoint, attempt = record.checkpoint, record.token.attempt
    left_off = checkpoint.name and checkpoint.attempt == attempt and record.job.failure.attempt != attempt
    if not left_off or not record.last_instance:
        return None
    return Home(worker=record.last_worker, instance=record.last_instance)


def capacity(worker: Worker, allocation: Allocation, unconfirmed: Sequence[Unconfirmed] = ()) -> Capacity:
    """Returns what is free on a worker.

    What its jobs have not released is taken, and so is what an attempt has that was lost and may still live there: also
    one of an earlier instance, for a GPU that is there again by its UUID is the same GPU. CPU slots are each instance's
    own. What is quarantined is not offered.
    """
    busy = [stored.record for stored in allocation.jobs if not stored.record.released]
    left_behind = [each.entry for each in unconfirmed]
    taken = {uuid for record in busy for uuid in record.device_uuids}
    taken |= {uuid for entry in left_behind for uuid in entry.device_uuids}
    devices = sorted(worker.devices, key=lambda device: device.index)
    free = tuple(
        (device.uuid, device.model) for device in devices if device.uuid not in taken and not device.quarantined
    )
    slots = worker.cpu_slots - sum(1 for record in busy if not record.job.spec.gpu_count)
    slots -= sum(1 for entry in left_behind if not entry.device_uuids and is_of(entry, worker.name, worker.instance))
    return Capacity(
        worker=worker.name,
        instance=worker.instance,
        gpus=free,
        whole=len(free) == usable_gpus(worker),
        cpu_slots=max(slots, 0),
    )


def match(wanted: Needs, workers: Sequence[Worker]) -> Match:
    """Returns which of the workers suit a job, however busy they are."""
    labelled = [worker for worker in workers if set(wanted.selector) <= set(worker.labels.items())]
    large = [worker for worker in labelled if is_large_enough(wanted, worker)]
    if wanted.requirements:  # whether the others have what is required is not known
        large = [worker for worker in large if worker.installs_requirements] or large
    environment = dict(wanted.environment)
    different = {worker.name: fits(environment, worker, wanted.gpu_count) if environment else [] for worker in large}
    equal = frozenset(name for name, names in different.items() if not names)
    inexact = frozenset(different.keys() - equal) if wanted.allow_inexact else frozenset[str]()
    reason, message = explain(wanted, workers, labelled, large, different)
    return Match(equal=equal, inexact=inexact, reason=reason, message=message)


def explain(
    wanted: Needs,
    workers: Sequence[Worker],
    labelled: Sequence[Worker],
    large: Sequence[Worker],
    different: Mapping[str, Sequence[str]],
) -> tuple[str, str]:
    """Returns reason and message of the first requirement that no worker meets."""
    if not workers:
        return reasons.NO_WORKER, "no worker is connected"
    if not labelled:
        labels = ", ".join(f"{key}={value}" for key, value in wanted.selector)
        return reasons.NO_MATCHING_WORKER, f"no worker has the labels {labels}"
    if not large and not wanted.gpu_count:
        return reasons.NO_MATCHING_WORKER, "no matching worker has a CPU slot"
    if not large:
        most = max(usable_gpus(worker) for worker in labelled)
        return reasons.NO_MATCHING_WORKER, f"no matching worker has {wanted.gpu_count} GPUs; the largest has {most}"
    if all(different.values()) and not wanted.allow_inexact:
        nearest = min(large, key=lambda worker: (len(different[worker.name]), worker.name))
        return reasons.NO_EQUAL_ENVIRONMENT, differences(dict(wanted.environment), nearest, different[nearest.name])
    suited = [worker for worker in large if wanted.allow_inexact or not different[worker.name]]
    if all(disk_is_full(worker) for worker in suited):
        names = ", ".join(sorted(worker.name for worker in suited)[:LISTED])
        return reasons.NO_SPACE, f"no worker that could run it has room on its disk: {names}"
    return (
        reasons.NO_CAPACITY,
        "every worker that could run it is busy, takes no new jobs, or may have a lost attempt",
    )


def differences(environment: Mapping[str, str], worker: Worker, names: Sequence[str]) -> str:
    """Returns how a worker differs from the environment of a checkpoint, in a sentence."""
    here = dict(worker.environment) | {"gpus": ", ".join(device.model for device in worker.devices)}
    listed = "; ".join(
        f"{name} was {environment.get(name) or 'unknown'}, is {here.get(name) or 'unknown'}" for name in names
    )
    return f"no worker has the environment of its checkpoint; on {worker.name}, which is nearest: {listed}"


def choose(
    wanted: Needs, suited: Match, free: Mapping[str, Capacity], returns_to: Home | None = None
) -> Binding | None:
    """Returns where a job goes; None if no worker that suits it has room.

    `free`: the workers that have any room. `returns_to`: where the job left off.
    """
    for names, exact in ((suited.equal, True), (suited.inexact, False)):
        found = [
            (capacity, devices)
            for name in names & free.keys()
            if (devices := devices_for(wanted, capacity := free[name], exact=exact)) is not None
        ]
        if found:
            spared = not all(breaks_up(wanted, capacity) for capacity, _ in found)
            back = [
                each for each in found if is_at(each[0], returns_to) and not (spared and breaks_up(wanted, each[0]))
            ]
            best, uuids = min(back or found, key=lambda each: rank(wanted, each[0]))
            return Binding(worker=best.worker, device_uuids=uuids)
    return None


def rank(wanted: Needs, offered: Capacity) -> tuple[int, str]:
    """Orders the workers that have room, the best first."""
    return (len(offered.gpus) if wanted.gpu_count else -offered.cpu_slots), offered.worker


def is_at(offered: Capacity, home: Home | None) -> bool:
    return home is not None and (offered.worker, offered.instance) == (home.worker, home.instance)


def breaks_up(wanted: Needs, offered: Capacity) -> bool:
    """Returns whether a machine whose GPUs are all free would have only some of them left."""
    return bool(wanted.gpu_count) and offered.whole and len(offered.gpus) > wanted.gpu_count


def devices_for(wanted: Needs, offered: Capacity, *, exact: bool) -> tuple[str, ...] | None:
    """Returns the GPUs that a job gets, none for a job without; None if there is no room for it.

    `exact`: they must be of the models that the checkpoint was made with.
    """
    if not wanted.gpu_count:
        return () if offered.cpu_slots > 0 else None
    models = required_models(wanted) if exact else []
    if not models:
        uuids = tuple(uuid for uuid, _ in offered.gpus[: wanted.gpu_count])
        return uuids if len(uuids) == wanted.gpu_count else None
    left = list(offered.gpus)
    chosen = []
    for model in models:
        device = next((each for each in left if each[1] == model), None)
        if device is None:
            return None
        left.remove(device)
        chosen.append(device[0])
    return tuple(chosen)


def required_models(wanted: Needs) -> list[str]:
    """Returns the model of each GPU that a job needs; empty: any."""
    models = gpu_models(dict(wanted.environment))
    return models[:1] * wanted.gpu_count if len(set(models)) == 1 else models


def is_large_enough(wanted: Needs, worker: Worker) -> bool:
    return usable_gpus(worker) >= wanted.gpu_count if wanted.gpu_count else worker.cpu_slots > 0


def disk_is_full(worker: Worker) -> bool:
    """Returns whether a worker has said that its disk has no room for another attempt."""
    return any(condition.type == Condition.DISK_FULL for condition in worker.conditions)


def usable_gpus(worker: Worker) -> int:
    return sum(not device.quarantined for device in worker.devices)

"""`make chaos`: real processes, random faults and commands, and the proof that nothing was lost.

Exit status 0: every promise held. 1: one did not; what is told names it, and the directory of logs stays.
"""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adjourn.local import process_cleanup, signals
from adjourn.objects import STORAGE_ERRORS, S3Objects
from adjourn.v1.job_pb2 import Condition
from adjourn.v1.worker_pb2 import Worker
from adjourn_worker.paths import AGENT_LOCK, WorkerPaths
from tests.chaos import schedule
from tests.chaos.cluster import ROOMY_MEGABYTES, Cluster, background, worker_directory
from tests.chaos.control_planes import AGAIN_SECONDS, ControlPlanes
from tests.chaos.damage import Damage
from tests.chaos.oracle import Oracle, listed
from tests.chaos.schedule import GENTLE, TABLE, WORKERS, Part, Row
from tests.chaos.timeline import Timeline
from tests.chaos.workload import Twins, Workload
from tests.harness.process_guard import guarded
from tests.harness.small_disk import SmallDisk
from tests.harness.training_processes import TrainingProcesses

TELL_SECONDS: Final = 15.0
SETTLE_SECONDS: Final = 120.0
"""From when everything is healed: until all workers are back, and until what was deleted is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How much of everything."""

    jobs: int = schedule.JOBS
    callers: int = 3
    gap: tuple[float, float] = (2.0, 6.0)
    """Range of seconds between two steps of the schedule."""
    caller_gap: tuple[float, float] = (0.5, 5.0)
    pace: float = 0.25
    """Seconds of a training step; an epoch has six."""
    epochs: tuple[int, int] = (4, 10)
    table: Sequence[Row] = TABLE
    finish: float = 300.0
    """Longest time, in seconds, in which the last jobs come to rest or to their end."""


FULL: Final = Profile()
BRIEF: Final = Profile(
    jobs=4, callers=2, gap=(0.5, 1.5), caller_gap=(0.3, 1.5), pace=0.05, epochs=(4, 8), table=GENTLE, finish=120.0
)


@dataclass(kw_only=True)
class Chaos:
    """One run."""

    seed: int
    minutes: float
    """How long faults are made; infinite: until there were `faults`."""
    faults: int
    profile: Profile
    directory: Path
    timeline: Timeline

    async def run(self) -> None:
        with ExitStack() as held:
            processes = held.enter_context(TrainingProcesses(self._made("twins")))
            async with Cluster(directory=self.directory, timeline=self.timeline, disks=self._disks(held)) as cluster:
                self.timeline.say(f"the stack is up; its logs are in {cluster.logs}")
                async with ControlPlanes(cluster.replicas) as planes, S3Objects(cluster.s3) as objects:
                    damage = Damage(planes=planes, objects=objects, draw=random.Random(f"{self.seed} damage"))
                    oracle = Oracle(
                        planes=planes,
                        objects=objects,
                        workers=cluster.workers,
                        may_be_silent=cluster.may_be_silent,
                        spoiled=damage.spoiled,
                        timeline=self.timeline,
                    )
                    workload = Workload(
                        seed=self.seed,
                        planes=planes,
                        oracle=oracle,
                        twins=Twins(processes),
                        timeline=self.timeline,
                        jobs=self.profile.jobs,
                        pace=self.profile.pace,
                        epochs=self.profile.epochs,
                    )
                    looking = [asyncio.create_task(oracle.watch(client)) for client in planes.clients]
                    looking += [asyncio.create_task(oracle.watch_processes()), asyncio.create_task(self._tell())]
                    async with background(*looking):
                        await self._storm(cluster, workload, damage)
                        await workload.open_up()
                        await workload.rest(self.profile.finish)  # at once: jobs that go on would soon have ended
                        await self._calm(planes)
                        await workload.finish(self.profile.finish)
                        await oracle.settled()
                        await self._nothing_is_left(cluster, planes, objects)
            if left := [process.pid for _, process in process_cleanup.find(self.directory)]:
                self.timeline.find("processes outlived the stack", pids=left)
            for number in range(1, WORKERS + 1):
                WorkerPaths.prepare(cluster.worker(number)).remove_volatile()

    def _made(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        return path

    def _disks(self, held: ExitStack) -> dict[int, SmallDisk]:
        """Returns the disks of the workers, if some are to be filled and can be mounted."""
        if not SmallDisk.MOUNTABLE or all(row[2] is not Part.DISK for row in self.profile.table):
            return {}
        disks = {}
        for number in range(1, WORKERS + 1):
            disk = disks[number] = SmallDisk(worker_directory(self.directory, number))
            held.callback(disk.unmount)
            disk.resize(megabytes=ROOMY_MEGABYTES)
        return disks

    async def _storm(self, cluster: Cluster, workload: Workload, damage: Damage) -> None:
        """Makes faults and commands, for as long as was asked."""
        keeping = [asyncio.create_task(workload.keep(slot)) for slot in workload.slots]
        calling = [
            asyncio.create_task(workload.call(caller, self.profile.caller_gap))
            for caller in range(self.profile.callers)
        ]
        deadline = time.monotonic() + 60 * self.minutes
        async with background(*keeping), background(*calling):
            steps = schedule.steps(self.seed, gap=self.profile.gap, table=self.profile.table)
            made = 0
            for step in steps:
                await asyncio.sleep(min(step.after, max(0.0, deadline - time.monotonic())))
                if time.monotonic() >= deadline or made >= self.faults:
                    break
                if len(step.faults) > 1:
                    self.timeline.counts["pairs of faults at once"] += 1
                for fault in step.faults:
                    if fault.part is Part.CHECKPOINT:
                        slots = workload.slots[fault.number - 1 :] + workload.slots[: fault.number - 1]
                        begun = await damage.befall_one(fault.action, [slot.name for slot in slots if slot.name])
                    else:
                        begun = cluster.inject(fault)
                    self.timeline.write("fault" if begun else "no such part now", fault=str(fault))
                    self.timeline.faults[fault.kind] += begun
                    made += begun
            workload.close()
            self.timeline.say("no more faults; everything is healed")
            await cluster.heal()
            self.timeline.write("healed")
            await asyncio.gather(*keeping)

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(TELL_SECONDS)
            counts = self.timeline.counts
            self.timeline.say(
                f"{self.timeline.faults.total()} faults, {self.timeline.commands.total()} commands, "
                f"{counts['pauses seen']} pauses seen, {counts['jobs ended']} jobs ended, "
                f"{len(self.timeline.findings)} findings"
            )

    async def _calm(self, planes: ControlPlanes) -> None:
        """Returns when every worker takes jobs again, and all that was out of reach has told that it is over."""

        async def all_active() -> bool:
            workers = await planes.ask(lambda client: listed(client.list_workers()))
            conditions = [each.type for worker in workers for each in worker.conditions]
            active = [worker.state for worker in workers] == [Worker.ACTIVE] * WORKERS
            return active and Condition.RELEASE_UNCONFIRMED not in conditions

        if not await within(SETTLE_SECONDS, all_active):
            workers = await planes.ask(lambda client: listed(client.list_workers()))
            told = {
                worker.name: [Worker.State.Name(worker.state), *(each.reason for each in worker.conditions)]
                for worker in workers
            }
            self.timeline.find(f"not every worker is back {SETTLE_SECONDS:g} s after everything was healed", **told)

    async def _nothing_is_left(self, cluster: Cluster, planes: ControlPlanes, objects: S3Objects) -> None:
        """Looks for what deleted jobs have left: jobs, objects, processes, directories."""
        if jobs := await planes.ask(lambda client: listed(client.list_jobs())):
            self.timeline.find("jobs are left", jobs=[job.name for job in jobs])
        kept: list[str] = []

        async def collected() -> bool:
            try:
                kept[:] = await objects.list("checkpoints/")
            except STORAGE_ERRORS:
                return False
            return not kept

        if not jobs and not await within(SETTLE_SECONDS, collected):
            self.timeline.find("objects are left that no manifest of a job has", count=len(kept), first=kept[:5])
        paths = [WorkerPaths.prepare(cluster.worker(number)) for number in range(1, WORKERS + 1)]
        left: list[object] = []

        async def ended() -> bool:
            snapshots = [each for path in paths for each in path.snapshots.iterdir() if each.name != AGENT_LOCK]
            attempts = [each for path in paths for each in path.attempt_directories()]
            pids = [pid for number in range(1, WORKERS + 1) for pid in cluster.live_pids(number)]
            left[:] = [*snapshots, *attempts, *pids]
            return not left

        if not jobs and not await within(SETTLE_SECONDS, ended):
            self.timeline.find("processes or files of attempts are left", left=left)

    def table(self) -> str:
        """Returns what happened, and what was lost."""
        timeline = self.timeline
        kinds: Iterable[tuple[str, Counter[str]]] = (
            ("faults", timeline.faults),
            ("commands", timeline.commands),
            ("restarts, by what ended the attempt", timeline.restarts),
            ("seen", timeline.counts),
        )
        lines = []
        for title, counts in kinds:
            lines += ["", f"{title}: {counts.total()}" if title != "seen" else title]
            lines += [f"  {count:5}  {name}" for name, count in sorted((+counts).items())]
        lines += ["", f"seed {self.seed}, {timeline.seconds:.0f} s; lost: " + ("" if timeline.findings else "nothing")]
        return "\n".join((*lines, *(f"  {finding}" for finding in timeline.findings)))


async def within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    """Returns whether a condition came to hold within a time."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(AGAIN_SECONDS)
    return True


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Random faults on a whole stack.")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults are made")
    parser.add_argument("--seed", type=int, help="of the schedule; drawn and printed if not given")
    parser.add_argument("--faults", type=int, help="make so many faults, few and gentle ones; for the test suite")
    parser.add_argument("--directory", type=Path, help="where everything is kept; must not exist")
    options = parser.parse_args(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    directory = options.directory or Path(tempfile.mkdtemp(prefix="adjourn-chaos-"))
    directory.mkdir(parents=True, exist_ok=options.directory is None)
    print(f"chaos: SEED={seed}, in {directory}", flush=True)
    with guarded(directory), Timeline(directory / "timeline.jsonl") as timeline:
        chaos = Chaos(
            seed=seed,
            minutes=float("inf") if options.faults else options.minutes,
            faults=options.faults or sys.maxsize,
            profile=BRIEF if options.faults else FULL,
            directory=directory,
            timeline=timeline,
        )
        if signals.run(completed(chaos)) is None:
            print(f"interrupted; the timeline is {timeline.file}", flush=True)
            return 130
        print(chaos.table(), flush=True)
    if timeline.findings:
        print(f"the logs and {timeline.file.name} are in {directory}", flush=True)
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    return 0


async def completed(chaos: Chaos) -> bool:
    """Runs it; returns True, as a run that was interrupted does not."""
    await chaos.run()
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

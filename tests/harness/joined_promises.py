"""What is promised of control plane and workers together, whatever befalls them: looked at after every step."""

from typing import Any, Final

from adjourn.internal.v1.record_pb2 import JobRecord
from adjourn.v1.job_pb2 import Condition, Job, PauseMode
from adjourn_control_plane.job.events import ReleaseConfirmed
from adjourn_control_plane.job.machine import ENDED, HELD
from adjourn_control_plane.store.interface import JobName, Session, WorkerName
from tests.harness.joined_world import LEASE, TWIN, World

RESTS: Final = {
    "run": {Job.SUCCEEDED, Job.FAILED},
    "rest": {Job.PAUSED, Job.SUCCEEDED, Job.FAILED},
    "cancel": {Job.CANCELLED, Job.SUCCEEDED},
}
"""Where a job comes to rest, by what the commands came to."""
SETTLING: Final = 160
"""Turns within which everything comes to rest once all is mended."""


class Promises(World):
    """Looks on. After the store was set back less is promised: `whole` is False then."""

    def __init__(self) -> None:
        super().__init__()
        self.store.on_lost = self.worker_lost
        self.store.on_change = self.job_changed

    def look(self) -> None:
        """Looks at every job, and at every machine."""
        self.flow()  # what is read one after the other is read at one moment
        self.a_gpu_has_one_process()
        if not self.reads():
            return
        for stored in self.jobs():
            self.run(self.store.keeps_its_promises(stored.record))
            if stored.record.checkpoint.name:
                self.objects.assert_whole(stored.record.checkpoint)
            self.nobody_runs_what_rests(stored.record)
        if self.whole:
            self.what_the_jobs_own_attempt_made_durable_is_registered()

    def nobody_runs_what_rests(self, record: JobRecord) -> None:
        """Of each process it is known that it runs, or that it may run."""
        job = record.job
        doubted = [entry.token for entry in record.unconfirmed_releases]
        assert (Condition.RELEASE_UNCONFIRMED in [each.type for each in job.conditions]) == bool(doubted)
        known = [record.token] if job.state in HELD and not record.released else []
        alive = [
            training.assignment.token
            for host in self.hosts.values()
            for training in host.alive()
            if training.assignment.token.job_uid == job.uid
        ]
        assert alive.count(record.token) <= 1, "one process at most is the job's own"
        if job.state == Job.PAUSED and record.token in doubted:
            assert not job.pause.HasField("release_time"), "nobody knows that its GPUs are free"
        for token in alive if self.whole else ():
            assert token in (*known, *doubted), (
                f"{Job.State.Name(job.state)}, and a process of attempt {token.attempt} lives"
            )

    def a_gpu_has_one_process(self) -> None:
        for host in self.hosts.values():
            used = [uuid for training in host.alive() for uuid in training.assignment.device_uuids]
            assert len(set(used)) == len(used), "a GPU has one process"

    def what_the_jobs_own_attempt_made_durable_is_registered(self) -> None:
        """Also if its worker was out of reach for longer than a lease, as long as no other attempt was handed out."""
        for host in self.hosts.values():
            for report in host.journal.acknowledged:
                stored = self.run(self.store.get(JobName(report.job)))
                if stored is None or stored.record.token != report.token or not report.HasField("checkpoint"):
                    continue
                if stored.record.job.worker or stored.record.HasField("lost_attempt"):
                    assert stored.record.checkpoint.step >= report.checkpoint.step

    def job_changed(self, before: JobRecord | None, after: JobRecord | None) -> None:
        if before is not None and after is not None and self.whole:
            self.a_pause_is_taken_where_it_was_named(before, after)
            self.a_pause_says_what_it_gave_up(before, after)
            self.a_pause_becomes_earlier_only(before, after)
        self.asked_for(before, after)

    def a_pause_is_taken_where_it_was_named(self, before: JobRecord, after: JobRecord) -> None:
        """Unless its attempt failed or was lost on the way, which the pause then says."""
        asked, taken = before.job.pause, after.job.pause
        leaves = before.job.state == Job.PAUSING != after.job.state
        same = before.token == after.token and asked.request_time == taken.request_time
        if leaves and same and taken.HasField("pause_time") and not taken.HasField("lost_duration"):
            assert asked.boundary_epoch in (0, taken.epoch), "it was named, and it was no other"
        if after.job.state != Job.PAUSING:
            assert not taken.boundary_epoch

    def a_pause_says_what_it_gave_up(self, before: JobRecord, after: JobRecord) -> None:
        """To what was known of its progress. In mode LATEST that costs no restart."""
        if before.job.state == Job.PAUSING and after.job.state == Job.PAUSED:
            assert after.job.pause.lost_steps >= before.job.progress.step - after.job.progress.step
            if before.pause_mode == PauseMode.LATEST:
                assert after.job.restart_count <= before.job.restart_count

    def a_pause_becomes_earlier_only(self, before: JobRecord, after: JobRecord) -> None:
        same = before.job.pause.request_time == after.job.pause.request_time
        assert not same or after.job.pause.mode >= before.job.pause.mode
        if before.job.state == after.job.state == Job.PAUSING and before.token == after.token:
            assert after.pause_mode >= before.pause_mode

    def worker_lost(self, session: Session) -> None:
        """No lease ends because of an outage of ours: only workers that could not speak are taken for lost.

        A machine that was replaced speaks no more; its successor may not speak until that is noticed.
        """
        for host in self.hosts.values():
            if host.worker.instance == session.worker.instance and host.reachable and host.well_since is not None:
                assert self.clock.monotonic - host.well_since < LEASE, "it was there all the time"

    # the end

    def settle(self) -> None:
        """Mends everything; all that was begun comes to rest."""
        self.mend_replicas()
        self.objects.away = False
        self.hosts[TWIN].reboot()
        there = [host for machine, host in self.hosts.items() if machine != TWIN]
        for machine in [each for each in self.hosts if each != TWIN]:
            self.continue_agent(machine)
            self.hosts[machine].mend()
            for by_agent in (True, False):
                self.drain(machine, wanted=False, by_agent=by_agent)
            for training in self.hosts[machine].alive():
                training.hung &= training.hang_is_found
        quiet = 0
        for _ in range(SETTLING):
            for host in there:
                if host.agent is None:
                    host.start_agent()
            self.turn(steps=5)
            self.operators_say_what_is_gone()
            self.look()
            quiet = 0 if self.restless() else quiet + 1
            if quiet > 3:
                break
        assert not self.restless(), f"everything comes to rest: {self.restless()}"
        for stored in self.jobs():
            job = stored.record.job
            wanted = self.wanted[job.uid]
            rest = "cancel" if "cancel" in wanted else "rest" if wanted else "run"
            assert job.state in RESTS[rest], (wanted, job)
            assert not stored.record.unconfirmed_releases, "each worker is back, or was said to be gone"

    def operators_say_what_is_gone(self) -> None:
        """Of machines that were replaced or switched off: their successors cannot, and may have the same GPUs."""
        here = {host.worker.instance for machine, host in self.hosts.items() if machine != TWIN}
        for stored in self.jobs():
            for entry in stored.record.unconfirmed_releases:
                if entry.instance not in here:
                    event = ReleaseConfirmed(actor="ops", token=entry.token)
                    self.run(self.replicas[0].updater.apply(JobName(stored.record.job.name), event))

    def restless(self) -> list[Any]:
        """Returns what is not at rest yet."""
        moving: list[Any] = [
            stored.record.job for stored in self.jobs() if stored.record.job.state not in ENDED | {Job.PAUSED}
        ]
        for machine, host in self.hosts.items():
            moving += host.alive()
            if machine != TWIN:
                moving += host.journal.waiting
                session = self.run(self.store.session(WorkerName(host.name)))
                spoken = session is not None and session.worker.instance == host.worker.instance
                moving += [] if spoken else [f"{machine} does not speak"]
        return moving

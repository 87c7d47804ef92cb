"""Networks that fail, and processes that die at the worst place: the job ends where it would have ended."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from adjourn.client import AsyncClient
from adjourn.manifests import decode
from adjourn.objects import S3Objects
from adjourn.v1.job_pb2 import Job, JobSpec, Pause
from adjourn.v1.job_service_pb2 import JobEvent, StreamLogsResponse
from adjourn.v1.manifest_pb2 import Manifest
from adjourn.v1.worker_pb2 import Worker
from tests.harness.checkpoint_objects import damage, keep_no_longer
from tests.harness.cluster import CLIENTS, Cluster
from tests.harness.fault_proxy import Link, Way
from tests.harness.jobs import EPOCHS, WAIT_SECONDS, GatedJob, GatedJobs, Outcome

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]
WORKERS = ("worker-1", "worker-2")
LEASE_SECONDS = 12
"""An agent that was killed has to be back within it: some 2 s, three times that on a busy machine."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def whole_cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Two control planes and two workers; leases so long that only a test that is about them sees one end."""
    timing = {
        "ADJOURN_SYNC_INTERVAL": "0.25",
        "ADJOURN_LEASE_DURATION": str(LEASE_SECONDS),
        "ADJOURN_DRAIN_GRACE": "60",
    }
    async with Cluster(
        directory=tmp_path_factory.mktemp("cluster"), control_planes=2, workers=2, on_term="drain", environment=timing
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(whole_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, whose network is whole before and after a test."""
    yield whole_cluster
    whole_cluster.proxies.heal()
    whole_cluster.disarm()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def client(whole_cluster: Cluster) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(whole_cluster.address) as connected:
        yield connected


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def uninterrupted(
    client: AsyncClient, tmp_path_factory: pytest.TempPathFactory, eventually: Eventually
) -> Outcome:
    directory = tmp_path_factory.mktemp("uninterrupted")
    gated = await GatedJobs(client=client, directory=directory, eventually=eventually).start("uninterrupted", limit=1)
    for epoch in range(1, EPOCHS):  # one at a time: a periodic checkpoint is left out if two are under way
        await gated.durable(epoch)
        gated.gate.open(epoch + 1)
    await gated.finish()
    return await gated.outcome()


@pytest_asyncio.fixture(loop_scope="session")
async def gated_jobs(
    cluster: Cluster, client: AsyncClient, tmp_path: Path, eventually: Eventually
) -> AsyncIterator[GatedJobs]:
    made = GatedJobs(client=client, directory=tmp_path, eventually=eventually)
    yield made
    cluster.proxies.heal()
    await made.end()


@pytest.fixture
def third_epoch(gated_jobs: GatedJobs) -> Callable[..., Awaitable[tuple[GatedJob, str]]]:
    """Starts a job; returns it in the middle of its third epoch, with the name of its worker's process."""

    async def start(name: str, **fields: Any) -> tuple[GatedJob, str]:
        gated = await gated_jobs.start(name, limit=2, spec=JobSpec(**fields))
        await gated.inside(3)
        await gated.durable(2)
        return gated, (await gated.get()).worker.removeprefix("workers/")

    return start


ThirdEpoch = Callable[..., Awaitable[tuple[GatedJob, str]]]


async def test_an_agent_dies_wherever_a_checkpoint_is_made_durable(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated, worker = await third_epoch("agent-dies")
    points = ("part-uploaded", "before-manifest", "after-manifest", "before-journal", "after-journal")
    for epoch, point in enumerate(points, start=3):
        cluster.arm(worker, f"worker.{point}")
        gated.gate.open(epoch)
        await eventually(lambda hit=f"worker.{point}": cluster.was_hit(worker, hit))
        await gated.durable(epoch)
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == uninterrupted


async def test_an_agent_dies_on_both_ways_of_a_pause(
    cluster: Cluster, gated_jobs: GatedJobs, uninterrupted: Outcome, eventually: Eventually
) -> None:
    """Between a process and the journal, at its begin and its end; between a manifest and the parts."""
    for worker in WORKERS:
        cluster.arm(worker, "worker.launched-before-journal")
    gated = await gated_jobs.start("agent-dies-around", limit=2)
    training = await gated.inside(3)
    worker = (await gated.get()).worker.removeprefix("workers/")
    assert cluster.was_hit(worker, "worker.launched-before-journal")
    cluster.arm(worker, "worker.exited-before-journal")
    paused = await gated.pause(3)
    assert cluster.was_hit(worker, "worker.exited-before-journal")
    assert (paused.attempt, paused.restart_count, training.lives()) == (1, 0, False)
    for worker in WORKERS:
        cluster.arm(worker, "worker.manifest-read")
        cluster.arm(worker, "launcher.forked")
    await gated.client.resume_job(gated.name)
    await gated.until(Job.RUNNING, seconds=90)  # another agent and another launcher have to start
    await gated.inside(4)
    worker = (await gated.get()).worker.removeprefix("workers/")
    assert cluster.was_hit(worker, "worker.manifest-read")
    assert cluster.was_hit(worker, "launcher.forked")
    assert (await gated.finish()).restart_count == 0
    assert await gated.outcome() == uninterrupted


async def test_training_dies_wherever_it_saves_or_ends(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome, eventually: Eventually
) -> None:
    gated, _ = await third_epoch("training-dies", max_restarts=4)
    deaths = {3: "before-snapshot-event", 4: "after-snapshot-event", 5: "before-finish"}
    for attempt, (epoch, point) in enumerate(deaths.items(), start=2):
        await gated.inside(epoch)
        worker = (await gated.get()).worker.removeprefix("workers/")
        cluster.arm(worker, f"training.{point}")  # not where the next attempt may come there, too
        gated.gate.open(EPOCHS if point == "before-finish" else epoch)
        died = await gated.until(lambda job, begun=attempt: job.attempt == begun)
        assert died.failure.reason == "PROCESS_KILLED"
    job = await gated.finish()
    assert job.attempt == 1 + len(deaths)
    assert await gated.outcome() == uninterrupted


async def test_a_control_plane_dies_wherever_it_serves_a_pause(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome, client: AsyncClient
) -> None:
    """The caller asks the other one again and gets one answer; what it asked for happened once."""
    gated, _ = await third_epoch("control-plane-dies")
    link = cluster.link(CLIENTS)
    both = list(link.servers)
    for epoch, point in enumerate(("before-commit", "after-commit", "before-reply"), start=3):
        training = await gated.inside(epoch)
        link.servers = both[:1]
        link.reset()
        await gated.get()
        link.servers = both
        cluster.arm("control-plane-1", f"control-plane.{point}")
        await gated.ask_for_pause(training)
        gated.gate.open(epoch)
        paused = await gated.until(Job.PAUSED)
        assert cluster.was_hit("control-plane-1", f"control-plane.{point}")
        assert (paused.pause.epoch, paused.restart_count) == (epoch, 0)
        await client.resume_job(gated.name)
        await cluster.ready("control-plane-1")
    asked = [event async for event in client.list_job_events(gated.name) if event.type == JobEvent.PAUSE_REQUESTED]
    assert len(asked) == 3
    await gated.finish()
    assert await gated.outcome() == uninterrupted


async def test_a_network_that_fails_for_less_than_a_lease_costs_nothing(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome
) -> None:
    gated, worker = await third_epoch("network-fails")
    link = cluster.link(worker)
    stores = [cluster.link(f"{name}/redis") for name in ("control-plane-1", "control-plane-2")]

    async def resets() -> None:
        for _ in range(10):
            link.reset()
            await asyncio.sleep(0.2)

    async def deaf() -> None:
        link.black_hole(Way.TO_CLIENT)
        await asyncio.sleep(2)

    async def mute() -> None:
        link.black_hole(Way.TO_SERVER)
        await asyncio.sleep(2)

    async def cuts() -> None:
        for way in Way:
            link.cut_after(30, way)
            link.half_close(way)

    async def store() -> None:
        for each in stores:
            each.lose_reply(b"EVALSHA", times=2)
            each.cut_after(100, Way.TO_SERVER)
            each.slow(delay=0.05)
        await asyncio.sleep(1)

    for epoch, fault in enumerate((resets, deaf, mute, cuts, store), start=3):
        failing = asyncio.create_task(fault())
        gated.gate.open(epoch)
        await failing
        cluster.proxies.heal()
        await gated.durable(epoch)
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == uninterrupted


async def test_whatever_is_repeated_counts_once(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome, client: AsyncClient, eventually: Eventually
) -> None:
    """Reports that were applied and not acknowledged come again; so do calls whose answers were lost."""
    gated, worker = await third_epoch("repeats")
    link, storage, calls = cluster.link(worker), cluster.link(f"{worker}/s3"), cluster.link(CLIENTS)

    def lost(way: Link) -> int:
        return sum(hit.startswith("lose reply") for hit in way.hits)

    async def unacknowledged(epoch: int, times: int = 1) -> None:
        """Has a checkpoint registered without an answer, so often; returns when it has come again and was answered."""
        storage.hits.clear()
        storage.befall("hold", "PUT .*/manifests/", times=1)
        gated.gate.open(epoch)
        await eventually(lambda: storage.hits)
        before = lost(link)
        link.lose_reply(b"/manifests/", times=times)
        storage.heal()
        await eventually(lambda: lost(link) == before + times)
        await gated.durable(epoch)
        now = datetime.now(UTC)
        async with asyncio.timeout(30):
            while (await client.get_worker(worker)).report_time.ToDatetime(UTC) < now:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    lost_before = lost(calls)
    await unacknowledged(3, times=3)
    await unacknowledged(4)
    training = await gated.inside(5)
    calls.lose_reply(gated.name.encode(), times=2)
    await gated.ask_for_pause(training)
    await unacknowledged(5)
    paused = await gated.until(Job.PAUSED)
    assert (paused.pause.epoch, paused.attempt) == (5, 1)
    calls.lose_reply(gated.name.encode(), times=2)
    await client.resume_job(gated.name)
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (2, 0)
    assert lost(calls) == lost_before + 4
    counts = Counter([event.type async for event in client.list_job_events(gated.name)])
    once = (JobEvent.PAUSE_REQUESTED, JobEvent.PAUSED, JobEvent.RESUME_REQUESTED, JobEvent.SUCCEEDED)
    assert [counts[each] for each in once] == [1, 1, 1, 1]
    assert counts[JobEvent.CHECKPOINT_REGISTERED] == len([made async for made in client.list_checkpoints(gated.name)])
    assert await gated.outcome() == uninterrupted


async def test_a_control_plane_that_stands_still_holds_up_nobody(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome
) -> None:
    """Its loop is blocked, so it answers pings and nothing else; its agents' leases are not over before it goes on."""
    gated, _ = await third_epoch("control-plane-stands-still")
    for name in ("control-plane-1", "control-plane-2"):
        cluster.arm(name, "control-plane.before-commit", "sleep=4")
    gated.gate.open(3)
    await gated.durable(3)
    assert any(cluster.was_hit(name, "control-plane.before-commit") for name in ("control-plane-1", "control-plane-2"))
    job = await gated.finish()
    assert (job.attempt, job.restart_count) == (1, 0)
    assert await gated.outcome() == uninterrupted


async def test_a_store_that_answers_nothing_for_longer_than_a_lease_costs_only_time(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome, client: AsyncClient, eventually: Eventually
) -> None:
    """Training goes on, no lease ends, and what was asked for meanwhile happens once, as soon as it can."""
    gated, _ = await third_epoch("store-silent")
    training = await gated.inside(3)
    silent = LEASE_SECONDS + 1
    async with Redis.from_url(cluster.redis_url) as redis, AsyncClient(cluster.address, timeout=60) as patient:
        began = time.monotonic()
        await redis.client_pause(1000 * silent)
        asking = asyncio.create_task(patient.pause_job(gated.name))
        gated.gate.open(4)
        await eventually(lambda: gated.gate.inside(5) == training)
        assert (await asking).state == Job.PAUSING
        assert time.monotonic() - began > silent - 0.1  # it counts whole milliseconds
    await eventually(training.is_to_pause)
    gated.gate.open(5)
    paused = await gated.until(Job.PAUSED)
    assert (paused.pause.epoch, paused.attempt, paused.restart_count) == (5, 1, 0)
    asked = [event async for event in client.list_job_events(gated.name) if event.type == JobEvent.PAUSE_REQUESTED]
    assert len(asked) == 1
    await client.resume_job(gated.name)
    assert (await gated.finish()).restart_count == 0
    assert await gated.outcome() == uninterrupted


async def test_an_agent_dies_amid_an_upload_that_arrives_late(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome, client: AsyncClient, eventually: Eventually
) -> None:
    """What it was sending is sent by the next agent, and then arrives a second time: the same checkpoint, once."""
    gated, worker = await third_epoch("dies-amid-upload")
    prefix = f"checkpoints/{(await gated.get()).uid}"
    link = cluster.link(f"{worker}/s3")
    async with S3Objects(cluster.s3) as objects:
        for epoch, what in enumerate(("parts", "manifests"), start=3):
            link.hits.clear()
            link.befall("hold", f"PUT .*/{what}/", times=1)
            gated.gate.open(epoch)
            await eventually(lambda: link.hits)
            agent = cluster.process(worker)
            cluster.kill(worker)
            assert len(await objects.list(f"{prefix}/manifests/")) == epoch - 1
            await gated.durable(epoch)
            assert not agent.is_running()
            link.heal()
        for epoch in range(5, EPOCHS):  # one at a time: a periodic checkpoint is left out if two are under way
            gated.gate.open(epoch)
            await gated.durable(epoch)
        job = await gated.finish()
        assert (job.attempt, job.restart_count) == (1, 0)
        made = [checkpoint async for checkpoint in client.list_checkpoints(gated.name)]
        assert [checkpoint.epoch for checkpoint in made] == list(range(EPOCHS, 0, -1))
        assert len(await objects.list(f"{prefix}/manifests/")) == EPOCHS
        for checkpoint in made:
            assert not await damage(checkpoint, partial(objects.get, limit=64 << 20))
    assert await gated.outcome() == uninterrupted


async def test_a_purge_takes_nothing_from_who_reads_meanwhile(
    cluster: Cluster,
    third_epoch: ThirdEpoch,
    gated_jobs: GatedJobs,
    uninterrupted: Outcome,
    client: AsyncClient,
    eventually: Eventually,
) -> None:
    """Deleted: a job whose parts are the same bytes, and one whose own checkpoint a worker is just fetching."""
    twin = await gated_jobs.start("twin", limit=EPOCHS)
    gated, _ = await third_epoch("reads")
    paused = [await gated.pause(3)]
    await twin.finish()
    doomed = await gated_jobs.start("doomed")
    paused.append(await doomed.pause(1))
    for job in paused:
        checkpoint = await client.get_checkpoint(job.pause.checkpoint)
        await keep_no_longer(cluster.directory / "workers", checkpoint, eventually)
    links = [cluster.link(f"{worker}/s3") for worker in WORKERS]
    for link in links:
        link.hits.clear()
        link.befall("hold", "GET .*/parts/")
    await client.resume_job(gated.name)
    await client.resume_job(doomed.name)
    await eventually(lambda: all(link.hits for link in links))
    await client.cancel_job(doomed.name)
    await doomed.until(Job.CANCELLED)
    async with S3Objects(cluster.s3) as objects, asyncio.timeout(30):
        uids = [(await each.get()).uid for each in (twin, doomed)]
        for uid in uids:
            assert await objects.list(f"checkpoints/{uid}/")
        for each in (twin, doomed):
            await client.delete_job(each.name)
            gated_jobs.made.remove(each)
        for uid in uids:
            while await objects.list(f"checkpoints/{uid}/"):  # noqa: ASYNC110  # the storage tells nobody
                await asyncio.sleep(0.1)
    cluster.proxies.heal()
    await gated.inside(4)
    job = await gated.finish()
    assert (job.pause.verdict, job.attempt, job.restart_count) == (Pause.EXACT, 2, 0)
    assert await gated.outcome() == uninterrupted
    assert [(worker.state, list(worker.jobs)) async for worker in client.list_workers()] == [(Worker.ACTIVE, [])] * 2


async def test_storage_that_answers_with_errors_costs_a_pause_only_time(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome
) -> None:
    gated, _ = await third_epoch("s3-errors")
    for worker in WORKERS:
        link = cluster.link(f"{worker}/s3")
        link.befall("answer", share=0.3)
        link.befall("cut reply", "PUT", times=2)
        link.befall("cut request", "PUT", times=1)
        link.befall("repeat", "PUT", times=3)
        link.befall("half reply", "GET", times=2)
    await gated.pause(3)
    await gated.client.resume_job(gated.name)
    job = await gated.finish()
    assert (job.state, job.attempt, job.restart_count) == (Job.SUCCEEDED, 2, 0)
    assert await gated.outcome() == uninterrupted


async def test_a_log_is_followed_whatever_happens(
    cluster: Cluster, third_epoch: ThirdEpoch, client: AsyncClient, eventually: Eventually
) -> None:
    """Over storage that is away, an agent and control planes that die, a pause, and a resume on another worker."""
    gated, first = await third_epoch("followed")
    printed: dict[int, bytes] = {}
    ends: list[tuple[int, int]] = []

    async def follow() -> None:
        async for message in client.stream_logs(gated.name, follow=True):
            assert message.offset == len(printed.get(message.attempt, b"")), "no gap, no repetition"
            printed[message.attempt] = printed.get(message.attempt, b"") + message.data
            ends.extend([(message.attempt, message.end)] if message.end else [])

    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        await eventually(lambda: b"epoch 2: " in printed.get(1, b""))
        cluster.link(f"{first}/s3").befall("answer", status=503)
        gated.gate.open(3)
        await gated.inside(4)  # training waits for no log
        assert b"epoch 3: " not in printed[1]
        cluster.proxies.heal()
        await eventually(lambda: b"epoch 3: " in printed[1])
        for process in (first, "control-plane-1", "control-plane-2"):
            cluster.kill(process)
        await cluster.ready()
        gated.gate.open(4)
        await eventually(lambda: b"epoch 4: " in printed[1])
        await gated.pause(5)
        await eventually(lambda: ends == [(1, StreamLogsResponse.WHOLE)])
        await client.drain_worker(first)
        await client.resume_job(gated.name)
        await gated.inside(6)
        await client.undrain_worker(first)
        await gated.finish()
        await following
    job = await gated.get()
    assert (job.attempt, job.worker != f"workers/{first}") == (2, True)
    assert ends == [(attempt, StreamLogsResponse.WHOLE) for attempt in (1, 2)]
    (log,) = (cluster.worker_directory(first) / "logs").glob("followed-*-1-*.log")
    assert printed[1] == log.read_bytes()
    epochs = [[f"epoch {epoch}: ".encode() in text for epoch in range(1, EPOCHS + 1)] for text in printed.values()]
    assert epochs == [[True] * 5 + [False] * 3, [False] * 5 + [True] * 3]
    tail = [message.data async for message in client.stream_logs(gated.name, tail_lines=1)]
    assert tail[0].startswith(b"epoch 8: ")


async def test_an_agent_that_gets_sigterm_lets_its_job_go_on_elsewhere(
    cluster: Cluster, third_epoch: ThirdEpoch, uninterrupted: Outcome, eventually: Eventually
) -> None:
    """From the boundary; after a second SIGTERM, from the newest checkpoint. Neither is a restart."""
    gated, first = await third_epoch("sigterm")
    training = await gated.inside(3)
    cluster.terminate(first)
    await eventually(training.is_to_pause)
    gated.gate.open(3)
    training = await gated.inside(4)
    job = await gated.client.wait_job(gated.name, until=lambda job: bool(job.pause.verdict), timeout=WAIT_SECONDS)
    second = job.worker.removeprefix("workers/")
    assert (second != first, job.attempt, job.restart_count) == (True, 2, 0)
    assert (job.pause.cause, job.pause.epoch, job.pause.verdict) == (Pause.DRAINED, 3, Pause.EXACT)
    await eventually(lambda: not cluster.runs(first))
    cluster.up(first)
    await cluster.ready(first)
    cluster.terminate(second)
    await eventually(training.is_to_pause)
    cluster.terminate(second)
    await eventually(lambda: not training.lives())
    await gated.inside(4)
    job = await gated.get()
    assert (job.worker, job.attempt, job.restart_count) == (f"workers/{first}", 3, 0)
    await eventually(lambda: not cluster.runs(second))
    cluster.up(second)
    await gated.finish()
    assert await gated.outcome() == uninterrupted


async def test_a_store_that_has_lost_everything_costs_no_training(
    cluster: Cluster,
    third_epoch: ThirdEpoch,
    uninterrupted: Outcome,
    client: AsyncClient,
    gated_jobs: GatedJobs,
    eventually: Eventually,
) -> None:
    """What no store knows is saved at its boundary, whole and bit for bit; then its process goes. Comes last here."""
    gated, _ = await third_epoch("store-lost")
    training = await gated.inside(3)
    uid = (await gated.get()).uid
    twin = [found async for found in client.list_checkpoints("jobs/uninterrupted") if found.epoch == 3]
    gated_jobs.made.remove(gated)
    async with Redis.from_url(cluster.redis_url) as redis:
        await redis.flushall()
    await eventually(training.is_to_pause)
    gated.gate.open(3)
    await eventually(lambda: not training.lives())
    async with S3Objects(cluster.s3) as objects:
        prefix = f"checkpoints/{uid}"
        async with asyncio.timeout(30):
            while (newest := await newest_manifest(objects, prefix)).progress.epoch < 3:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (newest.job, dict(newest.component_digests)) == (gated.name, dict(twin[0].component_digests))
        stored = await objects.list(f"{prefix}/parts/")
        for part in newest.parts:
            assert stored[f"{prefix}/parts/{part.digest}"] == part.size_bytes


async def newest_manifest(objects: S3Objects, prefix: str) -> Manifest:
    keys = await objects.list(f"{prefix}/manifests/")
    manifests = [decode(await objects.get(key, limit=1 << 20)) for key in keys]
    return max(manifests, key=lambda manifest: manifest.progress.epoch)

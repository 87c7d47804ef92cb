"""A bundle that nobody needs is removed; one that a job names is not, whoever is slow or dies whenever."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from adjourn import bundles, errors
from adjourn.v1.job_pb2 import Job
from adjourn_control_plane.fleet import bundle_collector
from adjourn_control_plane.fleet.bundle_collector import GRACE_SECONDS, HOLD_SECONDS, BundleCollector
from tests.harness.bundle_world import BUNDLE, KEY, Actor, BundleWorld
from tests.harness.controllers import SETTINGS, Controllers
from tests.harness.memory_objects import MemoryObjects
from tests.harness.memory_store import MemoryStore


@pytest.fixture
async def world() -> AsyncIterator[BundleWorld]:
    """The bundle is there, and no job names it. In the end it is removed, and can be uploaded and used again."""
    world = BundleWorld()
    await world.upload().end()
    yield world
    await world.check()
    for name in await world.jobs():
        await world.delete(name.removeprefix("jobs/"))
    for _ in range(3):
        await world.collect(0).end()
        await world.collect(1).end()
        world.seconds += max(GRACE_SECONDS, HOLD_SECONDS)
    assert not world.is_there()
    marks = await world.store.bundle_marks()
    assert not marks.doomed
    assert not marks.removing
    assert await world.upload().end() is True
    assert isinstance(await world.create("afterwards").end(), Job)


async def doomed(world: BundleWorld) -> None:
    """Lets both replicas have seen for a while that the bundle is doomed."""
    await world.collect(0).end()
    for replica in (0, 1):
        await world.collect(replica).end()
    world.seconds += GRACE_SECONDS


def missing(outcome: object) -> bool:
    return isinstance(outcome, errors.BundleMissingError) and "upload it again" in outcome.message


async def test_what_no_job_names_is_removed_after_a_grace(world: BundleWorld) -> None:
    await world.collect().end()
    world.seconds += GRACE_SECONDS
    await world.collect().end()
    assert world.is_there(), "from when it saw that it is doomed"
    world.seconds += GRACE_SECONDS - 1
    await world.collect().end()
    assert world.is_there()
    world.seconds += 1
    await world.collect().end()
    assert not world.is_there()
    assert missing(await world.create().end())


async def test_a_process_that_starts_counts_anew(world: BundleWorld) -> None:
    await doomed(world)
    await Actor(world.collector().collect).end()
    assert world.is_there()


async def test_what_a_job_names_stays(world: BundleWorld) -> None:
    await world.create().end()
    for _ in range(5):
        await world.collect().end()
        world.seconds += GRACE_SECONDS
    assert world.is_there()


async def test_a_job_of_a_later_page_counts(world: BundleWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_collector, "PAGE", 2)
    for number in range(7):
        await world.create(f"j{number}").end()
    for number in range(1, 7):
        await world.delete(f"j{number}")
        others = Controllers(world.store)
        await others.create(f"other-{number}")
    await doomed(world)
    await world.collect().end()
    assert world.is_there()


@pytest.mark.parametrize("by", ["create", "upload"])
async def test_what_is_doomed_and_wanted_is_saved(world: BundleWorld, by: str) -> None:
    await doomed(world)
    await (world.create() if by == "create" else world.upload()).end()
    await world.collect(0).end()
    await world.collect(1).end()
    assert world.is_there()
    assert by == "upload" or await world.jobs()


@pytest.mark.parametrize("at", ["want_bundle", "stat", "commit"])
@pytest.mark.parametrize("collector_at", ["page", "claim_bundle", "delete", "bundle_removed", "the end"])
@pytest.mark.parametrize("create_is_first", [False, True])
async def test_a_job_is_created_while_its_bundle_is_removed(
    world: BundleWorld, at: str, collector_at: str, create_is_first: bool
) -> None:
    """The job has its bundle, or is not created and says what to do."""
    await doomed(world)
    collector, create = world.collect(), world.create()
    if create_is_first:
        await create.until(at)
        await collector.until_or_end(collector_at)
    else:
        await collector.until_or_end(collector_at)
        await create.until_or_end(at)
        await collector.step()
    await world.check()
    outcome = await create.end()
    await world.check()
    await collector.end()
    await world.check()
    assert bool(await world.jobs()) == isinstance(outcome, Job)
    assert isinstance(outcome, Job) or missing(outcome)
    assert world.is_there() == isinstance(outcome, Job)


async def test_a_job_is_created_by_a_replica_that_stood_still_while_its_bundle_was_removed(world: BundleWorld) -> None:
    create = world.create()
    await create.until("commit")
    await doomed(world)
    await world.collect().end()
    assert not world.is_there()
    assert missing(await create.end())


async def test_bundles_that_are_removed_elsewhere_hold_up_no_job(world: BundleWorld) -> None:
    create = world.create()
    await create.until("commit")
    await world.store.doom_bundles(["bundles/other"])
    assert isinstance(await create.end(), Job)


async def test_a_slow_replica_dooms_the_bundle_of_a_new_job_and_another_does_not_take_its_word(
    world: BundleWorld,
) -> None:
    slow = world.collect(0)
    await slow.until("doom_bundles")
    await world.create().end()
    await slow.end()
    assert (await world.store.bundle_marks()).doomed.keys() == {BUNDLE}
    await world.collect(0).end()
    world.seconds += GRACE_SECONDS
    for replica in (0, 1, 0, 1):
        await world.collect(replica).end()
    assert world.is_there()


async def test_a_slow_replica_dooms_anew_what_another_is_about_to_claim(world: BundleWorld) -> None:
    """The stamp that it is about to claim by is gone, although the bundle is doomed again."""
    await doomed(world)
    await world.upload().end()  # takes it off
    slow = world.collect(1)
    await slow.until("doom_bundles")
    await doomed(world)
    about = world.collect(0)
    await about.until("claim_bundle")
    await world.create().end()
    await slow.end()
    assert (await world.store.bundle_marks()).doomed.keys() == {BUNDLE}
    await about.end()
    assert world.is_there()


async def test_of_two_replicas_one_removes_it(world: BundleWorld) -> None:
    await doomed(world)
    one, other = world.collect(0), world.collect(1)
    await one.until("claim_bundle")
    await other.until("claim_bundle")
    await one.until("delete")
    await other.end()
    assert world.is_there()
    await one.end()
    assert not world.is_there()


async def test_an_upload_waits_while_its_bundle_is_removed(world: BundleWorld) -> None:
    await doomed(world)
    collector = world.collect()
    await collector.until("delete")
    assert await world.upload().end() is False
    await collector.until("bundle_removed")
    assert await world.upload().end() is False
    await collector.end()
    assert await world.upload().end() is True


async def test_an_upload_that_had_begun_before_the_removal_may_be_lost_and_no_job_with_it(world: BundleWorld) -> None:
    upload, collector = world.upload(), world.collect()
    await upload.until("put")
    await doomed(world)
    await collector.until("delete")
    assert await upload.end() is True
    assert missing(await world.create().end())
    await collector.end()
    assert missing(await world.create().end())


@pytest.mark.parametrize("at", ["claim_bundle", "delete", "bundle_removed"])
@pytest.mark.parametrize("how", ["killed", "stopped", "unheard"])
async def test_who_removes_it_does_not_get_to_the_end(world: BundleWorld, at: str, how: str) -> None:
    """Nobody can use the bundle until another has removed it; what the first does later changes nothing."""
    await doomed(world)
    first = world.collect(0)
    await first.until(at)
    if how == "killed":
        await first.kill()
    if how == "unheard":
        world.objects.failing = True
        await first.end()
        world.objects.failing = False
        assert missing(await world.create().end())
    other = world.collect(1)
    await other.end()
    claimed = at != "claim_bundle" and not (how == "unheard" and at == "bundle_removed")
    if claimed:
        assert await world.upload().end() is False, "it is being removed for as long as a deletion may come"
        world.seconds += HOLD_SECONDS
        await world.collect(1).end()
    assert not world.is_there() or how == "unheard"
    world.seconds += HOLD_SECONDS
    await world.collect(1).end()
    assert await world.upload().end() is True
    assert isinstance(await world.create().end(), Job)
    if how == "stopped":
        await first.end()
    assert world.is_there()


async def test_who_comes_back_does_not_speak_for_the_claim_of_another(world: BundleWorld) -> None:
    await doomed(world)
    first, other = world.collect(0), world.collect(1)
    await first.until("bundle_removed")
    await other.end()
    world.seconds += HOLD_SECONDS
    other = world.collect(1)
    await other.until("delete")
    await first.end()
    assert await world.upload().end() is False
    await other.end()


async def test_a_deletion_that_storage_refuses_leaves_the_bundle_to_whoever_wants_it(world: BundleWorld) -> None:
    await doomed(world)
    collector = world.collect()
    await collector.until("delete")
    world.seconds += 3600  # it has expired
    await collector.end()
    assert world.is_there()
    assert isinstance(await world.create().end(), Job)


async def test_what_was_uploaded_a_while_ago_stays_and_so_does_what_is_no_bundle() -> None:
    objects = MemoryObjects()
    now = datetime.now(UTC)
    objects.now = lambda: now - SETTINGS.bundle_retention + timedelta(minutes=1)
    await objects.put(KEY, b"code")
    objects.now = lambda: now - SETTINGS.bundle_retention - timedelta(minutes=1)
    strange = ["bundles/readme", f"{KEY}.tmp", f"other/{KEY}", KEY.replace("b" * 64, "x" * 64)]
    old = bundles.object_key(f"bundles/{'a' * 64}")
    for key in (*strange, old):
        await objects.put(key, b"x")
    seconds = 0.0
    collector = BundleCollector(MemoryStore(), objects, SETTINGS, monotonic=lambda: seconds)
    for _ in range(3):
        await collector.collect()
        seconds += GRACE_SECONDS
    assert set(objects.contents) == {KEY, *strange}


async def test_a_refusal_of_one_deletion_holds_up_no_other() -> None:
    class Locked(MemoryObjects):
        def deletion(self, key: str):  # type: ignore[no-untyped-def]
            async def refused() -> None:
                raise errors.ObjectStoreRefusedError("AccessDenied")

            return refused if "a" * 64 in key else super().deletion(key)

    objects = Locked()
    objects.now = lambda: datetime(2000, 1, 1, tzinfo=UTC)
    keys = [bundles.object_key(f"bundles/{letter * 64}") for letter in "abc"]
    for key in keys:
        await objects.put(key, b"x")
    seconds = 0.0
    store = MemoryStore()
    collector = BundleCollector(store, objects, SETTINGS, monotonic=lambda: seconds)
    for _ in range(3):
        await collector.collect()
        seconds += GRACE_SECONDS
    assert set(objects.contents) == {keys[0]}
    assert await store.want_bundle(f"bundles/{'a' * 64}"), "nothing was deleted: it may be used"

"""Bundles on their way out: doomed, wanted, claimed, removed."""

import asyncio

import pytest

from adjourn_control_plane.store.interface import BundleMarks, BundlesRemoved, Change, JobName, JobStore
from tests.harness.store_records import creation, record, there

A, B, C = (f"bundles/{letter * 64}" for letter in "abc")
JOB = JobName("jobs/a")


async def doomed(store: JobStore, *bundles: str) -> dict[str, int]:
    await store.doom_bundles(bundles)
    return dict((await store.bundle_marks()).doomed)


async def test_a_doomed_bundle_keeps_its_stamp_until_it_is_wanted(store: JobStore) -> None:
    assert await store.bundle_marks() == BundleMarks(doomed={}, removing={})
    first = await doomed(store, A, B)
    assert first.keys() == {A, B}
    second = await doomed(store, B, C)
    assert second.keys() == {A, B, C}
    assert {bundle: second[bundle] for bundle in (A, B)} == first
    assert second[C] not in first.values()
    steps = await store.want_bundle(B)
    assert await store.want_bundle("bundles/other") == steps
    assert (await store.bundle_marks()).doomed.keys() == {A, C}
    again = await doomed(store, B)
    assert again[B] not in second.values()
    assert await store.want_bundle(B) != steps


async def test_a_bundle_is_claimed_by_its_stamp_and_once(store: JobStore) -> None:
    stamps = await doomed(store, A, B)
    assert await store.claim_bundle(A, stamps[A] + 100) is None
    assert await store.claim_bundle(C, stamps[A]) is None
    claims = await asyncio.gather(*(store.claim_bundle(A, stamps[A]) for _ in range(5)))
    (claim,) = [each for each in claims if each is not None]
    assert claim not in stamps.values()
    assert await store.bundle_marks() == BundleMarks(doomed={B: stamps[B]}, removing={A: claim})
    assert await store.want_bundle(A) is None
    assert A not in await doomed(store, A), "it is being removed"
    anew = await store.claim_bundle(A, claim)
    assert anew not in (None, claim)
    await store.bundle_removed(A, claim)  # says the first, who is late
    assert await store.want_bundle(A) is None
    assert anew is not None
    await store.bundle_removed(A, anew)
    await store.bundle_removed(A, anew)
    assert await store.want_bundle(A) is not None
    assert (await store.bundle_marks()).removing == {}


@pytest.mark.parametrize("step", ["doomed", "claimed"])
async def test_a_job_is_not_created_if_bundles_were_on_their_way_since_its_was_wanted(
    store: JobStore, step: str
) -> None:
    def new(wanted_at: int | None) -> Change:
        return Change(job=JOB, expected=0, record=record(JOB), wanted_at=wanted_at)

    stamps = await doomed(store, A)
    wanted_at = await store.want_bundle(B)
    await (doomed(store, C) if step == "doomed" else store.claim_bundle(A, stamps[A]))
    with pytest.raises(BundlesRemoved):
        await store.commit(new(wanted_at))
    assert await store.get(JOB) is None
    wanted = new(await store.want_bundle(B))
    version = await store.commit(wanted)
    await store.claim_bundle(A, stamps[A])
    await store.doom_bundles([A])
    assert await store.commit(wanted) == version, "the repeat of what was carried out before"
    await store.commit(creation(JobName("jobs/other")))
    assert (await there(store, JOB)).version == version

"""The page on a real stack: a training is made, paused, resumed, stopped and deleted by clicks."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Locator, Page, expect

from adjourn.cli import formatting
from adjourn.client import AsyncClient
from adjourn.local import process_cleanup
from adjourn.local.process_cleanup import Role
from adjourn.local.stack import Stack
from adjourn.v1.job_pb2 import Job
from tests.harness import browser as browsers
from tests.harness.gateways import Gateway, gateway
from tests.harness.jobs import EPOCHS, SCRIPT, Gate, GatedJob, GatedJobs, Training

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOTE_ALERTS = """() => {
  window.alerts = [];
  const note = () => document.querySelectorAll('[role=alert]').forEach((each) => window.alerts.push(each.textContent));
  new MutationObserver(note).observe(document.body, {childList: true, subtree: true});
}"""
"""Keeps what was said, however short."""
SAVED = "Everything is saved, and it holds no worker."


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def served(stack: Stack) -> AsyncIterator[Gateway]:
    async with gateway(stack.address) as opened:
        yield opened


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pages(served: Gateway) -> AsyncIterator[list[Page]]:
    """Two pages of two people."""
    expect.set_options(timeout=60_000)
    async with browsers.browser() as chromium:
        opened = []
        for _ in range(2):
            context = await chromium.new_context(locale="en-GB", viewport={"width": 1400, "height": 900})
            context.set_default_timeout(60_000)
            page = await context.new_page()
            await page.goto(f"http://{served.address}/")
            await expect(page.locator(".liveness-on")).to_be_visible()
            opened.append(page)
        yield opened


async def test_calls_are_read_and_tried_where_they_are_documented(served: Gateway, pages: list[Page]) -> None:
    page = await pages[0].context.new_page()
    faults: list[str] = []
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("request", lambda made: faults.append(made.url) if served.address not in made.url else None)
    await page.goto(f"http://{served.address}/v1/docs")
    await page.get_by_text("ListWorkers", exact=True).first.click()
    await page.get_by_role("button", name="Execute").click()
    await expect(page.get_by_text("Response Status: OK (200)")).to_be_visible()
    await page.close()
    assert not faults, "without internet, and under the gateway's policy"


async def go(page: Page, place: str) -> None:
    await page.evaluate("(place) => { location.hash = place; }", place)


def badge(page: Page) -> Locator:
    return page.locator(".job-title .badge")


async def ask(page: Page, verb: str, answer: str | re.Pattern[str], choice: str = "") -> None:
    """Presses a button of a job, and says yes to the question."""
    await page.locator(".job-title").get_by_role("button", name=verb, exact=True).click()
    dialog = page.get_by_role("dialog")
    if choice:
        await dialog.get_by_label(choice).check()
    await dialog.get_by_role("button", name=answer, exact=isinstance(answer, str)).click()
    await expect(dialog).to_have_count(0)


async def queue(page: Page, name: str, gate: Gate) -> None:
    """Fills the form in, wrong at first, and queues a job of the script that tests use."""
    await go(page, "#/new")
    await page.get_by_label("Script", exact=True).set_input_files(SCRIPT)
    await page.get_by_role("textbox", name="Epochs", exact=True).fill(str(EPOCHS))
    await page.get_by_label("Name", exact=True).fill(name)
    await page.get_by_label("Labels", exact=True).fill("team=pages, kind")
    await page.get_by_role("button", name="Add an argument").click()
    await page.get_by_label("Name of argument 1").fill("gate")
    await page.get_by_label("Value of argument 1").fill(str(gate.directory))
    await page.get_by_role("button", name="Queue it").click()
    await expect(page.get_by_text('"kind" is no name=value')).to_be_visible()
    await page.get_by_label("Labels", exact=True).fill("team=pages")
    await page.get_by_role("button", name="Queue it").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(name)


async def test_a_run_is_made_paused_resumed_and_deleted(
    pages: list[Page], gated_jobs: GatedJobs, client: AsyncClient, tmp_path: Path
) -> None:
    page, other = pages
    gate = Gate(tmp_path / "by-form", 2)
    await queue(page, "by-form", gate)
    gated = gated_jobs.add(await client.get_job("jobs/by-form"), gate)
    assert dict((await gated.get()).labels) == {"team": "pages"}
    await go(other, "#/jobs?q=team%3Dpages")
    row = other.get_by_role("row").filter(has_text="by-form")
    await expect(row).to_contain_text("RUNNING")
    training = await gated.inside(3)

    await page.locator(".job-title").get_by_role("button", name="Pause", exact=True).click()
    dialog = page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Likely after epoch 3")
    await dialog.get_by_label("Why").fill("a look from the page")
    await dialog.get_by_role("button", name="Pause").click()
    for place in (badge(page), row):
        await expect(place).to_contain_text("PAUSING")
    await expect(page.locator(".situation")).to_contain_text("Will pause")
    assert await page.get_by_text(SAVED).count() == 0
    await leave(gated, training, 3)
    for place in (badge(page), row):
        await expect(place).to_contain_text("PAUSED")
    await expect(page.get_by_text(SAVED)).to_be_visible()
    checkpoint = formatting.short((await gated.get()).pause.checkpoint)
    shown = await page.locator("main").inner_text()
    for told in (f"3 of {EPOCHS}", "a look from the page", checkpoint, "yes, each part"):
        assert told in shown

    await go(page, "#/paused")
    card = page.get_by_role("listitem").filter(has_text="by-form")
    await expect(card).to_contain_text("Saved · worker free")
    await card.get_by_role("button", name="Resume by-form").click()
    await page.get_by_role("dialog").get_by_role("button", name="Resume").click()
    await expect(card).to_have_count(0)
    await gated.inside(4)
    await expect(row).to_contain_text("RUNNING")
    gate.open(EPOCHS)
    await expect(row).to_contain_text("SUCCEEDED")
    await look_through(page, client, await gated.get())

    await ask(page, "Delete", "Delete for good")
    await expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    await expect(row).to_have_count(0)
    gated_jobs.made.remove(gated)


async def look_through(page: Page, client: AsyncClient, job: Job) -> None:
    """Looks at what a job that was paused once tells after its end."""
    await go(page, f"#/{job.name}/pauses")
    await expect(page.get_by_text("EXACT: every digest is equal")).to_be_visible()
    await go(page, f"#/{job.name}/events")
    await expect(page.locator(".event").filter(has_text="Succeeded")).to_have_count(1)
    events = [event.sequence async for event in client.list_job_events(job.name)]
    await expect(page.locator(".event")).to_have_count(len(events))
    await go(page, f"#/{job.name}/checkpoints")
    await page.get_by_role("button", name=f"Pin checkpoint {formatting.short(job.latest_checkpoint)}").click()
    await expect(page.get_by_text("pinned", exact=True)).to_be_visible()
    await go(page, f"#/{job.name}")
    drawn = re.compile(f"epoch 1 to {EPOCHS}.*1 pauses")
    await expect(page.get_by_role("img").first).to_have_attribute("aria-label", drawn)


async def started(gated_jobs: GatedJobs, name: str) -> tuple[GatedJob, Training]:
    """Returns a job whose training is in the middle of its second epoch."""
    gated = await gated_jobs.start(name, limit=1)
    return gated, await gated.inside(2)


async def leave(gated: GatedJob, training: Training, epoch: int) -> None:
    """Lets a training end the epoch once it knows that it is to leave there."""
    await gated.eventually(training.is_to_pause)
    gated.gate.open(epoch)


async def test_a_run_is_saved_and_stopped(pages: list[Page], gated_jobs: GatedJobs) -> None:
    page, _ = pages
    gated, training = await started(gated_jobs, "stopped-by-click")
    await go(page, "#/jobs/stopped-by-click")
    await ask(page, "Cancel", "Save and cancel", "Save after the running epoch")
    await expect(badge(page)).to_have_text("CANCELLING")
    await leave(gated, training, 2)
    await expect(badge(page)).to_have_text("CANCELLED")
    assert (await gated.get()).progress.epoch == 2
    await expect(page.locator(".situation")).to_contain_text("it can go on from its checkpoint")


async def test_a_held_run_is_released(pages: list[Page], gated_jobs: GatedJobs, client: AsyncClient) -> None:
    page, _ = pages
    gated, training = await started(gated_jobs, "held-by-others")
    await client.hold_jobs(names=[gated.name], reason="maintenance")
    await leave(gated, training, 2)
    await go(page, f"#/{gated.name}")
    await expect(badge(page)).to_have_text("PAUSED")
    await expect(page.get_by_text("maintenance").first).to_be_visible()
    await ask(page, "Release", "Release")
    await expect(badge(page)).to_have_text("RUNNING")
    assert not (await gated.get()).holds


async def test_pages_outlive_their_control_plane(pages: list[Page], stack: Stack, gated_jobs: GatedJobs) -> None:
    gated, _ = await started(gated_jobs, "outlived")
    page, other = pages
    await go(page, "#/jobs/outlived")
    await go(other, "#/jobs")
    await expect(badge(page)).to_have_text("RUNNING")
    await expect(other.get_by_role("row").filter(has_text="outlived")).to_contain_text("RUNNING")
    rows = await other.get_by_role("row").count()
    for each in pages:
        await each.evaluate(NOTE_ALERTS)
    (process,) = (each for role, each in process_cleanup.find(stack.directory.path) if role is Role.CONTROL_PLANE)
    process.kill()
    for each in pages:
        await each.wait_for_function("() => window.alerts.some((text) => text.includes('Not live since'))")
    gated.gate.open(EPOCHS)
    for each in pages:
        await expect(each.get_by_role("alert")).to_have_count(0)
    await expect(badge(page)).to_have_text("SUCCEEDED")
    await expect(other.get_by_role("row").filter(has_text="outlived")).to_contain_text("SUCCEEDED")
    await expect(other.get_by_role("row")).to_have_count(rows)
    await go(page, "#/jobs/outlived/log")
    await expect(page.get_by_role("log")).to_contain_text("attempt 1")
    assert (await gated.get()).state == Job.SUCCEEDED

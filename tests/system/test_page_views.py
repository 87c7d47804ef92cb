"""The page with all that it may be told: what it shows, to everybody, whatever somebody wrote into a field."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Locator, Page, expect

from adjourn.v1.job_pb2 import Job
from adjourn.v1.job_service_pb2 import JobEvent
from tests.harness import browser as browsers
from tests.harness import page_jobs
from tests.harness.page_jobs import FAILED, HOSTILE, PAUSED, PAUSING, RUNNING, UNCONFIRMED
from tests.harness.scripted_gateway import ScriptedGateway, scripted_gateway

pytestmark = pytest.mark.asyncio(loop_scope="session")

Eventually = Callable[..., Awaitable[None]]
PICTURES = Path(__file__).parents[2] / "build" / "page"
"""Where the pictures of all views are put, to be looked at."""
VIEWS = {
    "jobs": "#/jobs",
    "job": f"#/{RUNNING}",
    "steps": f"#/{RUNNING}/steps",
    "resources": f"#/{RUNNING}/resources",
    "log": f"#/{RUNNING}/log",
    "events": f"#/{RUNNING}/events",
    "checkpoints": f"#/{RUNNING}/checkpoints",
    "pauses": f"#/{RUNNING}/pauses",
    "paused-run": f"#/{PAUSED}",
    "failed-run": f"#/{FAILED}",
    "paused": "#/paused",
    "workers": "#/workers",
    "new": "#/new",
    "nothing": "#/jobs/nobody",
}
LOADED = {
    "jobs": "vit-base", "job": "Curves", "steps": "By step", "resources": "Over time", "log": "the last line",
    "events": "Milestone reached", "checkpoints": "pinned", "pauses": "To the boundary", "failed-run": "Traceback",
    "paused-run": "Used when it paused", "paused": "Paused runs", "workers": "gpu-9", "new": "What to train",
    "nothing": "no job of this name",
}  # fmt: skip
"""Text that says that a view is there, and what it asks for."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    expect.set_options(timeout=30_000)
    async with browsers.browser() as launched:
        yield launched


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled() -> AsyncIterator[ScriptedGateway]:
    async with scripted_gateway() as served:
        page_jobs.fill(served)
        yield served


@pytest_asyncio.fixture(loop_scope="session")
async def gateway() -> AsyncIterator[ScriptedGateway]:
    """One of the test's own."""
    async with scripted_gateway() as served:
        yield served


class Visit:
    """A page of a gateway that is open, and what went wrong on it."""

    def __init__(self, page: Page, gateway: ScriptedGateway) -> None:
        self.page = page
        self.base = f"http://{gateway.address}/"
        self.faults: list[str] = []
        self.foreign: list[str] = []
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        page.on("request", lambda made: self.foreign.append(made.url) if not made.url.startswith(self.base) else None)

    async def go(self, place: str) -> None:
        await self.page.goto(self.base + place)
        await expect(self.page.locator(".liveness-on")).to_be_visible()

    def row(self, name: str) -> Locator:
        return self.page.get_by_role("row").filter(has=self.page.get_by_role("link", name=name, exact=True))

    async def call(self, script: str, argument: Any = None) -> Any:
        return await self.page.evaluate(script, argument)


@asynccontextmanager
async def visiting(chromium: Browser, gateway: ScriptedGateway) -> AsyncIterator[Visit]:
    context = await chromium.new_context(
        viewport={"width": 1400, "height": 900}, locale="en-GB", reduced_motion="reduce"
    )  # what is looked at does not fade in or out
    context.set_default_timeout(30_000)
    made = Visit(await context.new_page(), gateway)
    yield made
    await context.close()
    assert not made.foreign, "it works in a room without internet"


@pytest_asyncio.fixture(loop_scope="session")
async def visit(chromium: Browser, filled: ScriptedGateway) -> AsyncIterator[Visit]:
    async with visiting(chromium, filled) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="session")
async def own(chromium: Browser, gateway: ScriptedGateway) -> AsyncIterator[Visit]:
    """A visit to the test's own gateway."""
    async with visiting(chromium, gateway) as made:
        yield made


async def violations(page: Page, place: str = "body") -> dict[str, list[str]]:
    """Returns what axe finds, by its rule: the elements."""
    if not await page.evaluate("() => 'axe' in window"):
        await page.evaluate(browsers.axe())  # not by a tag of its own, which the page's policy refuses
    report = await page.evaluate("(place) => axe.run(place, {resultTypes: ['violations']})", place)
    return {each["id"]: [node["html"] for node in each["nodes"]] for each in report["violations"]}


async def loaded(visit: Visit, view: str) -> None:
    await expect(visit.page.get_by_text(LOADED[view]).first).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_view_can_be_used_by_everybody_and_does_no_harm(visit: Visit, scheme: Any) -> None:
    page = visit.page
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    await visit.go("#/jobs")
    found: dict[str, list[str]] = {}
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name, place in VIEWS.items():
        await page.set_viewport_size({"width": 1400, "height": 900})
        await page.evaluate("(place) => { location.hash = place; }", place)
        await loaded(visit, name)
        found |= {f"{name}: {rule}": elements for rule, elements in (await violations(page, "html")).items()}
        await page.screenshot(path=PICTURES / f"{name}-1400-{scheme}.png")
        await page.set_viewport_size({"width": 400, "height": 860})
        await page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
        wide = await page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is wider than a phone"
        await page.screenshot(path=PICTURES / f"{name}-400-{scheme}.png")
    assert not found, json.dumps(found, indent=1)
    assert not visit.faults
    assert await visit.call("() => window.harmed") is None


async def test_questions_can_be_used_by_everybody(visit: Visit) -> None:
    page = visit.page
    await visit.go(f"#/{RUNNING}")
    for scheme in ("light", "dark"):
        await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for verb in ("Pause", "Cancel"):
            await page.get_by_role("button", name=verb, exact=True).click()
            dialog = page.get_by_role("dialog")
            await expect(dialog.get_by_role("heading", name=f"{verb} vit-base?")).to_be_visible()
            assert not await violations(page, "dialog")
            await page.screenshot(path=PICTURES / f"ask-{verb.lower()}-{scheme}.png")
            await page.keyboard.press("Escape")
            await expect(dialog).to_have_count(0)
            await expect(page.get_by_role("button", name=verb, exact=True)).to_be_focused()


async def test_an_operators_hold_is_released(gateway: ScriptedGateway, own: Visit) -> None:
    gateway.put(page_jobs.unconfirmed())
    await own.go("#/paused")
    await own.page.get_by_role("button", name="Release cut-off").click()
    dialog = own.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("grace@ops holds it.")
    await expect(dialog).to_contain_text("It goes on as soon as a worker is free.")
    await dialog.get_by_role("button", name="Release").click()
    await expect(dialog).to_have_count(0)
    assert gateway.calls == [("POST", "/v1/jobs:release", {"names": [UNCONFIRMED]})]


async def test_a_run_is_paused_by_keys(gateway: ScriptedGateway, own: Visit) -> None:
    page = own.page
    gateway.put(page_jobs.running())
    await own.go(f"#/{RUNNING}")
    await page.get_by_role("link", name="All jobs").focus()
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Pause", exact=True)).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_label("After the running epoch")).to_be_focused()
    await page.keyboard.press("ArrowDown")
    await page.keyboard.press("Tab")
    await page.keyboard.type("by keys")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    ((_, _, body),) = gateway.calls
    assert (body["mode"], body["reason"]) == ("STEP", "by keys")


async def test_text_is_shown_as_text(visit: Visit) -> None:
    page = visit.page
    for place, where in (
        (FAILED, ".notice-bad"),
        (FAILED, ".facts"),
        (RUNNING, ".charts"),
        (f"{RUNNING}/log", ".log"),
        (f"{RUNNING}/events", ".events"),
        (f"{RUNNING}/checkpoints", ".grid"),
    ):
        await visit.go(f"#/{place}")
        await expect(page.locator(where).filter(has_text=HOSTILE).first).to_be_visible()
    assert await visit.call("() => window.harmed") is None
    assert not visit.faults


async def test_what_is_not_told_is_not_shown_as_nothing(visit: Visit) -> None:
    page = visit.page
    await visit.go("#/jobs/waiting")
    stats = page.locator(".stats").first
    await expect(stats.locator(".stat", has_text="Loss")).to_contain_text("not told")
    await expect(stats.locator(".stat", has_text="Remaining")).to_contain_text("not told")
    await expect(page.locator(".notice")).to_contain_text("no worker has 8 free GPUs")


async def test_saved_and_free_is_said_only_when_it_was_told(gateway: ScriptedGateway, own: Visit) -> None:
    page = own.page
    everything = page.get_by_text("Everything is saved, and its GPUs are free.")
    job = page_jobs.paused()
    gateway.put(job)
    await own.go(f"#/{PAUSED}")
    await expect(everything).to_be_visible()
    for field in ("release_time", "checkpoint_verified"):
        job = page_jobs.paused()
        job.pause.ClearField(field)
        gateway.put(job)
        await expect(everything).to_have_count(0)
        gateway.put(page_jobs.paused())
        await expect(everything).to_be_visible()
    cut_off = page_jobs.unconfirmed()
    gateway.put(cut_off)
    await own.go(f"#/{UNCONFIRMED}")
    await expect(page.get_by_text("Everything is saved. Whether its GPUs are free is not told.")).to_be_visible()
    gateway.put(page_jobs.pausing())
    await own.go(f"#/{PAUSING}")
    await expect(page.get_by_text("Will pause after epoch 12, ")).to_be_visible()
    await expect(page.locator(".notice-good")).to_have_count(0)


async def test_a_paused_run_tells_all_that_is_known(visit: Visit) -> None:
    await visit.go(f"#/{PAUSED}")
    text = await visit.page.locator("main").inner_text()
    for told in (
        "18 of 40", "1\u202f800", "0.4312", "9 min 18 s", "11 min 22 s", "likely 10 min 38 s to 12 min 50 s", "ada@lab",
        "the GPUs are needed for a deadline", "3.0 GiB, 900.0 MiB uploaded for it", "yes, each part by its content",
        "76.0 GiB", "4.20 EUR", "Llama 8B, LoRA", "s3://data/instructions", "GPU 0", "GPU 1", "Mean of 2 GPUs", "HIGH",
        "800 ms earlier",
    ):  # fmt: skip
        assert told in text, told
    high = visit.page.locator(".meter-high")
    assert await high.first.get_attribute("aria-valuetext") is not None


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("vit-base", {"Pause", "Cancel"}),
        ("llm-tune", {"Resume", "Cancel"}),
        ("cut-off", {"Release", "Cancel"}),
        ("broken", {"Resume", "Delete"}),
        ("done", {"Delete"}),
        ("a-task", {"Cancel"}),
        ("waiting", {"Pause", "Cancel"}),
    ],
)
async def test_what_would_be_refused_says_why(visit: Visit, name: str, offered: set[str]) -> None:
    await visit.go(f"#/jobs/{name}")
    for verb in {"Pause", "Resume", "Cancel", "Delete"} | offered:
        button = visit.page.get_by_role("button", name=verb, exact=True)
        if verb in offered:
            await expect(button).not_to_have_attribute("aria-disabled", "true")
        else:
            await expect(button).to_have_attribute("aria-disabled", "true")
            assert await button.evaluate(
                "(it) => document.getElementById(it.getAttribute('aria-describedby')).textContent"
            )
            await button.click(force=True)
            await expect(visit.page.get_by_role("dialog")).to_have_count(0)


async def test_the_state_that_is_shown_is_the_state_that_is(gateway: ScriptedGateway, own: Visit) -> None:
    page = own.page
    gateway.put(page_jobs.running())
    await own.go("#/jobs")
    await own.row("vit-base").get_by_role("button", name="Pause vit-base").click()
    await page.get_by_label("Now").check()
    await page.get_by_label("Why").fill("a deadline")
    gateway.refusal = {
        "code": 9,
        "message": "somebody was faster",
        "details": [
            {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "JOB_FINISHED", "domain": "adjourn.v1"}
        ],
    }
    await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("alert")).to_contain_text("JOB_FINISHED")
    gateway.refusal = None
    await page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    (first, again) = gateway.calls
    assert first == again, "one request, repeated: it has the same id"
    method, path, body = again
    assert (method, path, body["mode"], body["reason"]) == ("POST", "/v1/jobs/vit-base:pause", "LATEST", "a deadline")
    await expect(own.row("vit-base")).to_contain_text("RUNNING")
    changed = page_jobs.running()
    changed.state = Job.PAUSING
    gateway.put(changed)
    await expect(own.row("vit-base")).to_contain_text("PAUSING")


async def test_a_question_notices_that_it_is_too_late(gateway: ScriptedGateway, own: Visit) -> None:
    gateway.put(page_jobs.running())
    await own.go(f"#/{RUNNING}")
    await own.page.get_by_role("button", name="Pause", exact=True).click()
    ended = page_jobs.running()
    ended.state = Job.SUCCEEDED
    gateway.put(ended)
    dialog = own.page.get_by_role("dialog")
    await expect(dialog.get_by_role("status")).to_contain_text("It has ended (SUCCEEDED)")
    await expect(dialog.get_by_role("button", name="Pause")).to_be_disabled()


async def test_it_says_that_it_is_not_live_and_comes_back(gateway: ScriptedGateway, own: Visit) -> None:
    page = own.page
    gateway.put(page_jobs.running())
    gateway.put(page_jobs.paused())
    await own.go("#/jobs")
    gateway.cut()
    await expect(page.get_by_role("alert")).to_contain_text("Not live since")
    await expect(page.get_by_role("alert")).to_contain_text("The control plane cannot be reached.")
    pause = own.row("vit-base").get_by_role("button", name="Pause vit-base")
    await expect(pause).to_have_attribute("aria-disabled", "true")
    assert not await violations(page)
    gateway.delete(PAUSED)
    gateway.put(page_jobs.failed())
    gateway.heal()
    await expect(page.locator(".liveness-on")).to_be_visible()
    await expect(page.get_by_role("alert")).to_have_count(0)
    await expect(own.row("broken")).to_be_visible()
    await expect(page.get_by_role("row")).to_have_count(3)  # with the headings: nothing twice, nothing missing
    await expect(pause).not_to_have_attribute("aria-disabled", "true")


async def test_what_could_not_be_asked_for_is_asked_for_again(gateway: ScriptedGateway, own: Visit) -> None:
    page_jobs.fill(gateway)
    await own.go("#/jobs")
    gateway.cut()
    for tab, missing, text in (
        ("checkpoints", "The checkpoints are not known", "pinned"),
        ("events", "What happened is not known", "Milestone reached"),
        ("log", "not live", "the last line"),
    ):
        await own.call("(place) => { location.hash = place; }", f"#/{RUNNING}/{tab}")
        await expect(own.page.get_by_text(missing).first).to_be_visible()
        gateway.heal()
        await expect(own.page.get_by_text(text).first).to_be_visible()
        gateway.cut()


async def test_a_thousand_jobs_scroll(gateway: ScriptedGateway, own: Visit) -> None:
    page = own.page
    states = [Job.QUEUED, Job.RUNNING, Job.PAUSED, Job.FAILED, Job.SUCCEEDED]
    for number in range(1000):
        state = states[number % 5]
        job = page_jobs.job(f"jobs/run-{number:04}", state, epoch=number % 40, age=4000 - number)
        job.labels["group"] = f"g{number % 10}"
        gateway.put(job)
    await own.go("#/jobs")
    await expect(page.get_by_role("status").filter(has_text="1\u202f000 jobs")).to_be_visible()
    table = page.get_by_role("table")
    assert await table.get_attribute("aria-rowcount") == "1001"
    assert await page.get_by_role("row").count() < 60, "only the rows in sight are there"
    drawn, slow = await own.call(
        """async () => {
          const box = document.querySelector('.virtual');
          let drawn = 0;
          const count = (changes) => changes.forEach((change) => { drawn += change.addedNodes.length; });
          const observer = new MutationObserver(count);
          observer.observe(box, {childList: true, subtree: true});
          const spans = [];
          let last = performance.now();
          for (let at = 0; at < 60; at += 1) {
            box.scrollTop += 700;
            await new Promise(requestAnimationFrame);
            const now = performance.now();
            spans.push(now - last);
            last = now;
          }
          count(observer.takeRecords());
          return [drawn, spans.sort((a, b) => a - b)[30]];
        }"""
    )
    assert 0 < drawn < 60 * 60, "in each step the rows that come in sight"
    assert slow < 100, f"half of the frames take {slow:.0f} ms and more"
    await page.get_by_placeholder("Name, model").fill("group=g3 run-00")
    await expect(page.get_by_role("status").filter(has_text=re.compile(r"10 of 1\u202f000 jobs"))).to_be_visible()
    await page.get_by_role("button", name="failed").click()
    await expect(page.get_by_role("row")).to_have_count(11)
    job = page_jobs.job("jobs/run-0003", Job.RUNNING, epoch=4)
    job.labels["group"] = "g3"
    gateway.put(job)
    await expect(page.get_by_role("row")).to_have_count(10)


async def test_rows_are_reached_by_keys(visit: Visit) -> None:
    page = visit.page
    await visit.go("#/jobs")
    first = page.get_by_role("row").nth(1).get_by_role("link")
    await first.focus()
    await page.keyboard.press("ArrowDown")
    await expect(page.get_by_role("row").nth(2).get_by_role("link")).to_be_focused()
    await page.keyboard.press("End")
    await expect(page.get_by_role("row").last.get_by_role("link")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).not_to_have_text("Jobs")


async def test_the_log_is_drawn_as_on_a_terminal(visit: Visit) -> None:
    await visit.go(f"#/{RUNNING}/log")
    log = visit.page.get_by_role("log")
    lines = log.locator(".log-line")
    await expect(lines.filter(has_text="batch")).to_have_text(f"batch 100/100 {'=' * 20}")
    await expect(lines.last).to_have_text("the last line")
    await expect(log.locator(".log-red")).to_have_text("warning:")


async def test_colours_are_chosen_and_kept(visit: Visit) -> None:
    page = visit.page
    await visit.go("#/jobs")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    light = await visit.call(ground)
    await page.get_by_label("Settings", exact=True).click()
    assert not await violations(page)
    await page.get_by_text("Dark", exact=True).click()
    assert await visit.call(ground) != light
    assert not await violations(page)
    await page.reload()
    await expect(page.locator(".liveness-on")).to_be_visible()
    assert await visit.call(ground) != light


async def test_a_form_shows_what_was_refused_where_it_was_written(gateway: ScriptedGateway, own: Visit) -> None:
    page = own.page
    gateway.put(page_jobs.running())
    await own.go(f"#/new?from={RUNNING}")
    await expect(page.get_by_label("Entry point")).to_have_value("train:main")
    await expect(page.get_by_label("Value of argument 3")).to_have_value(HOSTILE)
    refused = {"field": "job.spec.total_epochs", "description": "must be 100000 at most"}
    details = [{"@type": "BadRequest", "fieldViolations": [refused]}]
    gateway.refusal = {"code": 3, "message": "job.spec", "details": details}
    await page.get_by_role("button", name="Queue it").click()
    await expect(page.get_by_text("must be 100000 at most")).to_be_visible()
    epochs = page.get_by_role("textbox", name="Epochs", exact=True)
    await expect(epochs).to_be_focused()
    await epochs.fill("many")
    await page.get_by_role("button", name="Queue it").click()
    await expect(page.get_by_text("must be a whole number")).to_be_visible()
    assert not await violations(page)
    ((_, path, body),) = gateway.calls
    assert path == "/v1/jobs"
    assert body["spec"]["args"] == {"learning_rate": 3e-4, "augment": True, "name": HOSTILE}
    assert body["labels"] == {"team": "vision", "kind": "sweep"}


HIDE = """(hidden) => {
  Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


async def test_tabs_that_nobody_sees_give_their_streams_back(
    gateway: ScriptedGateway, own: Visit, eventually: Eventually
) -> None:
    gateway.put(page_jobs.running())
    await own.go("#/jobs")
    second = Visit(await own.page.context.new_page(), gateway)
    await second.go("#/jobs")
    assert gateway.watching == 2
    await second.call(HIDE, True)
    await eventually(lambda: gateway.watching == 1)
    await own.call(HIDE, True)
    changed = page_jobs.running()
    changed.state = Job.SUCCEEDED
    gateway.put(changed)
    await expect(own.row("vit-base")).to_contain_text("SUCCEEDED")  # the one that watches for both goes on
    assert gateway.watching == 1
    await second.call(HIDE, False)
    await expect(second.row("vit-base")).to_contain_text("SUCCEEDED")
    await expect(second.page.locator(".liveness-on")).to_be_visible()


async def test_notifications_are_shown_once_if_they_are_wanted(
    gateway: ScriptedGateway, own: Visit, eventually: Eventually
) -> None:
    await own.page.add_init_script(
        """window.shown = [];
        window.Notification = class extends EventTarget {
          static permission = 'granted';
          static requestPermission = async () => 'granted';
          constructor(title, {body, tag}) { super(); window.shown.push([title, body, tag]); }
        };"""
    )
    gateway.put(page_jobs.running())
    await own.go("#/jobs")
    await own.page.get_by_label("Settings", exact=True).click()
    await own.page.get_by_label("Notifications").check()
    await eventually(lambda: gateway.following == 1)
    event = JobEvent(sequence=7, type=JobEvent.PAUSED, message=HOSTILE)
    gateway.happen(RUNNING, event)
    await own.page.wait_for_function("() => window.shown.length === 1")
    gateway.cut()
    await eventually(lambda: gateway.following == 0)
    gateway.heal()
    await eventually(lambda: gateway.following == 1)
    gateway.happen(RUNNING, JobEvent(sequence=8, type=JobEvent.FAILED, message="out of memory"))
    await own.page.wait_for_function("() => window.shown.length === 2")
    assert await own.call("() => window.shown") == [
        ["vit-base: Paused", HOSTILE, "uid-jobs/vit-base/7"],
        ["vit-base: Failed", "out of memory", "uid-jobs/vit-base/8"],
    ]


async def test_workers_and_checkpoints_are_changed_after_a_question(
    gateway: ScriptedGateway, own: Visit, eventually: Eventually
) -> None:
    page = own.page
    page_jobs.fill(gateway)
    await own.go("#/workers")
    first = page.get_by_role("listitem").filter(has=page.get_by_role("heading", name="gpu-1"))
    await first.get_by_role("button", name="Drain").click()
    await expect(page.get_by_role("dialog")).to_contain_text("Its 1 job pauses at the next boundary")
    await page.get_by_label("Why").fill("a new driver")
    await page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await own.go(f"#/{RUNNING}/checkpoints")
    await page.get_by_role("button", name="Pin checkpoint 1-a1b2c3d4-22").click()
    await eventually(lambda: len(gateway.calls) == 2)
    await page.get_by_role("button", name="Unpin checkpoint 1-a1b2c3d4-9").click()
    await expect(page.get_by_role("dialog")).to_contain_text("It stays for as long as it is pause.")
    await page.get_by_role("dialog").get_by_role("button", name="Unpin").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert gateway.calls == [
        ("POST", "/v1/workers/gpu-1:drain", {"reason": "a new driver"}),
        ("POST", f"/v1/{RUNNING}/checkpoints/1-a1b2c3d4-22:pin", {}),
        ("POST", f"/v1/{RUNNING}/checkpoints/1-a1b2c3d4-9:unpin", {}),
    ]

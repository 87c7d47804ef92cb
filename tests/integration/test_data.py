"""Data that runs name by URI: fetched once, verified, kept, bounded, and the same again for a run that goes on."""

import asyncio
import contextlib
import hashlib
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adjourn import objects as objects_module
from adjourn import reasons
from adjourn.internal.v1.trainer_pb2 import DataAnswer, DataIdentity, DataRequest
from adjourn.objects import S3Objects, S3Settings
from adjourn.v1.agent_service_pb2 import AssignmentStatus, ConditionChange
from adjourn.v1.job_pb2 import Condition
from adjourn_worker.attempt import files
from adjourn_worker.data import fetching
from adjourn_worker.data import sources as sources_module
from adjourn_worker.data.cache import PARTIAL, DataCache
from adjourn_worker.data.course import Course
from adjourn_worker.data.fetching import DataTasks
from adjourn_worker.data.places import EVERYTHING, Access, DataFailed, place_of
from tests.harness.agents import AgentHarness
from tests.harness.memory_objects import MemoryObjects
from tests.harness.scripted_control_plane import Job

Eventually = Callable[..., Awaitable[None]]


@dataclass
class Files:
    """Attempts of a worker that ask for data, and its cache."""

    directory: Path
    objects: S3Objects | None = None
    limit: int = 1 << 40
    access: Access = field(default_factory=lambda: Access(prefixes=[EVERYTHING]))
    attempts: int = 0

    def __post_init__(self) -> None:
        (self.directory / "attempts").mkdir(exist_ok=True)

    @property
    def kept(self) -> Path:
        return self.directory / "cached-data"

    async def tasks(self) -> DataTasks:
        """Returns what a new agent has."""
        cache = DataCache(self.kept, self.directory / "attempts", limit=self.limit)
        tasks = DataTasks(cache, self.access, self.objects)
        await tasks.open()
        return tasks

    def request(self, uri: str, expected: DataIdentity | None = None) -> Path:
        """Writes a request of a new attempt."""
        self.attempts += 1
        path = self.directory / "attempts" / str(self.attempts) / files.DATA / f"it{files.REQUEST}"
        path.parent.mkdir(parents=True)
        path.write_bytes(DataRequest(uri=uri, expected=expected).SerializeToString())
        return path

    async def ask(
        self, uri: str, expected: DataIdentity | None = None, tasks: DataTasks | None = None, told: Any = None
    ) -> DataAnswer:
        request = self.request(uri, expected)
        await (tasks or await self.tasks()).answer(request, told.append if told is not None else lambda _: None)
        return answer(request)

    def end_attempts(self) -> None:
        for path in (self.directory / "attempts").glob("*/data/*"):
            path.unlink()

    def entries(self) -> list[str]:
        return sorted(path.name for path in self.kept.iterdir() if path.is_dir() and path.name != PARTIAL)


def answer(request: Path) -> DataAnswer:
    return DataAnswer.FromString(request.with_suffix(files.ANSWER).read_bytes())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
async def bucket(s3_environment: dict[str, str]) -> AsyncIterator[S3Objects]:
    async with S3Objects(S3Settings.from_environment(s3_environment)) as server:
        objects = server.of_bucket(f"data-{secrets.token_hex(6)}")
        await objects.ensure_bucket()
        yield objects


@pytest.fixture
def place(tmp_path: Path, bucket: S3Objects) -> Files:
    return Files(tmp_path, bucket)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "BACKOFF_MOST", 0.05)
    monkeypatch.setattr(sources_module, "RANGE_BYTES", 1 << 16)
    monkeypatch.setattr(sources_module, "PIECE_BYTES", 1 << 14)
    monkeypatch.setattr(objects_module, "BACKOFF_MOST", 0.01)


async def test_an_object_is_fetched_once_and_is_the_same_wherever_it_is_asked_for(
    place: Files, bucket: S3Objects, tmp_path: Path
) -> None:
    data = secrets.token_bytes(300_000)
    await bucket.put("sets/train.bin", data)
    uri = f"s3://{bucket.bucket}/sets/train.bin"
    tasks, told = await place.tasks(), list[Course]()
    first, second = await asyncio.gather(place.ask(uri, tasks=tasks, told=told), place.ask(uri, tasks=tasks))
    assert first == second
    path = Path(first.path)
    assert path.name == "train.bin", "what is read by its suffix has its suffix"
    assert path.read_bytes() == data
    assert (first.identity.digest, first.identity.size_bytes, first.identity.files) == (sha256(data), 300_000, 1)
    assert path.stat().st_mode & 0o222 == 0
    assert told[-1].done == told[-1].total == 300_000
    assert [each.done for each in told] == sorted(each.done for each in told)
    # The next agent has it still, and another worker the same under the same name.
    later: list[Course] = []
    assert await place.ask(uri, told=later) == first
    assert {each.done for each in later} == {0}
    (tmp_path / "other").mkdir()
    elsewhere = await Files(tmp_path / "other", bucket).ask(uri)
    assert elsewhere.identity == first.identity
    assert Path(elsewhere.path).relative_to(tmp_path / "other") == path.relative_to(tmp_path)


async def test_a_folder_has_all_that_is_below_it(place: Files, bucket: S3Objects) -> None:
    content = {"a.txt": b"a", "deep/er/b.txt": b"bb", "deep/c": b"", "z": secrets.token_bytes(200_000)}
    for name, data in content.items():
        await bucket.put(f"set/{name}", data)
    await bucket.put("set2/other", b"x")
    found = await place.ask(f"s3://{bucket.bucket}/set/")
    root = Path(found.path)
    assert root.name == "set"
    assert {str(each.relative_to(root)): each.read_bytes() for each in root.rglob("*") if each.is_file()} == content
    lines = "".join(f"{sha256(data)} {len(data)} {name}\n" for name, data in sorted(content.items()))
    assert found.identity.digest == sha256(lines.encode())
    assert (found.identity.files, found.identity.size_bytes) == (4, 200_003)
    await bucket.put("set/a.txt", b"A")
    changed = await place.ask(f"s3://{bucket.bucket}/set/")
    assert changed.identity.digest != found.identity.digest
    assert (Path(changed.path) / "a.txt").read_bytes() == b"A"
    assert (root / "a.txt").read_bytes() == b"a", "another attempt uses it"


@pytest.mark.parametrize(
    ("uri", "reason", "message"),
    [
        ("s3://{bucket}/none", reasons.DATA_MISSING, "there is no such object"),
        ("s3://{bucket}/none/", reasons.DATA_MISSING, "no object below it"),
        ("s3://not-there-at-all/none", reasons.DATA_MISSING, "there is no bucket not-there-at-all"),
        ("s3://not-there-at-all/none/", reasons.DATA_MISSING, "there is no bucket not-there-at-all"),
        ("s3://UPPER/none", reasons.DATA_REFUSED, "s3://bucket/key"),
        ("ftp://host/none", reasons.DATA_REFUSED, "begin with s3://"),
        ("https://user:secret@host/x", reasons.DATA_REFUSED, "credentials"),
    ],
)
async def test_what_cannot_be_had_says_why(
    place: Files, bucket: S3Objects, uri: str, reason: str, message: str
) -> None:
    found = await place.ask(uri.format(bucket=bucket.bucket))
    assert found.failure.reason == reason
    assert message in found.failure.message
    assert "secret" not in found.failure.message
    assert place.entries() == []


@pytest.mark.parametrize("paths", [["a//b"], ["../a"], ["a/../b"], ["/a"], ["a/./b"], ["a\0"], ["a", "a/b"]])
def test_keys_that_can_be_no_files_in_a_folder_are_refused(paths: list[str]) -> None:
    with pytest.raises(DataFailed, match="the key") as raised:
        sources_module.check_paths(place_of("s3://bucket/folder/"), paths)
    assert raised.value.reason == reasons.DATA_REFUSED


async def test_a_key_that_may_not_is_refused(place: Files, s3_environment: dict[str, str]) -> None:
    wrong = S3Settings.from_environment({**s3_environment, "ADJOURN_S3_SECRET_KEY": "wrong"})
    async with S3Objects(wrong) as objects:
        place.objects = objects
        for uri, code in (("s3://some-bucket/key", "AccessDenied"), ("s3://some-bucket/", "SignatureDoesNotMatch")):
            found = await place.ask(uri)
            assert found.failure.reason == reasons.DATA_REFUSED
            assert found.failure.message.startswith(f"{uri}: S3 refuses with {code};")


@pytest.mark.parametrize(
    ("uri", "may"),
    [
        ("s3://models/data/a", True),
        ("s3://models/data/", True),
        ("s3://models/database/a", False),
        ("s3://models/checkpoints/uid/parts/x", False),
        ("s3://models/bundles/x.tar.gz", False),
        ("s3://models/", False),
        ("s3://sets/one", True),
        ("s3://sets/one/", True),
        ("s3://sets/one/x", True),
        ("s3://sets/two", False),
        ("https://anywhere/x", True),
    ],
)
def test_jobs_may_read_what_the_settings_say_and_never_what_is_adjourns_own(uri: str, may: bool) -> None:
    access = Access(prefixes=["s3://models/data/", "s3://sets/one"], own_bucket="models")
    if may:
        access.check(place_of(uri))
        return
    with pytest.raises(DataFailed, match="s3://") as raised:
        access.check(place_of(uri))
    assert raised.value.reason == reasons.DATA_REFUSED
    with contextlib.suppress(DataFailed):
        Access(prefixes=[EVERYTHING], own_bucket="models").check(place_of(uri))
        assert not uri.startswith(("s3://models/checkpoints", "s3://models/bundles"))
        assert uri != "s3://models/"


async def test_a_run_that_goes_on_gets_the_same_data_or_none(place: Files, bucket: S3Objects, tmp_path: Path) -> None:
    await bucket.put("a", b"first")
    uri = f"s3://{bucket.bucket}/a"
    before = (await place.ask(uri)).identity
    await bucket.put("a", b"other")
    assert (await place.ask(uri, before)).identity.digest == before.digest, "it is here still"
    (tmp_path / "other").mkdir()
    elsewhere = Files(tmp_path / "other", bucket)
    refused = await elsewhere.ask(uri, before)
    assert refused.failure.reason == reasons.DATA_CHANGED
    assert uri in refused.failure.message
    await bucket.put("a", b"longer than before")
    assert (await elsewhere.ask(uri, before)).failure.reason == reasons.DATA_CHANGED
    await bucket.put("a", b"first")
    assert (await elsewhere.ask(uri, before)).identity.digest == before.digest, "the content decides, not who wrote it"


async def test_of_a_bucket_that_keeps_versions_a_run_gets_the_version_that_it_had(
    place: Files, bucket: S3Objects, tmp_path: Path
) -> None:
    from minio.commonconfig import ENABLED
    from minio.versioningconfig import VersioningConfig

    bucket._client.set_bucket_versioning(bucket.bucket, VersioningConfig(ENABLED))
    await bucket.put("a", b"first")
    uri = f"s3://{bucket.bucket}/a"
    before = (await place.ask(uri)).identity
    assert before.version
    await bucket.put("a", b"others")
    (tmp_path / "other").mkdir()
    again = await Files(tmp_path / "other", bucket).ask(uri, before)
    assert (again.identity, Path(again.path).read_bytes()) == (before, b"first")


async def test_a_fetch_that_was_killed_goes_on_and_leaves_nothing_that_is_taken_for_whole(
    place: Files, bucket: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = secrets.token_bytes(5 << 16)
    await bucket.put("a", data)
    uri = f"s3://{bucket.bucket}/a"
    read, asked, stop = S3Objects.read, list[int](), asyncio.Event()

    async def stopping(self: S3Objects, found: Any, offset: int, length: int) -> bytes:
        asked.append(offset)
        if offset == 3 << 16:
            stop.set()
            await asyncio.Event().wait()
        return await read(self, found, offset, length)

    monkeypatch.setattr(S3Objects, "read", stopping)
    asking = asyncio.create_task(place.ask(uri))
    await stop.wait()
    (arrived,) = [each async for each in arriving(place.kept, 3 << 16)]
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert place.entries() == []
    monkeypatch.setattr(S3Objects, "read", read)
    asked.clear()

    async def counting(self: S3Objects, found: Any, offset: int, length: int) -> bytes:
        asked.append(offset)
        return await read(self, found, offset, length)

    monkeypatch.setattr(S3Objects, "read", counting)
    assert Path((await place.ask(uri)).path).read_bytes() == data
    assert min(asked) == arrived == 3 << 16


async def arriving(kept: Path, size: int) -> AsyncIterator[int]:
    """Waits until so many bytes of one file are there."""
    async with asyncio.timeout(10):
        while True:
            for path in kept.glob(f"{PARTIAL}/*/content/*"):
                if path.stat().st_size >= size:
                    yield path.stat().st_size
                    return
            await asyncio.sleep(0.01)


async def test_bytes_that_were_damaged_on_the_way_are_found(
    place: Files, bucket: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bucket.put("a", b"right")
    read, wrong = S3Objects.read, 2

    async def flipping(self: S3Objects, found: Any, offset: int, length: int) -> bytes:
        nonlocal wrong
        wrong -= 1
        return b"wrong" if wrong >= 0 else await read(self, found, offset, length)

    monkeypatch.setattr(S3Objects, "read", flipping)
    uri = f"s3://{bucket.bucket}/a"
    assert Path((await place.ask(uri)).path).read_bytes() == b"right"
    wrong = 99
    await bucket.put("a", b"again")
    failed = await place.ask(uri)
    assert failed.failure.reason == reasons.DATA_DAMAGED
    assert "MD5" in failed.failure.message


async def test_what_is_used_stays_and_of_the_rest_what_was_not_used_for_longest_goes(
    place: Files, bucket: S3Objects
) -> None:
    place.limit = 2500
    for name in "abcd":
        await bucket.put(name, name.encode() * 1000)
    uris = {name: f"s3://{bucket.bucket}/{name}" for name in "abcd"}
    tasks = await place.tasks()
    paths = {name: Path((await place.ask(uris[name], tasks=tasks)).path) for name in "abc"}
    assert all(path.exists() for path in paths.values()), "more than the limit, and all of it in use"
    place.end_attempts()
    await place.ask(uris["a"], tasks=tasks)
    await tasks.make_room()
    assert [name for name, path in paths.items() if path.exists()] == ["a", "c"]
    paths["d"] = Path((await place.ask(uris["d"], tasks=tasks)).path)
    assert [name for name, path in paths.items() if path.exists()] == ["a", "d"]
    place.end_attempts()
    place.limit = 0
    await (await place.tasks()).make_room()
    assert place.entries() == []
    assert list(place.kept.glob("*.json")) == []


async def test_data_that_somebody_has_changed_is_fetched_anew(place: Files, bucket: S3Objects) -> None:
    await bucket.put("a", b"right")
    uri = f"s3://{bucket.bucket}/a"
    first = Path((await place.ask(uri)).path)
    first.chmod(0o600)
    first.write_bytes(b"wrong")
    second = Path((await place.ask(uri)).path)
    assert (first.read_bytes(), second.read_bytes()) == (b"wrong", b"right"), "the first one is in use"
    assert first != second


async def test_a_disk_without_room_is_told(place: Files, bucket: S3Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    await bucket.put("a", b"x" * 1000)
    monkeypatch.setattr("adjourn_worker.data.cache.free_bytes", lambda _: 500)
    failed = await place.ask(f"s3://{bucket.bucket}/a")
    assert failed.failure.reason == reasons.DATA_NO_ROOM
    assert "1,000 bytes are needed, 500 are free" in failed.failure.message


async def test_a_fault_of_ours_is_answered_too(
    place: Files, bucket: S3Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> None:
        raise KeyError("what")

    monkeypatch.setattr(S3Objects, "describe", broken)
    failed = await place.ask(f"s3://{bucket.bucket}/a")
    assert failed.failure.reason == reasons.LAUNCH_FAILED
    assert f"s3://{bucket.bucket}/a: KeyError: 'what'" in failed.failure.message


async def test_storage_that_is_away_is_waited_for(
    place: Files, bucket: S3Objects, s3_environment: dict[str, str], eventually: Eventually
) -> None:
    await bucket.put("a", b"x")
    away = S3Settings.from_environment({**s3_environment, "ADJOURN_S3_ENDPOINT": "http://127.0.0.1:1"})
    async with S3Objects(away) as nowhere:
        place.objects = nowhere
        told: list[Course] = []
        tasks = await place.tasks()
        asking = asyncio.create_task(place.ask(f"s3://{bucket.bucket}/a", tasks=tasks, told=told))
        await eventually(lambda: told and told[-1].unavailable)
        ((fetch, _),) = tasks._fetches.values()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await eventually(lambda: not tasks._fetches and not fetch.watchers)


class Served(BaseHTTPRequestHandler):
    """Files over HTTP, as a test wants them."""

    protocol_version = "HTTP/1.1"
    content = b""
    headers_sent: dict[str, str] = {}  # noqa: RUF012
    statuses: list[int] = []  # noqa: RUF012
    ranges: list[str] = []  # noqa: RUF012
    cuts: list[int | None] = []  # noqa: RUF012
    """After how many bytes answers end, one after the other."""

    def do_GET(self) -> None:
        cls = type(self)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/file.bin")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status = cls.statuses.pop(0) if cls.statuses else 200
        cut = cls.cuts.pop(0) if cls.cuts else None  # before the client knows anything: it may ask again at once
        wanted, begin = self.headers.get("Range"), 0
        if status == 200 and wanted and self.headers.get("If-Range") == cls.headers_sent.get("ETag"):
            cls.ranges.append(wanted)
            status, begin = 206, int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = cls.content[begin:] if status < 300 else b"no"
        self.send_response(status)
        for name, value in cls.headers_sent.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.close_connection = cut is not None
            self.wfile.write(body[:cut])

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        pass


@pytest.fixture
def web() -> Iterator[tuple[str, type[Served]]]:
    handler = type("Here", (Served,), {"statuses": [], "ranges": [], "headers_sent": {}, "cuts": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_file_over_http_is_kept_as_long_as_the_server_says_that_it_is_the_same(
    tmp_path: Path, web: tuple[str, type[Served]]
) -> None:
    address, served = web
    place = Files(tmp_path)
    served.content, served.headers_sent = b"first", {"ETag": '"1"'}
    served.statuses = [503]
    uri = f"{address}/moved/file.bin"
    first = await place.ask(uri)
    assert Path(first.path).read_bytes() == b"first"
    assert Path(first.path).name == "file.bin"
    told: list[Course] = []
    assert await place.ask(uri, told=told) == first
    assert {each.done for each in told} == {0}
    served.content, served.headers_sent = b"other", {"ETag": '"2"'}
    other = await place.ask(uri)
    assert Path(other.path).read_bytes() == b"other"
    assert (await place.ask(uri, first.identity)).identity == first.identity, "it is here still"
    served.headers_sent = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
    assert (await place.ask(uri)).path == other.path, "the same bytes are the same data"
    served.headers_sent = {}
    served.content = b"third"
    assert Path((await place.ask(uri)).path).read_bytes() == b"third"


async def test_an_answer_over_http_that_is_cut_goes_on_where_it_was(
    tmp_path: Path, web: tuple[str, type[Served]]
) -> None:
    address, served = web
    served.content, served.headers_sent = secrets.token_bytes(300_000), {"ETag": '"1"'}
    served.cuts = [None, 100_000]  # the first answer is for its headers alone
    found = await Files(tmp_path).ask(f"{address}/x.bin?signature=hush")
    assert Path(found.path).read_bytes() == served.content
    assert Path(found.path).name == "x.bin"
    (wanted,) = served.ranges
    assert 50_000 < int(wanted.removeprefix("bytes=").removesuffix("-")) <= 100_000


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (404, reasons.DATA_MISSING),
        (410, reasons.DATA_MISSING),
        (403, reasons.DATA_REFUSED),
        (401, reasons.DATA_REFUSED),
    ],
)
async def test_a_server_that_has_nothing_or_refuses(
    tmp_path: Path, web: tuple[str, type[Served]], status: int, reason: str
) -> None:
    address, served = web
    served.statuses = [status]
    found = await Files(tmp_path).ask(f"{address}/x?signature=hush")
    assert found.failure.reason == reason
    assert f"{address}/x?..." in found.failure.message
    assert "hush" not in found.failure.message


async def test_what_an_agent_left_half_made_is_removed(tmp_path: Path) -> None:
    place = Files(tmp_path)
    await place.tasks()
    (place.kept / "0123").mkdir()
    (place.kept / "0123" / "x").write_bytes(b"half")
    (place.kept / "4567.json").write_text("{")
    await place.tasks()
    assert [path.name for path in place.kept.iterdir()] == [PARTIAL]


async def test_an_agent_answers_its_trainings_and_the_next_one_goes_on(
    harness: AgentHarness, memory: MemoryObjects, web: tuple[str, type[Served]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adjourn_worker.data.waiting.SHOWN_SECONDS", 0.0)
    address, served = web
    served.content, served.statuses = b"some data", [503] * 1000
    job = harness.job()
    job.assignment.spec.total_epochs = 1
    async with harness.agent(memory) as agent:
        await harness.until_phase(job, AssignmentStatus.RUNNING)
        asked = harness.attempt(job) / files.DATA / f"it{files.REQUEST}"
        files.write(asked, DataRequest(uri=f"{address}/x").SerializeToString())
        await harness.until(lambda: len(conditions(harness, job)) > 1)
        first, began = conditions(harness, job)
        assert first.condition.reason == reasons.DATA_FETCHING
        assert (began.condition.type, began.condition.reason) == (Condition.FETCHING_DATA, reasons.DATA_UNAVAILABLE)
        assert f"{address}/x" in began.condition.message
        assert "503" in began.condition.message
        assert agent.runners
    served.statuses = []
    async with harness.agent(memory):
        await harness.until(asked.with_suffix(files.ANSWER).exists)
        assert Path(answer(asked).path).read_bytes() == b"some data"
        await harness.until(lambda: conditions(harness, job)[-1].ended)
        job.do("finish")
        await harness.until_forgotten(job)


def conditions(harness: AgentHarness, job: Job) -> list[ConditionChange]:
    return [report.condition for report in harness.plane.of(job) if report.HasField("condition")]

"""What a training process does with the URI of data: it asks, waits, compares, and says what is wrong."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from adjourn.data_identities import in_words, shown
from adjourn.internal.v1.trainer_pb2 import DataAnswer, DataIdentity, DataRequest
from adjourn.pulse import Phase
from adjourn.shared_files import PulseFile
from adjourn.training.data_sources import on_this_machine
from adjourn.v1.job_pb2 import Failure, JobSpec
from adjourn_worker.data.fetching import read_request
from adjourn_worker.launcher import process_tree
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses, failed, until

URI = "s3://bucket/numbers"


@contextmanager
def agent(directory: Path, reply: Callable[[DataRequest], DataAnswer]) -> Iterator[list[DataRequest]]:
    """Answers as the agent does, while the body runs; yields what was asked."""
    asked: list[DataRequest] = []
    over = threading.Event()

    def work() -> None:
        while not over.wait(0.01):
            for path in directory.glob("*.request"):
                answer = path.with_suffix(".answer")
                if not answer.exists() and (request := read_request(path)):
                    asked.append(request)
                    fresh = path.with_suffix(".fresh")
                    fresh.write_bytes(reply(request).SerializeToString())
                    fresh.replace(answer)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield asked
    finally:
        over.set()
        thread.join()


def identity(digest: str) -> DataIdentity:
    return DataIdentity(digest=digest, size_bytes=8, files=1, version="v1")


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.txt"
    path.write_text("1\n2\n3\n4\n")
    return path


def run(trainings: TrainingProcesses, directory: Path, entry_point: str = "sourced:main", **fields: Any) -> Attempt:
    directory.mkdir(exist_ok=True)
    args = {"uri": fields.pop("uri", URI)}
    return trainings.run(entry_point, epochs=2, args=args, data_directory=str(directory), **fields)


def test_training_asks_and_a_resumed_run_says_what_it_had(
    trainings: TrainingProcesses, numbers: Path, tmp_path: Path
) -> None:
    given = DataAnswer(path=str(numbers), identity=identity("abc"))
    with agent(tmp_path / "first", lambda _: given) as asked:
        paused = run(trainings, tmp_path / "first", order=PAUSE)
    assert paused.kinds[-1] == "paused"
    assert f"trains on {numbers}" in paused.log
    assert f"{URI} is {numbers}: 1 files, 8 bytes" in paused.log
    (request,) = asked
    assert (request.uri, request.HasField("expected")) == (URI, False)
    with agent(tmp_path / "second", lambda _: given) as asked:
        resumed = run(trainings, tmp_path / "second", restore=paused)
    assert resumed.kinds[-1] == "finished"
    assert asked[0].expected == identity("abc")
    with agent(tmp_path / "third", lambda _: DataAnswer(path=str(numbers), identity=identity("other"))):
        other = run(trainings, tmp_path / "third", restore=paused)
    message = failed(other, "DATA_CHANGED")
    assert f"{URI} is other data than this run had before" in message
    assert "version v1 (SHA-256 abc...)" in message


def test_the_second_process_of_a_drill_has_the_same_data(
    trainings: TrainingProcesses, numbers: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    with agent(tmp_path / "data", lambda _: DataAnswer(path=str(numbers), identity=identity("abc"))) as asked:
        attempt = run(trainings, tmp_path / "data", spec=JobSpec(drill_steps=2))
    assert "came to the same bits at step 4" in attempt.log
    assert len(asked) == 1


def test_other_data_ends_the_run_whatever_its_code_does(
    trainings: TrainingProcesses, numbers: Path, tmp_path: Path
) -> None:
    with agent(tmp_path / "first", lambda _: DataAnswer(path=str(numbers), identity=identity("abc"))):
        paused = run(trainings, tmp_path / "first", "sourced:accepts_anything", order=PAUSE)
    answer = DataAnswer(failure=Failure(reason="DATA_CHANGED", message="it was written over"))
    with agent(tmp_path / "second", lambda _: answer):
        other = run(trainings, tmp_path / "second", "sourced:accepts_anything", restore=paused)
    assert "who cares" in other.log
    assert failed(other, "DATA_CHANGED") == "it was written over"


@pytest.mark.parametrize("reason", ["DATA_MISSING", "DATA_REFUSED", "DATA_DAMAGED", "DATA_NO_ROOM"])
def test_what_cannot_be_had_fails_the_run_with_its_reason(
    trainings: TrainingProcesses, tmp_path: Path, reason: str
) -> None:
    answer = DataAnswer(failure=Failure(reason=reason, message=f"{URI}: no"))
    with agent(tmp_path / "data", lambda _: answer):
        attempt = run(trainings, tmp_path / "data")
    assert failed(attempt, reason) == f"{URI}: no"


def test_code_may_do_without_and_asks_anew_each_time(trainings: TrainingProcesses, tmp_path: Path) -> None:
    answer = DataAnswer(failure=Failure(reason="DATA_MISSING", message="nothing there"))
    with agent(tmp_path / "data", lambda _: answer) as asked:
        attempt = run(trainings, tmp_path / "data", "sourced:falls_back")
    assert attempt.kinds[-1] == "finished"
    assert attempt.log.count("without it: DATA_MISSING nothing there") == len(asked) == 2


def test_training_that_waits_for_data_shows_that_it_waits_and_ends_without_its_launcher(
    trainings: TrainingProcesses, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    directory = trainings.prepare("sourced:main", args={"uri": URI}, data_directory=str(tmp_path / "data"))
    with trainings.abandoning(directory) as abandon:
        until(lambda: list((tmp_path / "data").glob("*.request")))
        with closing(PulseFile(directory / "pulse")) as pulse:
            until(lambda: (seen := pulse.read()) and seen.phase == Phase.WAITING)
        pid = int((directory / "pid").read_text())
        abandon()
        until(lambda: not process_tree.runs(pid))


def test_an_agent_that_brings_no_data_is_told(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("sourced:main", args={"uri": URI})
    assert "the agent of this worker fetches no data" in failed(attempt, "DATA_REFUSED")


def test_a_path_on_the_worker_is_compared_by_what_is_there(
    trainings: TrainingProcesses, numbers: Path, tmp_path: Path
) -> None:
    uri = f"file://{numbers}"
    paused = run(trainings, tmp_path / "data", uri=uri, order=PAUSE)
    assert f"trains on {numbers}" in paused.log
    numbers.touch()
    assert run(trainings, tmp_path / "data", uri=uri, restore=paused).kinds[-1] == "finished"
    numbers.write_text("1\n2\n3\n5\n")
    assert uri in failed(run(trainings, tmp_path / "data", uri=uri, restore=paused), "DATA_CHANGED")
    numbers.unlink()
    assert str(numbers) in failed(run(trainings, tmp_path / "data", uri=uri, restore=paused), "DATA_MISSING")


def test_of_large_data_on_the_worker_both_ends_of_files_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adjourn.training.data_sources.READ_WHOLE_BYTES", 100)
    folder = tmp_path / "folder"
    (folder / "in").mkdir(parents=True)
    for number in range(3):
        (folder / "in" / str(number)).write_bytes(bytes(200_000))

    def now() -> DataIdentity:
        return on_this_machine(f"file://{folder}/")[1]

    before = now()
    assert (before.size_bytes, before.files) == (600_000, 3)
    assert now() == before
    with (folder / "in" / "2").open("r+b") as file:
        file.seek(199_999)
        file.write(b"x")
    assert now().digest != before.digest
    (folder / "more").touch()
    assert now().files == 4


@pytest.mark.parametrize("uri", ["file://host/path", "file://"])
def test_a_path_of_another_machine_is_refused(trainings: TrainingProcesses, tmp_path: Path, uri: str) -> None:
    assert "file:///path" in failed(run(trainings, tmp_path / "data", uri=uri), "DATA_REFUSED")


def test_what_people_read() -> None:
    assert shown("https://host/a?signature=hush") == "https://host/a?..."
    assert shown("s3://bucket/a?b") == "s3://bucket/a?b"
    assert [in_words(size) for size in (0, 999, 1000, 12_345_678, 2e12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 kB",
        "12.3 MB",
        "2.0 TB",
    ]

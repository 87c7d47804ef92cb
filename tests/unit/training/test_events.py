import os
from pathlib import Path

import pytest

from adjourn import frames
from adjourn.internal.v1.trainer_pb2 import TrainingEvent, TrainingFinished
from adjourn.training.events import EventLog


def finished() -> TrainingEvent:
    return TrainingEvent(finished=TrainingFinished())


def test_events_are_appended_though_nobody_listens(tmp_path: Path) -> None:
    for _ in range(2):
        with EventLog(tmp_path / "events", str(tmp_path / "nobody")) as log:
            log.append(finished())
    events = [event for event, _ in frames.decode(TrainingEvent, (tmp_path / "events").read_bytes())]
    assert [event.WhichOneof("event") for event in events] == ["finished", "finished"]
    assert all(event.HasField("time") for event in events)


def test_event_cut_short_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with EventLog(tmp_path / "events", "") as log:
        log.append(finished())
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: write(file, data[:3]))
            with pytest.raises(OSError, match="no room"):
                log.append(finished())
        log.append(finished())
    content = (tmp_path / "events").read_bytes()
    *_, (_, end) = frames.decode(TrainingEvent, content)
    assert end == len(content)

"""Messages as documents for programs: complete, and the same bytes for the same message."""

import json
import subprocess
import sys

import pytest
import yaml
from google.protobuf.json_format import Parse
from hypothesis import given
from hypothesis import strategies as st

from adjourn.cli import documents, yaml_text
from adjourn.v1.job_pb2 import Job
from adjourn.v1.worker_pb2 import Worker

KEYS = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=6)


def job() -> Job:
    made = Job(name="jobs/x", state=Job.RUNNING, labels={"b": "1", "a": "2"}, latest_checkpoint="c")
    made.spec.args.update({"z": {"b": 1, "a": [{"y": 2, "x": 1.5}]}, "n": 2})
    made.spec.seed = 1 << 60
    made.progress.metrics.update({"val": 0.5, "loss": float("nan"), "acc": 1.0})
    made.conditions.add(reason="NO_CAPACITY")
    made.create_time.FromSeconds(1_700_000_000)
    return made


def test_a_document_has_the_order_of_the_contract_and_sorted_keys() -> None:
    found = documents.document(job())
    names = [field.json_name for field in Job.DESCRIPTOR.fields]
    assert [name for name in names if name in found] == list(found)
    assert list(found["labels"]) == ["a", "b"]
    assert list(found["progress"]["metrics"]) == ["acc", "loss", "val"]
    assert json.dumps(found["spec"]["args"]) == '{"n": 2, "z": {"a": [{"x": 1.5, "y": 2}], "b": 1}}'
    assert "failure" not in found, "unset"
    assert found["attempt"] == 0, "a zero is a figure"


def test_a_document_is_the_message() -> None:
    again = Parse(documents.one_line(job()), Job())
    assert documents.one_line(again) == documents.one_line(job())
    assert yaml.safe_load(documents.yaml(job())) == documents.document(job())


@given(
    st.text(max_size=6)
    | st.sampled_from(["1e-3", "-2E5", "1e", "0x1e3", "1_0e3", "\x85", "a\u2028b"])
    | st.floats(allow_nan=False)
)
def test_yaml_reads_as_what_was_written(value: str | float) -> None:
    assert yaml_text.load(yaml_text.dump({"x": value})) == {"x": value}


def test_numbers_of_yaml_are_those_of_json() -> None:
    assert yaml_text.load("[1e-3, 2E+5, -1e3, 1.5, 7, 1e-3x]") == [0.001, 2e5, -1000.0, 1.5, 7, "1e-3x"]


@given(KEYS)
def test_maps_come_in_one_order_whatever_order_they_were_made_in(labels: dict[str, str]) -> None:
    backwards = dict(reversed(labels.items()))
    assert documents.one_line(Worker(labels=labels)) == documents.one_line(Worker(labels=backwards))


def test_processes_agree_on_the_bytes() -> None:
    program = (
        "from adjourn.cli.documents import one_line; from adjourn.v1.job_pb2 import Job;"
        "print(one_line(Job(labels={str(n): 'x' for n in range(50)})), end='')"
    )
    made = {subprocess.run([sys.executable, "-c", program], check=True, capture_output=True).stdout for _ in range(3)}
    assert len(made) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_no_word_for_is_text(value: float) -> None:
    made = Job()
    made.progress.metrics["loss"] = value
    assert isinstance(documents.document(made)["progress"]["metrics"]["loss"], str)

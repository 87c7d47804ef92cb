"""docs/integrating.md shows the code of the tours, and names only what the contract and the code have."""

import re
import subprocess
import sys
from pathlib import Path

from adjourn import errors
from adjourn.v1 import checkpoint_service_pb2, job_service_pb2, worker_service_pb2

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "integrating.md").read_text()
TOURS = [ROOT / "clients" / name for name in ("python/tour.py", "node/tour.js", "shell/tour.sh")]
TABLE = PAGE.partition("| call | repeated |")[2].partition("\n\n")[0]
SERVICES = [
    checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"],
    job_service_pb2.DESCRIPTOR.services_by_name["JobService"],
    worker_service_pb2.DESCRIPTOR.services_by_name["WorkerService"],
]


def test_the_code_is_that_of_the_tours() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "included_code.py", "--check"], check=False, timeout=60)
    assert done.returncode == 0, "run `make docs`"


def test_each_part_of_each_tour_is_shown() -> None:
    named = {str(path.relative_to(ROOT)): re.findall(r"\bregion (\w+)", path.read_text()) for path in TOURS}
    parts = {(path, name) for path, names in named.items() for name in names}
    shown = set(re.findall(r"<!-- from (\S+): (\w+) -->", PAGE))
    assert len(parts) == 18
    assert shown == parts
    assert PAGE.count("```") == 2 * len(shown), "code that no test runs"


def test_each_call_has_a_row_on_repeats() -> None:
    methods = {method.name for service in SERVICES for method in service.methods}
    told = set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+\b", TABLE))
    kinds = ("Get", "List", "Watch")
    missing = {name for name in methods if not name.startswith(kinds)} ^ told
    assert missing == set(), "the table on repeats has to say whether these may be repeated"


def test_calls_that_are_repeated_by_a_request_id_have_one() -> None:
    row = next(line for line in TABLE.splitlines() if "request_id" in line)
    for name in re.findall(r"\b[A-Z]\w+Job\b", row):
        request = job_service_pb2.DESCRIPTOR.services_by_name["JobService"].methods_by_name[name].input_type
        assert "request_id" in request.fields_by_name, name


def test_reasons_and_links_exist() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    named = set(re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)+\b", prose))
    codes = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS", "DEADLINE_EXCEEDED"}
    assert named - codes <= set(errors.BY_REASON)
    assert named - codes
    links = re.findall(r"\]\(([^)#]+)", prose)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []

"""docs/reasons.md lists every reason that the code knows, and no other."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.rpc import code_pb2

from adjourn import errors, reasons
from adjourn.v1.job_pb2 import Condition
from adjourn.web.rest import errors as gateway_errors

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reasons.md").read_text()
CONSTANTS = {name for name, value in vars(reasons).items() if value == name}


def rows(title: str) -> Iterator[tuple[str, ...]]:
    """Yields the cells of each row of the table below a title."""
    section = re.split(r"\n#+ ", TEXT.partition(f"# {title}\n")[2])[0]
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith("| reason"):
            yield tuple(cell.strip() for cell in line.strip("|").split("|"))


ERRORS = list(rows("Errors of calls"))
GATEWAY = list(rows("Of the gateway"))
FAILURES = list(rows("Failures of attempts"))
CONDITIONS = list(rows("Conditions"))


def test_every_error_of_a_call_is_listed_with_its_status() -> None:
    known = {kind.reason: code_pb2.Code.Name(kind.code) for kind in errors.BY_REASON.values()}
    known.pop(errors.AdjournError.reason)  # never sent: the class of an answer that nobody knows
    assert {row[0]: row[1] for row in ERRORS} == known
    assert len(ERRORS) == len(known)


def test_every_error_of_the_gateway_is_listed_with_its_status() -> None:
    known = {kind.reason: str(kind.http_status) for kind in gateway_errors.HttpError.__subclasses__()}
    assert {row[0]: row[1] for row in GATEWAY} == known


def test_every_reason_of_a_failure_or_a_condition_is_listed() -> None:
    assert {row[0] for row in FAILURES} | {row[0] for row in CONDITIONS} == CONSTANTS
    assert len({row[0] for row in FAILURES}) == len(FAILURES)
    assert len({row[:2] for row in CONDITIONS}) == len(CONDITIONS)


def test_final_are_the_failures_that_another_attempt_would_repeat() -> None:
    assert {row[0] for row in FAILURES if row[1] == "yes"} == reasons.DETERMINISTIC
    assert {row[1] for row in FAILURES} <= {"yes", "no"}


def test_conditions_are_of_the_contract() -> None:
    assert {row[1] for row in CONDITIONS} == set(Condition.Type.keys()) - {"TYPE_UNSPECIFIED"}


@pytest.mark.parametrize("row", [*ERRORS, *GATEWAY, *FAILURES, *CONDITIONS], ids=lambda row: row[0])
def test_each_is_told_in_a_sentence_with_what_to_do(row: tuple[str, ...]) -> None:
    assert len(row) == 4
    assert all(re.fullmatch(r"[A-Z`].+\.", text) for text in row[2:])


def test_what_the_contract_names_is_listed() -> None:
    listed = {row[0] for row in (*ERRORS, *FAILURES, *CONDITIONS)} | {row[1] for row in (*ERRORS, *CONDITIONS)}
    for proto in (ROOT / "protos" / "adjourn" / "v1").glob("*_service.proto"):
        said = re.findall(r"FAILED_PRECONDITION:((?:[\s/]|[A-Z_]+[,.]?)+)", proto.read_text())
        named = {name for text in said for name in re.findall(r"[A-Z_]{4,}", text)}
        assert named <= listed, proto.name

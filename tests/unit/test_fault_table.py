"""The README's table of faults: each row has a test that holds it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "README.md").read_text().partition("\n## What happens when\n")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.splitlines() if line.startswith("| ")]


def test_it_tells_of_every_kind_of_fault() -> None:
    kinds = [what.strip("*") for what, *_ in ROWS if what.startswith("**")]
    assert kinds == ["dies", "hangs", "is cut off", "fills up", "is damaged", "is told to go"]
    assert len(ROWS) > 30


@pytest.mark.parametrize("row", [row for row in ROWS[1:] if not row[0].startswith("**")], ids=lambda row: row[0])
def test_each_row_names_tests_that_exist(row: list[str]) -> None:
    what, follows, tests = row
    assert what
    assert follows
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert named
    assert not re.sub(r"`[\w/]+\.py::\w+`|[, ]", "", tests)
    for path, name in named:
        code = (ROOT / "tests" / path).read_text()
        assert re.search(rf"^ *(async )?def {name}\(", code, re.MULTILINE), f"{path}::{name}"

"""Tables that fit: what is left out first, what is shortened, what always stays."""

from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from adjourn.cli.layout import Column, column, cut, fitted, taken

NAMES = ["sweep-lr-0.001-batch-64-0017", "b"]
WHY = ["NO_CAPACITY: every worker that could run it is busy", "-"]


def columns() -> list[Column]:
    return [
        column("job", NAMES, least=12, middle=True),
        column(">epoch", ["1/20", "12/20"]),
        column("worker", ["worker-1", "-"], rank=1),
        column("model", ["resnet", "-"], rank=2),
        column("labels", ["-", "-"], rank=3),
        column("why", WHY, least=20),
    ]


def shown(width: int) -> list[str]:
    return [each.title for each in fitted(columns(), width)]


def test_what_says_nothing_is_left_out() -> None:
    assert shown(1000) == ["job", "epoch", "worker", "model", "why"]


def test_what_matters_least_is_left_out_first() -> None:
    assert shown(60) == ["job", "epoch", "worker", "model", "why"]
    assert shown(56) == ["job", "epoch", "worker", "why"]
    assert shown(45) == ["job", "epoch", "why"]


def test_names_are_shortened_in_their_middle_and_texts_at_their_end() -> None:
    job, _, why = fitted(columns(), 45)
    assert [cell.plain for cell in job.cells] == ["sweep-lr…64-0017", "b"]
    assert [cell.plain for cell in why.cells] == ["NO_CAPACITY: every …", "-"]


def test_a_cell_keeps_its_style() -> None:
    assert cut(Text("damaged", "red"), 4, middle=False) == Text("dam…", "red")


@given(st.integers(48, 200), st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N"]), max_size=80)))
def test_a_table_is_no_wider_than_there_is_room_and_numbers_are_whole(width: int, names: list[str]) -> None:
    made = fitted([column("job", names, least=12), column(">epoch", ["1000/2000"] * len(names))], width)
    assert taken([each.width for each in made]) <= width
    assert all(cell.plain == "1000/2000" for cell in made[1].cells)

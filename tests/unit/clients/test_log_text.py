"""What a job has printed, as text for a terminal and for a file."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.cli import log_text
from adjourn.cli.log_text import PlainText, TerminalText

RED, OFF = b"\x1b[31m", b"\x1b[0m"
BAR = b"\r 50%|##  | 1/2\x1b[K\r100%|####| 2/2\x1b[K\n"
NESTED = b"outer 0\n\rinner 0\x1b[A\n\rinner 1\x1b[A\router 1\n\rinner 0\x1b[A\n\rinner 1\x1b[A\router 2\n\n"
"""As tqdm draws one bar below another."""


def terminal(*pieces: bytes) -> str:
    text = TerminalText()
    return "".join([*map(text.feed, pieces), text.finish()])


def plain(*pieces: bytes) -> str:
    text = PlainText()
    return "".join([*map(text.feed, pieces), text.finish()])


@pytest.mark.parametrize(
    ("printed", "in_a_file"),
    [
        (b"", ""),
        (b"one\ntwo\n", "one\ntwo\n"),
        (b"one\n\n  two ", "one\n\n  two \n"),
        (b"dos\r\nlines\r\n", "dos\nlines\n"),
        (b"a\tb\n", "a\tb\n"),
        (BAR, "100%|####| 2/2\n"),
        (b"\r 50% and more\rdone\n", "done and more\n"),
        (b"\rtransient bar\r             \rnext line\n", "next line\n"),
        (b"a spinner |\b/\b-\n", "a spinner -\n"),
        (b"abc\x1b[1Kd\n", "   d\n"),
        (b"abc\x1b[2Kd\n", "   d\n"),
        (b"abc\b\b\x1b[Kd\n", "ad\n"),
        (NESTED, "outer 0\nouter 2\ninner 1\n"),
        (b"a\n\x1b[999999999999Ab\n", "a\nb\n"),
        (RED + b"red" + OFF + b"\n", "red\n"),
        ("naïve ✓\n".encode(), "naïve ✓\n"),
        (b"\xff\xfe bytes \xc3\n", "\ufffd\ufffd bytes \ufffd\n"),
        (b"cut \xe2\x9c", "cut \ufffd\n"),
        (b"\x1b]0;title\x07\x1b]8;;http://x\x1b\\link\x1b[2J\x1b[H\x1bc\x07\x00\x9b\n", "link\ufffd\n"),
        (b"unfinished \x1b[3", "unfinished \n"),
        (b"\x1b", ""),
        (b"\x1b\n\x1b[\n", "\n[\n"),
    ],
)
def test_in_a_file_each_line_is_as_it_came_to_be(printed: bytes, in_a_file: str) -> None:
    assert plain(printed) == in_a_file


@pytest.mark.parametrize(
    ("printed", "on_a_terminal"),
    [
        (b"", ""),
        (b"one\ntwo", "one\ntwo\n"),
        (BAR, BAR.decode()),
        (RED + b"red" + OFF + b"\n", "\x1b[31mred\x1b[0m\n"),
        (RED + b"red\n", "\x1b[31mred\n\x1b[0m"),  # no colour is left on
        (NESTED, NESTED.decode().replace("[A", "[1A")),
        (b"\x1b[5Aup\n\n\x1b[5Aup", "up\n\n\x1b[2Aup\n"),  # not above what the log has printed
        (b"\x1b]0;title\x07\x1b[2J\x1b[H\x1b[?1049h\x1bc\x07\x00x", "x\n"),
        (b"\xff\n", "\ufffd\n"),
    ],
)
def test_on_a_terminal_colours_and_bars_stay(printed: bytes, on_a_terminal: str) -> None:
    assert terminal(printed) == on_a_terminal


def test_a_line_is_shown_when_it_is_complete() -> None:
    text = PlainText()
    assert [text.feed(piece) for piece in (b"a", b"b\nc", b"\rd", b"\n")] == ["", "ab\n", "", "d\n"]
    assert text.finish() == ""


def test_a_line_without_an_end_is_not_held_back_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_text, "LINE_MOST", 10)
    text = PlainText()
    assert text.feed(b"x" * 11) == "x" * 11
    assert text.feed(b"y\n") == "y\n"


PRINTED = st.lists(
    st.one_of(
        st.sampled_from(
            [b"\n", b"\r", b"\b", b"\t", b"\x1b", b"[", b"A", b"K", b"2", b";", b"m", b"]", b"\x07", b"\\", b"\x9b"]
        ),
        st.sampled_from([b"\x1b[A", b"\x1b[K", b"\x1b[2K", RED, OFF, b"word", b" ", "é✓".encode(), b"\xff"]),
        st.binary(max_size=4),
    )
).map(b"".join)


@given(printed=PRINTED, cuts=st.lists(st.integers(0, 200)))
def test_it_does_not_matter_in_which_pieces_it_comes(printed: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(printed)) for cut in cuts), len(printed)]
    pieces = [printed[begin:end] for begin, end in pairwise(edges)]
    assert terminal(*pieces) == terminal(printed)
    assert plain(*pieces) == plain(printed)


@given(printed=PRINTED)
def test_nothing_else_steers_the_terminal(printed: bytes) -> None:
    assert re.fullmatch(r"[^\x00-\x08\x0b-\x1f\x7f-\x9f]*", plain(printed))
    allowed = r"(?:[^\x00-\x07\x0b-\x0c\x0e-\x1f\x7f-\x9f]|\x1b\[[0-?]*[ -/]*[mKA])*"
    shown = terminal(printed)
    assert re.fullmatch(allowed, shown)
    row = 0
    for up, line in re.findall(r"\x1b\[(\d+)A|(\n)", shown):
        row += 1 if line else -int(up)
        assert row >= 0


@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"])).map(lambda text: text + "\n"))
def test_text_without_control_characters_stays_as_it_is(text: str) -> None:
    assert plain(text.encode()) == terminal(text.encode()) == text

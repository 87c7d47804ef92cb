"""PURE. What a job has printed, as text for a terminal or for a file.

Bytes that are not UTF-8 become U+FFFD. To a terminal go colours, and what progress bars draw with: carriage returns,
erasures in a line, steps up to lines of the same log. A file gets each line as it came to be in the end, without
colours. All other control sequences are left out: they could steer the terminal, or hide what is there.
"""

import codecs
import re
from typing import Final

LINE_MOST: Final = 1 << 20
"""Characters of a line that is held back to see what becomes of it."""
ROWS_MOST: Final = 32
"""Lines that are held back, where bars are drawn below each other."""
SEQUENCE_MOST: Final = 4096
"""Characters of a control sequence; what is longer is none."""

CONTROL: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
TOKEN: Final = re.compile(
    r"\x1b\[([0-?]*)[ -/]*([@-~])"  # parameters and the letter of a control sequence
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # a string: a title, a link
    r"|\x1b[ -/]*[0-OQ-WYZ\\`-~]"
    r"|([^\x00-\x1f\x7f-\x9f]+)"
    r"|(.)",
    re.DOTALL,
)
UNFINISHED: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)\Z")


class TerminalText:
    """Text for a terminal."""

    def __init__(self) -> None:
        self._input = _Input()
        self._rows = 0
        """Lines of the log above the cursor."""
        self._blank = True
        """The cursor is at the beginning of a line."""
        self._coloured = False

    def feed(self, data: bytes) -> str:
        """Returns what is to be written for the next bytes."""
        return self._text(self._input.feed(data))

    def finish(self) -> str:
        """Returns what ends the text: the cursor is on a line of its own then, and no colour is left on."""
        rest = self._text(self._input.finish())
        ending = ("\x1b[0m" if self._coloured else "") + ("" if self._blank else "\n")
        self._coloured, self._blank, self._rows = False, True, 0
        return rest + ending

    def _text(self, text: str) -> str:
        return "".join(self._kept(match) for match in TOKEN.finditer(text))

    def _kept(self, match: re.Match[str]) -> str:
        parameters, letter, plain, single = match.groups()
        if plain:
            self._blank = False
            return plain
        match single or letter:
            case "\n":
                self._rows, self._blank = self._rows + 1, True
                return "\n"
            case "\r" | "\t" | "\b":
                return str(single)
            case "m" if letter:
                self._coloured = parameters not in ("", "0")
                return match[0]
            case "K" if letter:
                return match[0]
            case "A" if letter:
                up = min(number(parameters), self._rows)
                self._rows -= up
                self._blank = self._blank and not up
                return f"\x1b[{up}A" if up else ""
        return ""


class PlainText:
    """Text for a file or another program: each line in its last state."""

    def __init__(self) -> None:
        self._input = _Input()
        self._lines = [""]
        """Those that may still change."""
        self._row, self._column = 0, 0
        """Of the cursor, in these."""
        self._held = 0
        """So many lines may be drawn over once they are complete, as was seen."""
        self._drawn = False
        """Something was written over: blanks at the end of a line are what is left of it."""

    def feed(self, data: bytes) -> str:
        """Returns the lines that are complete with the next bytes."""
        return self._text(self._input.feed(data))

    def finish(self) -> str:
        """Returns the rest; a line that has begun ends here."""
        done = self._text(self._input.finish())
        while self._lines and not self._lines[-1].strip():
            self._lines.pop()
        rest = "".join(map(self._ended, self._lines))
        self._lines, self._row, self._column, self._held, self._drawn = [""], 0, 0, 0, False
        return done + rest

    def _text(self, text: str) -> str:
        done: list[str] = []
        for index, part in enumerate(text.split("\n")):
            if index:
                self._break_line(done)
            if not CONTROL.search(part):
                self._write(part)
            else:
                for match in TOKEN.finditer(part):
                    self._draw(match)
            if len(self._lines[self._row]) > LINE_MOST:
                done += self._lines
                self._lines, self._row, self._column = [""], 0, 0
        return "".join(done)

    def _break_line(self, done: list[str]) -> None:
        self._row, self._column = self._row + 1, 0
        if self._row == len(self._lines):
            self._lines.append("")
        while len(self._lines) > self._held + 1 and self._row:
            done.append(self._ended(self._lines.pop(0)))
            self._row -= 1
        self._drawn = self._held > 0

    def _ended(self, line: str) -> str:
        return f"{line.rstrip(' ') if self._drawn else line}\n"

    def _write(self, text: str) -> None:
        line = self._lines[self._row]
        self._lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    def _draw(self, match: re.Match[str]) -> None:
        parameters, letter, plain, single = match.groups()
        if plain:
            self._write(plain)
            return
        line, column = self._lines[self._row], self._column
        self._drawn = True
        match single or letter:
            case "\r":
                self._column = 0
            case "\b":
                self._column = max(0, column - 1)
            case "\t":
                self._write("\t")
            case "K" if letter and parameters == "2":
                self._lines[self._row] = " " * column
            case "K" if letter and parameters == "1":
                self._lines[self._row] = " " * column + line[column:]
            case "K" if letter:
                self._lines[self._row] = line[:column]
            case "A" if letter:
                up = number(parameters)
                if up > self._row:
                    self._held = min(ROWS_MOST, max(self._held, up))
                self._row = max(0, self._row - up)
                self._lines[self._row] = self._lines[self._row].ljust(self._column)


class _Input:
    """Bytes as text, whole characters and whole control sequences at a time."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._rest = ""

    def feed(self, data: bytes) -> str:
        text = self._rest + self._decoder.decode(data)
        cut = UNFINISHED.search(text, max(0, len(text) - SEQUENCE_MOST))
        self._rest = text[cut.start() :] if cut else ""
        return text[: cut.start()] if cut else text

    def finish(self) -> str:
        """Returns the rest; a control sequence that has only begun is left out."""
        self._rest = ""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


def number(parameters: str) -> int:
    """Returns the number of a control sequence; 1, if it has none."""
    return max(1, int(parameters)) if parameters.isascii() and parameters.isdecimal() and len(parameters) < 5 else 1

"""What a failure's message says of an exception: where in user code, and what. The log has the whole traceback."""

import traceback
from pathlib import Path
from typing import Final

OURS: Final = f"{Path(__file__).parent}/"
IMPORTS: Final = ("<frozen importlib", traceback.__file__.replace("traceback.py", "importlib/"))
LINES: Final = 5
"""Of the words of an exception, its first one and its last ones: some have hundreds."""
LIMIT: Final = 4000


def of(error: BaseException, code_directory: str = "") -> str:
    """Returns the innermost line of user code, of what it called the innermost one, and the exception's words.

    User code is what lies in `code_directory`; without one, what is neither ours nor Python's way to import.
    """
    frames = [
        traceback.FrameSummary(frame.filename, frame.lineno, frame.name, line=frame.line)  # without marks below it
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((OURS, *IMPORTS))
    ]
    own = [frame for frame in frames if code_directory and frame.filename.startswith(f"{code_directory}/")] or frames
    shown = [*own[-1:], *(frame for frame in frames[-1:] if frame is not own[-1])]
    words = "".join(traceback.format_exception_only(error)).rstrip().splitlines()
    if len(words) > LINES:
        words = [words[0], "  ...", *words[2 - LINES :]]
    text = "".join(traceback.format_list(shown)) + "\n".join(words)
    return printable(text[:LIMIT])


def printable(text: str) -> str:
    """Returns what a protobuf text can hold: a lone surrogate becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode()

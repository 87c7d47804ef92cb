"""Writes the blocking client from the asynchronous one; `--check` only compares.

The two differ in words only (`await`, `async for`, `aio`...). What differs in more than that stands in BLOCKS.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

CLIENT: Final = Path(__file__).parent / "adjourn" / "client"
SOURCE: Final = CLIENT / "asynchronous.py"
TARGET: Final = CLIENT / "blocking.py"

BLOCKS: Final = (
    (
        '"""The client for programs with an event loop."""\n',
        '"""The client for programs without an event loop. Written by `make client` from asynchronous.py."""\n',
    ),
    (
        """class AsyncClient:
    \"\"\"Talks to a control plane. Belongs to the event loop in which it was made.

    Until it is closed, methods raise classes of `adjourn.errors`. Close it, or use it in an `async with` statement.
    \"\"\"
""",
        """class Client:
    \"\"\"Talks to a control plane; blocks until it answers. Safe to share between threads.

    Until it is closed, methods raise classes of `adjourn.errors`. Close it, or use it in a `with` statement.
    \"\"\"
""",
    ),
    (
        """
        await self.aclose()
""",
        """
        if kind is not None and not issubclass(kind, Exception):
            # Ctrl-C can interrupt a call while grpc starts it; grpc's close() then waits for ever (grpcio 1.85).
            Thread(target=self.close, daemon=True).start()
        else:
            self.close()
""",
    ),
    ("from types import TracebackType\n", "from threading import Thread\nfrom types import TracebackType\n"),
    ("import grpc\nimport grpc.aio\n", "import grpc\n"),
    ("import asyncio\n", ""),
    ("import random\n", "import random\nimport time\n"),
)
"""Texts that stand in the asynchronous client once, and what the blocking one has in their place."""

WORDS: Final = (
    (r"await asyncio\.sleep", "time.sleep"),
    (r"\(await (.*)\)\.bundle", r"\1.bundle"),
    (r"\bawait ", ""),
    (r"\basync (def|for|with) ", r"\1 "),
    (r"\baclos(e|ing)\b", r"clos\1"),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"for item in (page\.\w+):\n +yield item\n", r"yield from \1\n"),
    (r"\bAsync(Generator|Iterator)\b", r"\1"),
    (r"\bGenerator\[(\w+), None\]", r"Generator[\1, None, None]"),
    (r"\bgrpc\.aio\.", "grpc."),
    (r" *# noqa: ASYNC109.*", ""),
)


def blocking(source: str) -> str:
    """Returns the blocking client for the text of the asynchronous one."""
    for old, new in BLOCKS:
        if source.count(old) != 1:
            raise SystemExit(f"{SOURCE} should have this once, has it {source.count(old)} times:\n{old}")
        source = source.replace(old, new)
    for old, new in WORDS:
        source = re.sub(old, new, source)
    if left := re.search(r".*(async(?!hronous)|await|aio\b).*", source):
        raise SystemExit(f"this would not block: {left[0]}")
    return formatted(source)


def formatted(text: str) -> str:
    """Returns the text as ruff leaves it, with imports and lines in order."""
    ruff = Path(sys.executable).parent / "ruff"
    for words in (("check", "--fix-only", "--quiet"), ("format", "--quiet")):
        command = [str(ruff), *words, "--stdin-filename", str(TARGET), "-"]
        text = subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout
    return text


def main() -> int:
    fresh = blocking(SOURCE.read_text())
    if "--check" in sys.argv:
        return int(fresh != TARGET.read_text())
    TARGET.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())

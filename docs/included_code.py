"""Writes the regions of the tours into docs/integrating.md, where a comment names them; `--check` only compares.

The tours are tested as they are, so the page shows nothing that does not run.
"""

import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "integrating.md"
INCLUDED = re.compile(r"(<!-- from (\S+): (\w+) -->\n```\w+\n)(.*?)(```\n)", re.DOTALL)


def region(path: str, name: str) -> str:
    """Returns a part of a file, between the lines `region name` and `endregion`; raises LookupError."""
    lines = re.compile(rf"^[^\n]*\bregion {name}\n(.*?)^[^\n]*\bendregion", re.DOTALL | re.MULTILINE)
    marked = lines.search((ROOT / path).read_text())
    if not marked:
        raise LookupError(f"{path} has no region {name}")
    return re.sub(r"\n{3,}", "\n\n", textwrap.dedent(marked[1]).strip("\n")) + "\n"


def main() -> int:
    text = PAGE.read_text()
    fresh = INCLUDED.sub(lambda match: f"{match[1]}{region(match[2], match[3])}{match[5]}", text)
    if "--check" in sys.argv:
        return int(fresh != text)
    PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())

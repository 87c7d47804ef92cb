"""Writes the page's files as Prettier has them; `make lint` runs it. What is in templates is left as it is."""

import subprocess
import sys

from adjourn.web.page import FILES
from tests.harness import node

PRETTIER = "prettier/bin/prettier.cjs"
SUFFIXES = frozenset({".js", ".css", ".html"})
CONFIG = FILES.parents[4] / ".prettierrc.json"


def run(option: str) -> subprocess.CompletedProcess[str]:
    """Runs it with `--write` or `--check` on what is our own."""
    ours = [
        path for path in FILES.rglob("*.*") if path.suffix in (".js", ".css", ".html") and "vendor" not in path.parts
    ]
    words = [node.node(), node.packages(node.PAGE) / PRETTIER, "--config", CONFIG, "--log-level=warn", option, *ours]
    return subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True, timeout=60)


if __name__ == "__main__":
    done = run("--write")
    sys.stderr.write(done.stderr)
    sys.exit(done.returncode)

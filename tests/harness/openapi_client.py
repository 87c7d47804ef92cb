"""A client in Python that a generator has made of the gateway's OpenAPI document."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "clients" / "adjourn" / "web" / "rest" / "openapi.json"
GENERATOR = ("openapi-python-client==0.29.1", "typer==0.27.3", "ruamel.yaml==0.19.1")
"""What is not in the environment, or in another version: the generator does not go with the newest typer."""


def generator() -> Path:
    """Returns where the generator is, installed once for each environment; fails if there is no network."""
    place = Path(sys.prefix) / "openapi" / "-".join(each.partition("==")[2] for each in GENERATOR)
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as made:
            words = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*words, "--target", f"{made}/installed", *GENERATOR], check=True, timeout=120)
            try:
                Path(made, "installed").rename(place)
            except OSError:  # another process of the tests came first
                assert place.exists()
    return place


def generate(target: Path) -> None:
    """Writes the package of a client; fails if any part of the document could not be made one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it formats what it writes
    words = [sys.executable, "-m", "openapi_python_client", "generate", "--path", str(DOCUMENT), "--meta", "none"]
    done = subprocess.run(
        [*words, "--output-path", str(target), "--fail-on-warning"],
        check=False,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(generator())},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr

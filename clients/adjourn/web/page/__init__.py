"""The web page: static files, which find all that they show in the contract's REST."""

from pathlib import Path
from typing import Final

from starlette.staticfiles import StaticFiles

FILES: Final = Path(__file__).parent / "static"


def application() -> StaticFiles:
    """Returns the application that serves the page."""
    return StaticFiles(directory=FILES, html=True)

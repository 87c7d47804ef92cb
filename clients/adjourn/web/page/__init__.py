"""The web page: static files, which find all that they show in the contract's REST. Nothing builds them."""

from pathlib import Path
from typing import Any, Final

from starlette.responses import Response
from starlette.staticfiles import StaticFiles

FILES: Final = Path(__file__).parent / "static"


class Files(StaticFiles):
    """Files that a browser may keep, and asks about each time: modules of two versions do not fit together."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["cache-control"] = "no-cache"
        return response


def application() -> StaticFiles:
    """Returns the application that serves the page."""
    return Files(directory=FILES, html=True)

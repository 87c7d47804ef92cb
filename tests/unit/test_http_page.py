"""docs/http.md names paths and settings that there are."""

import re
from pathlib import Path

from adjourn.web.rest.application import BUNDLES, SERVICES
from adjourn.web.rest.transcoding import routes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text()
OTHERS = {BUNDLES, "/v1/docs", "/v1/openapi.json"}


def test_the_page_names_paths_that_there_are() -> None:
    found = {path.rstrip(".,:") for path in re.findall(r"(?<!adjourn)/v1/[\w/:.]+", PAGE)}
    known = {path for path in found for route in routes(SERVICES) if route.template.match(path) is not None}
    assert len(found) > 8
    assert found - known - OTHERS == set()


def test_the_page_names_settings_that_are_listed() -> None:
    listed = re.findall(r"^\| (ADJOURN_\w+) ", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE)
    assert set(re.findall(r"ADJOURN_\w+", PAGE)) <= set(listed)

"""docs/webhooks.md says what the code does."""

import re
from pathlib import Path

from adjourn_control_plane.store.redis import CHANGES_KEPT
from adjourn_control_plane.webhooks import delivery, queues, sink
from tests.unit.test_settings_page import rows

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "webhooks.md").read_text()
CODE = Path(delivery.__file__).read_text()


def test_numbers_and_names_are_those_of_the_code() -> None:
    assert f"({', '.join(map(str, sorted(sink.REFUSED)))}), three times" in PAGE
    assert queues.REFUSALS == 3
    assert f"{queues.PASSED_BY:,} later ones" in PAGE
    assert f"within {sink.ANSWER_SECONDS:g} s" in PAGE
    assert "half a second at first" in PAGE
    assert queues.FIRST_DELAY == 0.5
    assert f"{queues.LAST_DELAY:g} s at last" in PAGE
    assert f"{CHANGES_KEPT:,} events" in PAGE
    assert set(re.findall(r"ADJOURN_\w+", PAGE)) == {name for name in rows("Control plane") if "WEBHOOK" in name}
    logged = set(re.findall(r"`(webhook_\w+)`", PAGE))
    assert logged == set(re.findall(r'log\.\w+\("(webhook_\w+)"', CODE))


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#h][^)#]*)", PAGE)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []

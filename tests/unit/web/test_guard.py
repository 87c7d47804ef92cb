"""Which requests of browsers are refused, whatever they are for."""

from typing import Any

import pytest

from adjourn.web.guard import Guard
from adjourn.web.settings import Settings

SETTINGS = Settings(hosts=frozenset({"adjourn.example"}), origins=frozenset({"https://board.example"}))


async def passed(kind: str, method: str = "GET", **headers: str) -> bool:
    """Returns whether a request reaches the application behind the guard."""
    reached = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal reached
        reached = True

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    encoded = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": kind, "headers": encoded, "path": "/", "query_string": b""}
    await Guard(app, SETTINGS)(scope | ({"method": method} if kind == "http" else {}), receive, send)
    assert reached or sent[0].get("status") == 403 or sent[0]["type"] == "websocket.close"
    return reached


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1:7480", True),
        ("[::1]:7480", True),
        ("10.1.2.3", True),
        ("localhost:7480", True),
        ("LOCALHOST", True),
        ("adjourn.example", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_name_that_another_site_could_have_is_refused(kind: str, host: str, expected: bool) -> None:
    assert await passed(kind, host=host) is expected


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("http://127.0.0.1:7480", True),
        ("https://board.example", True),
        ("http://127.0.0.1:9999", False),
        ("https://evil.example", False),
        ("null", False),
    ],
)
async def test_what_a_page_of_another_site_asks_for_is_refused_if_it_may_change_something(
    origin: str, expected: bool
) -> None:
    assert await passed("websocket", host="127.0.0.1:7480", origin=origin) is expected
    for method in ("POST", "PATCH", "DELETE", "PUT"):
        assert await passed("http", method, host="127.0.0.1:7480", origin=origin) is expected
    assert await passed("http", "GET", host="127.0.0.1:7480", origin=origin), "it cannot read the answer"


async def test_what_is_no_browser_passes_and_a_form_of_another_site_does_not() -> None:
    assert await passed("http", "POST", host="127.0.0.1")
    assert await passed("http", "POST", host="127.0.0.1", sec_fetch_site="none")
    assert not await passed("http", "POST", host="127.0.0.1", sec_fetch_site="cross-site")
    assert not await passed("http", "POST", host="127.0.0.1", sec_fetch_site="same-site")

"""What the store on Valkey decides without a server."""

from importlib import resources

import pytest

from adjourn_control_plane.store import redis_codec as values
from adjourn_control_plane.store.redis import RedisStore
from adjourn_control_plane.store.redis_checks import shortcomings

KEEPS = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({}, []),
        ({"appendonly": "no"}, ["appendonly off"]),
        ({"appendonly": "no", "appendfsync": "everysec"}, ["appendonly off"]),
        ({"appendfsync": "everysec"}, ["appendfsync everysec"]),
        ({"maxmemory-policy": "allkeys-lru"}, ["allkeys-lru"]),
        ({"appendfsync": "no", "maxmemory-policy": "volatile-ttl"}, ["appendfsync no", "volatile-ttl"]),
    ],
)
def test_settings_that_lose_something_are_named(setting: dict[str, str], words: list[str]) -> None:
    found = shortcomings(KEEPS | setting)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found, strict=True))


def test_server_that_tells_nothing_is_not_trusted() -> None:
    assert shortcomings({})


@pytest.mark.parametrize("token", ["0-0", "1-0", "1795348085479-12", "18446744073709551615-18446744073709551615"])
def test_ids_of_entries_are_tokens(token: str) -> None:
    assert values.is_token(token)


@pytest.mark.parametrize("token", ["", "1", "a-b", "1-", "-1", "1-01", "1-0\n", "\u0661-0", "1-18446744073709551616"])
def test_anything_else_is_none(token: str) -> None:
    assert not values.is_token(token)


def test_scripts_are_shipped_with_the_package() -> None:
    scripts = {
        path.name
        for path in (resources.files("adjourn_control_plane.store") / "scripts").iterdir()
        if path.name.endswith(".lua")
    }
    assert scripts == {f"{name}.lua" for name in RedisStore("redis://127.0.0.1/", "test")._scripts}


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "127.0.0.1:6379"])
def test_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="redis://"):
        RedisStore(url, "test")


@pytest.mark.parametrize("namespace", ["", "a b", "a{b}", "a:b"])
def test_namespace_that_would_not_be_one_slot_is_refused(namespace: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        RedisStore("redis://127.0.0.1/", namespace)

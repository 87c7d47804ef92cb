"""Settings of the gateway, from its environment; everything wrong with them is reported at once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from adjourn.channel import DEFAULT_ADDRESS
from adjourn.settings_reader import SettingsReader, address
from adjourn.web.origins.created import Trained

DEFAULT_PORT: Final = 7480
DEFAULT_LISTEN: Final = f"127.0.0.1:{DEFAULT_PORT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one gateway."""

    listen: str = DEFAULT_LISTEN
    """`host:port` to serve at."""
    address: str = DEFAULT_ADDRESS
    """The control plane, `host:port`."""
    hosts: frozenset[str] = frozenset()
    """Names by which browsers may call it, beside `localhost` and IP addresses."""
    origins: frozenset[str] = frozenset()
    """Other sites whose pages may call it, `https://host[:port]`."""
    heimdall: str = ""
    """`host:port` to serve Heimdall's interface at; empty: nowhere."""
    peft_studio: str = ""
    """`host:port` to serve PEFT Studio's interface at; empty: nowhere."""
    trained: Trained = field(default_factory=Trained)
    """What trains for a job that is created through one of these."""
    log_format: str = "json"
    """`json` or `console`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Self:
        """Reads ADJOURN_*; raises InvalidSettings (a ValueError) naming everything that is wrong."""
        reader = SettingsReader(environment)
        nothing: frozenset[str] = frozenset()
        values = {
            "listen": reader.take("ADJOURN_WEB_LISTEN", address, DEFAULT_LISTEN),
            "address": reader.take("ADJOURN_ADDRESS", address, DEFAULT_ADDRESS),
            "hosts": reader.take("ADJOURN_WEB_HOSTS", hosts, nothing),
            "origins": reader.take("ADJOURN_WEB_ORIGINS", origins, nothing),
            "heimdall": reader.take("ADJOURN_HEIMDALL_LISTEN", place, ""),
            "peft_studio": reader.take("ADJOURN_PEFT_STUDIO_LISTEN", place, ""),
            "trained": reader.nested(Trained.from_environment),
            "log_format": reader.take("ADJOURN_LOG_FORMAT", log_format, "json"),
        }
        reader.check()
        return cls(**values)  # type: ignore[arg-type]  # each parser returns its field's type


def place(text: str) -> str:
    """Parses `host:port`, or the port alone, of 127.0.0.1."""
    try:
        return address(f"127.0.0.1:{text}" if text.isdecimal() else text)
    except ValueError:
        raise ValueError("must be host:port, or a port") from None


def hosts(text: str) -> frozenset[str]:
    """Parses names of hosts, separated by commas."""
    names = frozenset(name.strip().lower() for name in text.split(","))
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name) for name in names):
        raise ValueError("must be names of hosts, separated by commas, without ports")
    return names


def origins(text: str) -> frozenset[str]:
    """Parses origins, separated by commas."""
    found = frozenset(origin.strip().lower() for origin in text.split(","))
    if not all(re.fullmatch(r"https?://[a-z0-9.\[\]:-]+", origin) for origin in found):
        raise ValueError("must be origins, separated by commas: https://host or http://host:port")
    return found


def log_format(text: str) -> str:
    if text not in ("json", "console"):
        raise ValueError("must be json or console")
    return text

"""PURE. Whether data is what a run had before under its URI, and how that is told."""

from adjourn.internal.v1.trainer_pb2 import DataIdentity

UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def changed(shown: str, before: DataIdentity, now: DataIdentity) -> str:
    """Says how data differs; `shown` is its URI for people."""
    return (
        f"{shown} is other data than this run had before: it was {told(before)}, it is {told(now)}. Training would not"
        " go on exactly. Put the earlier data back and resume the job, or create a new job for the new data"
    )


def told(identity: DataIdentity) -> str:
    version = f", version {identity.version}" if identity.version else ""
    digest = f" (SHA-256 {identity.digest[:16]}...)" if identity.digest else ""
    return f"{identity.size_bytes:,} bytes in {identity.files:,} files{version}{digest}"


def shown(uri: str) -> str:
    """Returns a URI for people: without a query, which may have a signature in it."""
    plain, mark, _ = uri.partition("?")
    return f"{plain}?..." if mark and not uri.startswith("s3:") else uri


def in_words(size: float) -> str:
    """Returns a number of bytes for people, in powers of 1000."""
    power = 0
    while size >= 1000 and power < len(UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.1f} {UNITS[power]}" if power else f"{size:.0f} bytes"

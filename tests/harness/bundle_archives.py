"""Bundles made by hand, also such that `adjourn.bundles.pack` would not make."""

import io
import tarfile


def archive(**members: bytes) -> bytes:
    """Returns a .tar.gz of files by name; `__` in a name is a slash."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.replace("__", "/"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()

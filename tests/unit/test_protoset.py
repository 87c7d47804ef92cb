"""The descriptors that are published for grpcurl are what the sources give."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_descriptors_are_current(tmp_path: Path) -> None:
    fresh = tmp_path / "adjourn.protoset"
    words = ("build", "--path", "adjourn/v1", "--as-file-descriptor-set", "-o", f"{fresh}#format=binpb")
    subprocess.run([Path(sys.executable).parent / "buf", *words], cwd=ROOT / "protos", check=True, timeout=120)
    published = ROOT / "deploy" / "adjourn.protoset"
    assert fresh.read_bytes() == published.read_bytes(), "run `make protos`"

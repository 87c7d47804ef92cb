"""The descriptors that are published for grpcurl are what the sources give."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATHS = ("--path", "adjourn/v1", "--path", "third_party/google/rpc")
"""With the types of the details of errors: Envoy shows an error as JSON only if it knows all of them."""


def test_the_descriptors_are_current(tmp_path: Path) -> None:
    fresh = tmp_path / "adjourn.protoset"
    words = ("build", *PATHS, "--as-file-descriptor-set", "-o", f"{fresh}#format=binpb")
    subprocess.run([Path(sys.executable).parent / "buf", *words], cwd=ROOT / "protos", check=True, timeout=120)
    published = ROOT / "deploy" / "adjourn.protoset"
    assert fresh.read_bytes() == published.read_bytes(), "run `make protos`"

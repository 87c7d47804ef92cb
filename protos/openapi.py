"""Writes the OpenAPI document of the contract, which the gateway serves; `--check` only compares."""

import json
import sys
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from adjourn.web.rest.application import SERVICES
from adjourn.web.rest.openapi import document

ROOT: Final = Path(__file__).parents[1]
DESCRIPTORS: Final = ROOT / "deploy" / "adjourn.protoset"
TARGET: Final = ROOT / "clients" / "adjourn" / "web" / "rest" / "openapi.json"


def main() -> int:
    files = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    fresh = json.dumps(document(SERVICES, files), indent=1, ensure_ascii=False) + "\n"
    if "--check" in sys.argv:
        return int(fresh != TARGET.read_text())
    TARGET.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())

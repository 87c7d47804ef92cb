"""Writes the Python code of the contract below the directory given, `adjourn/[internal/]v1/*_pb2*.py[i]`."""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

SOURCES = Path(__file__).parent


def generate(target: Path) -> None:
    """Generates messages and, for services, gRPC code, both with stubs; raises SystemExit if protoc fails."""
    messages = sorted(str(path.relative_to(SOURCES)) for path in (SOURCES / "adjourn").rglob("*.proto"))
    services = [name for name in messages if name.endswith("_service.proto")]
    run(messages, f"--python_out={target}", f"--mypy_out=quiet:{target}")
    run(services, f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}")


def run(files: list[str], *outputs: str) -> None:
    """Runs protoc over files named relative to the sources."""
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--proto_path={SOURCES}",
        f"--proto_path={SOURCES / 'third_party'}",
        f"--proto_path={Path(grpc_tools.__file__).parent / '_proto'}",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        *outputs,
        *files,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its messages are above")


if __name__ == "__main__":
    generate(Path(sys.argv[1]))

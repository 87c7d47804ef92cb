"""The generated code is what the sources give."""

import filecmp
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_generated_code_is_current(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "protos" / "generate.py", tmp_path], check=True, timeout=120)
    committed = ROOT / "clients"
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.py*"))
    known = sorted(str(path.relative_to(committed)) for path in committed.rglob("*_pb2*.py*") if path.suffix != ".pyc")
    assert known == names, "run `make protos`"
    _, differing, missing = filecmp.cmpfiles(tmp_path, committed, names, shallow=False)
    assert (differing, missing) == ([], []), "run `make protos`"


def test_the_openapi_document_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "protos" / "openapi.py", "--check"], check=False, timeout=120)
    assert done.returncode == 0, "run `make protos`"


def test_the_blocking_client_is_current() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "clients" / "generate_blocking.py", "--check"], check=False, timeout=120
    )
    assert done.returncode == 0, "run `make client`"


def test_the_state_diagram_of_the_readme_is_current() -> None:
    done = subprocess.run([sys.executable, ROOT / "docs" / "state_diagram.py", "--check"], check=False, timeout=120)
    assert done.returncode == 0, "run `make docs`"

"""What is installed: three packages in one wheel, and for each extra no more than it needs."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from adjourn import cli, extras

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BLOCK = """
import sys

BLOCKED = frozenset(sys.argv[1].split(","))

class Installed:
    def __init__(self, finders):
        self.finders = finders

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            return None
        return next((spec for each in self.finders if (spec := each.find_spec(name, path, target))), None)

sys.meta_path[:] = [Installed(list(sys.meta_path))]
"""


@cache
def modules() -> dict[str, set[str]]:
    """Returns the distributions that bring each top-level module of the environment, by normalised names."""
    return {module: {normal(name) for name in names} for module, names in metadata.packages_distributions().items()}


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def needed(requirements: list[str], extra: str = "") -> Iterator[str]:
    """Yields the distributions that requirements bring, those of the project's own extras included."""
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = normal(requirement.name)
        if name == "adjourn":
            for own in requirement.extras:
                yield from needed(PROJECT["optional-dependencies"][own])
            continue
        yield name
        for wanted in requirement.extras or {""}:
            yield from closure(name, wanted)


@cache
def closure(name: str, extra: str) -> tuple[str, ...]:
    return tuple(needed(metadata.requires(name) or [], extra))


def blocked(extra: str) -> str:
    """Returns the third-party modules that `pip install adjourn[extra]` does not bring."""
    requirements = PROJECT["dependencies"] + (PROJECT["optional-dependencies"][extra] if extra else [])
    allowed = {*needed(requirements), "adjourn"}
    return ",".join(sorted(module for module, names in modules().items() if not names & allowed))


def loads(extra: str, program: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", BLOCK + program, blocked(extra)]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_three_packages_and_what_they_read(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        (described,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        lines = archive.read(described).decode().splitlines()
    assert {name.partition("/")[0] for name in names} == {
        *("adjourn", "adjourn_control_plane", "adjourn_worker"),
        described.partition("/")[0],
    }
    assert {
        "adjourn/py.typed",
        "adjourn/cli/job.yaml",
        "adjourn/web/page/static/index.html",
        "adjourn/web/rest/openapi.json",
        "adjourn/web/rest/viewer/vendor/openapi-explorer.min.js",
        "adjourn_control_plane/store/scripts/commit.lua",
    } <= set(names)
    required = {
        line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line
    }
    assert {Requirement(text).name for text in required} == {
        *("googleapis-common-protos", "grpcio", "packaging", "pathspec", "protobuf", "pyyaml", "rich", "typer"),
    }


@pytest.mark.parametrize(
    ("extra", "imported"),
    [
        ("", "adjourn.client, adjourn.bundles, adjourn.cli, adjourn.cli.job_view"),
        ("training", "adjourn.training.process"),
        ("control-plane", "adjourn_control_plane.process"),
        ("web", "adjourn.web.process"),
        ("worker", "adjourn_worker.process, adjourn_worker.launcher.server, adjourn_worker.launcher.bootstrap"),
        ("local", "adjourn.cli.up, adjourn.cli.demo"),
        ("examples", "adjourn.examples.digits"),
    ],
)
def test_an_extra_brings_all_that_its_part_imports(extra: str, imported: str) -> None:
    done = loads(extra, f"import {imported}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("extra", "absent"),
    [
        ("", {"torch", "numpy", "redis", "minio", "psutil", "pynvml", "structlog", "blake3", "grpc_health"}),
        ("training", {"redis", "minio", "psutil", "pynvml", "structlog"}),
        ("control-plane", {"torch", "numpy", "psutil", "pynvml"}),
        ("web", {"torch", "numpy", "redis", "minio", "psutil", "grpc_health"}),
        ("worker", {"redis", "grpc_reflection"}),
        ("all", {"pytest", "hypothesis", "mypy", "grpc_tools"}),
    ],
)
def test_an_extra_brings_no_more_than_its_part_needs(extra: str, absent: set[str]) -> None:
    assert absent <= set(blocked(extra).split(","))


def test_the_client_alone_runs_the_command_line_and_says_what_is_missing_for_the_rest() -> None:
    for words, status, text in (
        (["--address", "127.0.0.1:1", "list"], 4, "no control plane answers"),
        (["up"], 1, "pip install 'adjourn[local]'"),
        (["demo"], 1, "pip install 'adjourn[local,examples]'"),
    ):
        done = loads("", f"from adjourn import cli; sys.argv[:] = ['adjourn', *{words!r}]; cli.main()")
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert text in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("package", "extra"),
    [("adjourn_control_plane", "control-plane"), ("adjourn_worker", "worker"), ("adjourn.web", "web")],
)
def test_a_process_without_its_extra_says_in_a_line_what_to_install(package: str, extra: str) -> None:
    done = loads("", f"import runpy; runpy.run_module({package!r}, run_name='__main__')")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"`python -m {package}` needs ")
    assert done.stderr.endswith(f": pip install 'adjourn[{extra}]'\n")
    assert done.stderr.count("\n") == 1


def test_one_missing_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "NEEDED", {"adjourn up": {"local": ("sys", "no_such_module")}})
    result = CliRunner().invoke(cli.app, ["up"])
    assert result.exit_code == 1
    assert result.stderr == "adjourn: `adjourn up` needs no_such_module: pip install 'adjourn[local]'\n"


def test_what_is_required_is_not_older_than_what_the_generated_code_accepts() -> None:
    generated = ROOT / "clients" / "adjourn" / "v1"
    grpc = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (generated / "job_service_pb2_grpc.py").read_text())
    messages = (generated / "job_pb2.py").read_text()
    protobuf = re.search(r"Domain\.PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+)", messages)
    assert grpc
    assert protobuf
    least = {"grpcio": grpc[1], "protobuf": ".".join(protobuf.groups())}
    requirements = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
    assert {name: str(requirements[name]) for name in least} == {
        name: f">={version}" for name, version in least.items()
    }

"""Keeps the rules of docs/architecture.md: who imports whom, what is pure."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = (ROOT / "clients" / "adjourn" / "v1", ROOT / "clients" / "adjourn" / "internal")
GENERATED_MODULES = ("adjourn.v1.", "adjourn.internal.v1.")
CP, WORKER = "adjourn_control_plane", "adjourn_worker"
PACKAGES = {
    "adjourn": ROOT / "clients" / "adjourn",
    CP: ROOT / "control_plane" / CP,
    WORKER: ROOT / "worker" / WORKER,
}
SOURCES = sorted(
    path
    for folder in PACKAGES.values()
    for path in folder.rglob("*.py")
    if not any(path.is_relative_to(folder) for folder in GENERATED)
)
PURE = [path for path in SOURCES if path.read_text().startswith('"""PURE.')]
IMPURE_MODULES = {
    *("asyncio", "concurrent", "glob", "http", "io", "mmap", "multiprocessing", "os", "pathlib", "platform", "random"),
    *("secrets", "select", "selectors", "shutil", "socket", "sqlite3", "subprocess", "sys", "tempfile", "threading"),
    *("time", "urllib", "uuid"),
    *("grpc", "minio", "numpy", "psutil", "pynvml", "redis", "structlog", "torch", "urllib3"),
}
CLOCKS = re.compile(r"\b(now|today|utcnow|GetCurrentTime|token_hex|uuid4|randbits|open|print|input)\(")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def tree() -> Iterator[Path]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [each for each in folders if each not in {".venv", ".git", "__pycache__"}]
        yield from (Path(folder, each) for each in (*folders, *files))


TREE = list(tree())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def imports(path: Path) -> tuple[str, ...]:
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return tuple(found)


def importers(package: str, *, below: Path = ROOT) -> set[str]:
    return {
        name(path)
        for path in SOURCES
        if path.is_relative_to(below) and any(item.split(".")[0] == package for item in imports(path))
    }


def test_packages_import_one_way_only() -> None:
    assert importers(WORKER, below=PACKAGES[CP]) == set()
    assert importers(CP, below=PACKAGES[WORKER]) == set()
    assert importers(WORKER, below=PACKAGES["adjourn"]) == set()
    assert importers(CP, below=PACKAGES["adjourn"]) == set()


def test_each_store_has_one_door() -> None:
    assert importers("redis") == {f"control_plane/{CP}/store/redis.py"}
    assert importers("minio") == {"clients/adjourn/objects.py"}
    assert importers("pynvml") == {f"worker/{WORKER}/host/gpus.py"}
    assert importers("sqlite3") == {f"worker/{WORKER}/journal.py"}


def test_http_is_the_gateways_alone() -> None:
    users = importers("starlette") | importers("uvicorn") | importers("websockets")
    assert {user for user in users if not user.startswith("clients/adjourn/web/")} == set()


def test_there_are_pure_modules() -> None:
    pure = {name(path).partition("/adjourn_")[2] for path in PURE}
    job = {
        f"control_plane/job/{stem}.py" for stem in ("machine", "requests", "attempts", "events", "estimates", "retries")
    }
    fleet = {f"control_plane/fleet/{stem}.py" for stem in ("reconcile", "placement", "leases")}
    assert pure >= job | fleet | {f"worker/attempt/{stem}.py" for stem in ("machine", "events", "transition")}


@pytest.mark.parametrize("path", PURE, ids=name)
def test_a_pure_module_has_no_io_no_clock_and_no_chance(path: Path) -> None:
    named = {item for item in imports(path) if not item.startswith("urllib.parse.")}  # which only reads text
    assert {item for item in named if item.split(".")[0] in IMPURE_MODULES} == set()
    calls = [line.strip() for line in path.read_text().splitlines() if CLOCKS.search(line) and "def " not in line]
    assert calls == []


@pytest.mark.parametrize("path", PURE, ids=name)
def test_a_pure_module_imports_pure_modules_only(path: Path) -> None:
    allowed = {
        "adjourn",
        "adjourn.v1",
        "adjourn.internal.v1",
        "adjourn.errors",
        "adjourn.reasons",
        CP,
        f"{CP}.store.interface",
    }
    pure = {".".join(other.relative_to(root.parent).with_suffix("").parts) for other in PURE for root in roots(other)}
    own = {item for item in imports(path) if item.split(".")[0] in PACKAGES}
    modules = {item if module(item) else item.rpartition(".")[0] for item in own}
    assert {each for each in modules if each not in pure | allowed and not each.startswith(GENERATED_MODULES)} == set()


def roots(path: Path) -> list[Path]:
    return [folder for folder in PACKAGES.values() if path.is_relative_to(folder)]


def module(dotted: str) -> bool:
    """Tells whether a dotted name is a module of ours, rather than something in one."""
    head, *rest = dotted.split(".")
    path = PACKAGES[head].joinpath(*rest)
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize(
    "wanted",
    ["adjourn", "adjourn.training.process", "adjourn_worker.launcher.server", "adjourn_worker.launcher.bootstrap"],
)
def test_what_forks_or_trains_never_loads_grpc(wanted: str) -> None:
    script = f"import sys, {wanted}; sys.exit('grpc' in sys.modules or 'minio' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_importing_the_client_package_loads_nothing() -> None:
    script = "import sys, adjourn; print(*(name for name in sys.modules if name.split('.')[0] in {'adjourn', 'grpc'}))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["adjourn"]


def test_the_agent_never_loads_torch() -> None:
    script = "import sys, adjourn_worker.process; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_files_are_well_named(path: Path) -> None:
    assert path.stem not in {"utils", "util", "common", "base", "helpers", "helper", "manager", "misc"}


WRITES_PICKLES = PACKAGES["adjourn"] / "export" / "torch_file.py"
"""Nobody of ours imports it but the command that exports a checkpoint for others."""


def test_what_others_load_is_written_by_the_export_alone() -> None:
    users = {name(path) for path in SOURCES if any("torch_file" in item for item in imports(path))}
    assert users == {"clients/adjourn/export/file.py"}
    users = {name(path) for path in SOURCES if any(item.startswith("adjourn.export.file") for item in imports(path))}
    assert users <= {"clients/adjourn/cli/checkpoint_verbs.py"}


@pytest.mark.parametrize("path", [path for path in SOURCES if path != WRITES_PICKLES], ids=name)
def test_nothing_pickles_and_nothing_hooks_a_fork(path: Path) -> None:
    text = path.read_text()
    assert not {item for item in imports(path) if item.split(".")[0] in {"pickle", "cloudpickle", "dill", "shelve"}}
    assert not re.search(r"torch\.(load|save)\(|preexec_fn|weights_only", text)


def test_composition_roots_are_short() -> None:
    for package in (CP, WORKER):
        assert len((PACKAGES[package] / "process.py").read_text().splitlines()) < 80


def test_the_way_of_a_pause_names_functions_that_exist() -> None:
    diagram = ARCHITECTURE.partition("sequenceDiagram")[2].partition("```")[0]
    named = {match[1] for match in re.finditer(r"\b[A-Za-z_]+\.([a-z_]\w+)\b", diagram)} - {"lua"}
    code = "\n".join(path.read_text() for path in SOURCES)
    assert len(named) > 30
    assert {each for each in named if not re.search(rf"\bdef {each}\(", code)} == set()


def test_the_page_on_the_test_helpers_names_each() -> None:
    harness = ROOT / "tests" / "harness"
    page = (harness / "README.md").read_text()
    assert {path.stem for path in harness.glob("*.py") if f"`{path.stem}" not in page} == set()
    for stem, defined in re.findall(r"`(\w+)\.(?!py`)(\w+)`", page):
        code = (harness / f"{stem}.py").read_text()
        assert re.search(rf"^(async )?(def|class) {defined}\b", code, re.MULTILINE), f"{stem}.{defined}"
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    for listed in re.findall(r"fixtures? ((?:`\w+`(?:, )?)+)", page):
        for fixture in re.findall(r"\w+", listed):
            assert re.search(rf"fixture[^\n]*\n(async )?def {fixture}\(", code), fixture


def test_each_answer_to_a_newcomers_question_is_where_the_table_says() -> None:
    folders = {"CP": PACKAGES[CP], "W": PACKAGES[WORKER], "A": PACKAGES["adjourn"]}
    table = ARCHITECTURE.partition("## 12.")[2]
    rows = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ") and "question" not in line]
    assert len(rows) == 21
    for answer in rows:
        told = re.findall(r"`([\w.]+)`|(CP|W|A) `([\w./]+)`", answer)
        names: list[str] = []
        for name, folder, path in told:
            if folder and path.endswith(".lua"):
                assert (folders[folder] / path).exists(), path
            elif folder:
                code = (folders[folder] / path).read_text()
                assert names, answer
                for each in names:
                    assert re.search(rf"^ *(async )?(def|class) {each}\b|^{each}\b", code, re.MULTILINE), each
                names = []
            else:
                names.append(name)
        assert not names, answer


def test_the_tree_names_files_and_folders_that_exist() -> None:
    tree = ARCHITECTURE.partition("## 2.")[2].partition("\nKept by")[0]
    named = set(re.findall(r"(?<![\w/.])[\w/]+(?:\.py|\.md|\.protoset|/)(?=[ ;\n])", tree))
    assert len(named) > 50
    assert {each for each in named if not known_path(each)} == set()
    modules = {path.name for package in PACKAGES.values() for path in package.glob("*.py")} - {"__init__.py"}
    assert {each for each in modules if each not in named} == set()


def test_what_the_architecture_names_exists() -> None:
    """Holds names in backticks: paths are in the tree, `module.name` is in that module, other words are in the code."""
    prose = re.sub(r"```.*?```", "", ARCHITECTURE.partition("## 12.")[0], flags=re.DOTALL)
    named = set(re.findall(r"`([\w./-]*[A-Za-z_]{3}[\w./-]*)(?:\([^`\n]*\))?`", prose))
    named -= {"preexec_fn", "dropout.p"}  # what code must not have, and what only users' code has
    assert len(named) > 60
    protos = (ROOT / "protos" / "adjourn").rglob("*.proto")
    code = "\n".join(path.read_text() for path in (*SOURCES, *protos))
    words = set(re.findall(r"[\w-]+", code))
    for each in named:
        *_, holder, last = "", *re.split(r"[./]", each)
        modules = [path for path in SOURCES if path.stem == holder]
        if each.endswith((".py", ".lua", "/")):
            assert known_path(each), each
        elif each.endswith((".json", ".safetensors")):
            assert each in code, each
        elif modules:
            pattern = re.compile(rf"^ *(async )?(def|class) {last}\b|^{last}\b", re.MULTILINE)
            assert any(pattern.search(path.read_text()) for path in modules), each
        else:
            assert last in words, each


def known_path(named: str) -> bool:
    return any(f"/{name(path)}".endswith(f"/{named.rstrip('/')}") for path in TREE)

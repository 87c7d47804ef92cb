"""What is not tracked is told with the line that makes it."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import WeightedRandomSampler

from adjourn.training.state.origins import made_at

CODE = """\
import dataclasses
import types

RATE = 1.0


def function(argument):
    rate = argument
    first, second = rate, 2
    rate = rate / 2
    namespace = types.SimpleNamespace(hidden=None)
    namespace.hidden = rate

    def inner():
        nonlocal second
        second += 1

    return inner, namespace


class Trainer:
    limit = 3

    def __init__(self):
        self.best = None

    def train(self):
        self.best = 1
        self.lazy = 2


@dataclasses.dataclass
class Settings:
    rate: float = 1.0
"""


@pytest.fixture
def module(tmp_path: Path) -> Any:
    path = tmp_path / "code_of_a_test.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    sys.modules[path.stem] = made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    yield made
    del sys.modules[path.stem]


@pytest.mark.parametrize(
    ("name", "line"), [("rate", 8), ("first", 9), ("second", 9), ("argument", 7), ("namespace", 11), ("inner", 14)]
)
def test_local_variables_are_made_where_they_are_first_assigned(module: Any, name: str, line: int) -> None:
    directory = str(Path(module.__file__).parent)
    assert made_at([(module.function.__code__, name)], directory) == f"code_of_a_test.py:{line}"
    assert made_at([(module.function.__code__, name)], "") == f"{module.__file__}:{line}"


def test_variables_of_modules_and_attributes(module: Any) -> None:
    directory = str(Path(module.__file__).parent)

    def line(*origins: tuple[Any, str]) -> str | None:
        return made_at(origins, directory)

    assert line((vars(module), "RATE")) == "code_of_a_test.py:4"
    assert line((vars(module), "no_such_variable")) is None
    assert line((module.Trainer(), "best")) == "code_of_a_test.py:25"
    assert line((module.Trainer(), "lazy")) == "code_of_a_test.py:29"
    assert line((module.Trainer(), "limit")) == line((module.Trainer, "limit")) == "code_of_a_test.py:21"
    assert line((module.Settings(), "rate")) == "code_of_a_test.py:32", "a dataclass has functions of no file"
    Path(module.__file__).unlink()
    assert line((module.Trainer(), "best")) == "code_of_a_test.py:25"


def test_what_a_library_makes_is_told_by_the_variable_that_has_it(module: Any) -> None:
    function = module.function.__code__
    held = SimpleNamespace(hidden=1)
    assert made_at([(held, "hidden"), (function, "namespace")], "").endswith("code_of_a_test.py:11")  # type: ignore[union-attr]
    sampler = WeightedRandomSampler([1.0], 1)
    assert made_at([(sampler, "weights")], "") is None
    assert made_at([(sampler, "weights"), (function, "first")], "").endswith(":9")  # type: ignore[union-attr]

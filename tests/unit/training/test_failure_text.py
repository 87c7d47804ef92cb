"""What is said of an exception: the line of user code, and its words."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from adjourn.training import failure_text

SOURCE = """
import importlib, json
from adjourn.training.early_stopping import EarlyStopping

def own():
    raise ValueError("no good")

def ours():
    EarlyStopping(patience=[])

def others():
    json.loads("{")

def many():
    raise ValueError("\\n".join(f"line {number}" for number in range(100)))

def long():
    raise ValueError("x" * 10_000)

def surrogate():
    raise ValueError("bad \\ud800 text")

def imports():
    importlib.import_module("no_such_module_anywhere")
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = tmp_path_factory.mktemp("work") / "train.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("train", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def told(code: ModuleType, function: str, *, at_work: bool = True) -> list[str]:
    with pytest.raises(Exception) as caught:
        getattr(code, function)()
    folder = str(Path(str(code.__file__)).parent)
    return failure_text.of(caught.value, folder if at_work else "").replace(folder, "").splitlines()


@pytest.mark.parametrize("at_work", [True, False])
def test_an_exception_of_user_code_is_told_with_its_line(code: ModuleType, at_work: bool) -> None:
    lines = told(code, "own", at_work=at_work)
    assert lines[-3:] == [
        '  File "/train.py", line 6, in own',
        '    raise ValueError("no good")',
        "ValueError: no good",
    ]
    assert len(lines) == 3


def test_what_ours_raises_is_told_with_the_line_that_called_it(code: ModuleType) -> None:
    lines = told(code, "ours")
    assert lines[:2] == ['  File "/train.py", line 9, in ours', "    EarlyStopping(patience=[])"]
    assert "adjourn/training" not in "".join(lines)


def test_what_a_library_raises_is_told_with_both_lines(code: ModuleType) -> None:
    lines = told(code, "others")
    assert lines[0] == '  File "/train.py", line 12, in others'
    assert "json/decoder.py" in lines[2]
    assert lines[-1].startswith("json.decoder.JSONDecodeError: ")


def test_a_module_that_is_not_there_is_told_without_the_way_to_it(code: ModuleType) -> None:
    lines = told(code, "imports")
    assert lines[0] == '  File "/train.py", line 24, in imports'
    assert lines[2:] == ["ModuleNotFoundError: No module named 'no_such_module_anywhere'"]


def test_of_many_words_the_first_and_the_last_are_told(code: ModuleType) -> None:
    assert told(code, "many")[2:] == ["ValueError: line 0", "  ...", "line 97", "line 98", "line 99"]
    assert len("\n".join(told(code, "long"))) <= failure_text.LIMIT


def test_what_no_text_can_hold_is_told_by_its_escape(code: ModuleType) -> None:
    assert told(code, "surrogate")[-1] == "ValueError: bad \\ud800 text"

"""Where variables and attributes are made: the line of user code that first assigns to them."""

import dis
import inspect
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final

from adjourn.training.state.liveness import accesses

INSTALLED: Final = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))

Origin = tuple[Any, str]
"""What has a name, and the name: the code of a function, the variables of a module, an object or a class."""


def made_at(origins: Iterable[Origin], code_directory: str) -> str | None:
    """Returns file and line of the first of `origins` that code assigns to; within `code_directory`, from there on.

    Each attempt has a copy of the code in a directory of its own: the same line has to have the same words.
    """
    for holder, name in origins:
        if found := assignment(holder, name):
            file, line = found
            path = Path(file)
            inside = code_directory and path.is_relative_to(code_directory)
            return f"{path.relative_to(code_directory) if inside else path}:{line}"
    return None


def assignment(holder: Any, name: str) -> tuple[str, int] | None:
    """Returns file and line of the first assignment to a name; of an argument, those of the function."""
    match holder:
        case CodeType():
            line = assigned(holder, ("FAST", "DEREF"), name)
            return (holder.co_filename, line or holder.co_firstlineno)
        case Mapping():
            code = code_of_module(str(holder.get("__name__")))
            line = assigned(code, ("NAME", "GLOBAL"), name) if code else None
            return (code.co_filename, line) if code and line else None
    return attribute(holder if isinstance(holder, type) else type(holder), name)


def attribute(kind: type, name: str) -> tuple[str, int] | None:
    """Returns where a class of the user's assigns to an attribute, or else where the class is defined."""
    for base in kind.__mro__:
        for function in vars(base).values():
            if isinstance(function, FunctionType) and is_of_user_file(function.__code__.co_filename):
                line = assigned(function.__code__, ("ATTR",), name)
                if line:
                    return function.__code__.co_filename, line
    try:
        file, line = str(inspect.getsourcefile(kind)), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):  # C code, or a file that is gone
        return None
    return (file, line) if is_of_user_file(file) else None


def is_of_user_file(file: str) -> bool:
    """Tells whether a file is in no installed package, not Python's own, and none at all (`<string>`)."""
    return not file.startswith(("<", *INSTALLED))


def assigned(code: CodeType, kinds: Iterable[str], name: str) -> int | None:
    """Returns the line of the first assignment in a code."""
    for instruction in dis.get_instructions(code):
        stores = [stored for action, stored in accesses(instruction) if action == "STORE"] if "FAST" in kinds else []
        if name in stores or (
            instruction.argval == name and instruction.opname in [f"STORE_{kind}" for kind in kinds if kind != "FAST"]
        ):
            return instruction.positions.lineno if instruction.positions else None
    return None


def code_of_module(name: str) -> CodeType | None:
    loader = getattr(sys.modules.get(name), "__loader__", None)
    try:
        return loader.get_code(name) if loader else None
    except Exception:  # noqa: BLE001  (a loader is anyone's, and the file may be gone)
        return None

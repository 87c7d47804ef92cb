"""PURE. Which local variables a running function still reads, from its bytecode: the others carry nothing onwards."""

import dis
import functools
from collections.abc import Mapping
from types import CodeType
from typing import Final

UNSEEN: Final = frozenset({"locals", "vars", "eval", "exec", "dir"})
"""Functions that read variables without naming them in the bytecode."""
CALLED_BY_NAME: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
"""Instructions that find a function; `model.eval()` is an attribute."""
ENDS: Final = frozenset({"RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE", "JUMP_FORWARD", "JUMP_BACKWARD"})
"""Instructions after which the next one is not reached; a jump goes on at its target only."""
ENDS_TOO: Final = frozenset({"JUMP_BACKWARD_NO_INTERRUPT", "INTERPRETER_EXIT"})


GATHERING: Final = frozenset({"LIST_APPEND", "SET_ADD", "MAP_ADD"})
"""What a comprehension does with each item."""


def gathers(code: CodeType, last: int) -> bool:
    """Tells whether a call is suspended in a comprehension or a generator expression: what that has gathered is in no
    variable.
    """
    instructions = list(dis.get_instructions(code))
    loop = next((each for each in instructions if each.offset == last and each.opname == "FOR_ITER"), None)
    return code.co_name == "<genexpr>" or (
        loop is not None and any(last < each.offset < loop.argval and each.opname in GATHERING for each in instructions)
    )


@functools.lru_cache(maxsize=1024)  # a training comes to the same places at each boundary
def overwritten(code: CodeType, last: int, *, goes_on: bool = False) -> frozenset[str]:
    """Returns the local variables that are assigned before they are read, on every way on from a suspended call.

    `last` is the offset of the instruction that made the call (`f_lasti`). `goes_on` says that nothing is raised from
    here on and, if the call is that of a loop that asks for an item, that there is one. Variables that inner functions
    use are never among them.
    """
    instructions = list(dis.get_instructions(code))
    if any(each.opname in CALLED_BY_NAME and each.argval in UNSEEN for each in instructions):
        return frozenset()
    position = {instruction.offset: index for index, instruction in enumerate(instructions)}
    if last not in position:
        return frozenset()
    following = [successors(instruction, index, position) for index, instruction in enumerate(instructions)]
    for entry in () if goes_on else dis.Bytecode(code).exception_entries:  # type: ignore[attr-defined]
        for index, instruction in enumerate(instructions):
            if entry.start <= instruction.offset < entry.end:
                following[index].append(position[entry.target])
    read: list[set[str]] = [set() for _ in instructions]
    changed = True
    while changed:
        changed = False
        for index in reversed(range(len(instructions))):
            before = set().union(*(read[next_index] for next_index in following[index]))
            for action, name in reversed(accesses(instructions[index])):
                before = before - {name} if action == "STORE" else before | {name}
            if before != read[index]:
                read[index] = before
                changed = True
    begin = position[last]
    goes_on = goes_on and instructions[begin].opname == "FOR_ITER"
    live = set().union(*(read[index] for index in ([begin + 1] if goes_on else following[begin])))
    return frozenset(code.co_varnames) - live - {*code.co_cellvars, *code.co_freevars}


def successors(instruction: dis.Instruction, index: int, position: Mapping[int, int]) -> list[int]:
    found = [] if instruction.opname in ENDS | ENDS_TOO else [index + 1]
    if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
        found.append(position[instruction.argval])
    return [each for each in found if each < len(position)]


def accesses(instruction: dis.Instruction) -> list[tuple[str, str]]:
    """Returns what an instruction does to local variables, in its order: (LOAD or STORE, name).

    Some instructions do it to two. DELETE_FAST reads: a variable without a value is an error there.
    """
    if "_FAST" not in instruction.opname:
        return []
    names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
    words = [word for word in instruction.opname.split("_") if word in ("LOAD", "STORE", "DELETE")]
    words = words if len(words) == len(names) else ["LOAD"] * len(names)
    return [("STORE" if word == "STORE" else "LOAD", name) for word, name in zip(words, names, strict=True)]

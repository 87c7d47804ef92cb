"""PURE. What a Python source imports, defines and names, as far as its text tells."""

import ast
import symtable
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import decode_source
from typing import Final

IMPORTERS: Final = frozenset({"import_module", "__import__"})
"""Functions that import the module which their first argument names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source that Python can read."""

    imports: frozenset[tuple[str, ...]]
    """Names of modules, in parts. Of `from a import b` both `a` and `a.b`: `b` may be a module."""
    defines: frozenset[str] | None
    """Names that the module has; None if its text does not tell."""
    texts: frozenset[str]
    """Its string constants."""
    outside: int
    """The line of a relative import that leads out of the package, where nothing catches it; 0: there is none."""


def read(data: bytes, name: str, package: tuple[str, ...] = ()) -> Source:
    """Reads the source of a module of `package`, from a file called `name`.

    Raises SyntaxError; ValueError for what is no text, or has a null byte; RecursionError and MemoryError for what is
    nested too deep.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an escape in a string may be a warning
        text = decode_source(data)
        tree = ast.parse(text, name)
        compile(text, name, "exec", dont_inherit=True)  # which finds more, such as a return outside of a function
        names = symtable.symtable(text, name, "exec")
    nodes = list(ast.walk(tree))
    defined = {symbol.get_name() for symbol in names.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    defined |= {name for node in nodes if isinstance(node, ast.Global) for name in node.names}
    stars = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in nodes)
    return Source(
        imports=frozenset(found for node in nodes for found in imported(node, package)),
        defines=None if stars or "__getattr__" in defined else frozenset(defined),
        texts=frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)),
        outside=next((n.lineno for n in tree.body if isinstance(n, ast.ImportFrom) and n.level > len(package)), 0),
    )


def imported(node: ast.AST, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yields the modules that a statement or a call names."""
    match node:
        case ast.Import():
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        case ast.ImportFrom():
            if node.level > len(package):
                return
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            yield module
            yield from ((*module, alias.name) for alias in node.names)
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(text)), *_]):
            if name in IMPORTERS and all(part.isidentifier() for part in text.split(".")):
                yield tuple(text.split("."))

"""YAML as people and other programs read it: `1e-3` is a number, as in YAML 1.2 and JSON. PyYAML takes it for text."""

import re
from typing import Any, Final

FLOAT: Final = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")
TAG: Final = "tag:yaml.org,2002:float"
FIRST: Final = list("-+0123456789")
BREAKS: Final = frozenset("\x85\u2028\u2029")
"""Line breaks of YAML 1.1 that PyYAML writes as they are, and reads as others."""


def load(text: str) -> Any:
    """Returns what a document says; raises yaml.YAMLError."""
    import yaml  # not needed for anything else

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        pass

    Loader.add_implicit_resolver(TAG, FLOAT, FIRST)
    return yaml.load(text, Loader)  # noqa: S506 - it is a SafeLoader


def dump(value: Any) -> str:
    """Returns a document that reads as `value`: text that looks like a number is in quotes."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if BREAKS & {*value} else None)

    Dumper.add_representer(str, text)
    Dumper.add_implicit_resolver(TAG, FLOAT, FIRST)
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True))

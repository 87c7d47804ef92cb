"""The page's modules: those that are pure, in Node; and that all of them are what they are said to be."""

import re
import subprocess
from pathlib import Path

import pytest

from adjourn.web.page import FILES
from tests.harness import node, page_format

TESTS = Path(__file__).parent / "page"
MODULES = sorted(path for path in FILES.rglob("*.js") if "vendor" not in path.parts)
VENDORED = {
    "preact.mjs": "preact/dist/preact.mjs",
    "hooks.mjs": "preact/hooks/dist/hooks.mjs",
    "htm.mjs": "htm/dist/htm.mjs",
    "uPlot.esm.js": "uplot/dist/uPlot.esm.js",
    "uPlot.min.css": "uplot/dist/uPlot.min.css",
    "inter-latin-wght-normal.woff2": "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2",
    "LICENSE.preact": "preact/LICENSE",
    "LICENSE.htm": "htm/LICENSE",
    "LICENSE.uplot": "uplot/LICENSE",
    "LICENSE.inter": "@fontsource-variable/inter/LICENSE",
}
MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function|srcdoc")
IMPURE = re.compile(
    r"\b(document|window|fetch|localStorage|navigator|setTimeout|location)\b|Math\.random|^import .*/html\.js",
    re.MULTILINE,
)


def test_pure_modules() -> None:
    tests = [str(path) for path in sorted(TESTS.glob("*.test.mjs"))]
    done = subprocess.run(
        [str(node.node()), "--disable-warning=MODULE_TYPELESS_PACKAGE_JSON", "--test", "--test-reporter=dot", *tests],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_vendored_file_is_the_one_of_its_package() -> None:
    packages = node.packages(node.PAGE)
    present = {path.name for path in (FILES / "vendor").iterdir()} - {"README.md"}
    assert present == set(VENDORED)
    for name, source in VENDORED.items():
        expected = (packages / source).read_bytes()
        if name == "hooks.mjs":
            expected = expected.replace(b'from"preact"', b'from"./preact.mjs"')
        assert (FILES / "vendor" / name).read_bytes() == expected, name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(FILES)))
def test_no_text_becomes_markup(path: Path) -> None:
    assert not MARKUP.search(path.read_text())


@pytest.mark.parametrize(
    "path", [path for path in MODULES if re.match(r"/\*\*\s(\* )?PURE", path.read_text())], ids=lambda path: path.name
)
def test_pure_modules_touch_nothing(path: Path) -> None:
    code = re.sub(r"/\*.*?\*/|//.*", "", path.read_text(), flags=re.DOTALL)
    assert not IMPURE.search(code)


def test_the_files_are_written_as_prettier_has_them() -> None:
    done = page_format.run("--check")
    assert done.returncode == 0, f"make lint writes them so\n{done.stderr}"


def test_nothing_is_inline_or_elsewhere() -> None:
    index = (FILES / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|style=|https?://", index)
    for path in (FILES / "style").glob("*.css"):
        assert not re.search(r"https?://|@import", path.read_text()), path.name

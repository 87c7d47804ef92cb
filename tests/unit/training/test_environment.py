import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adjourn.environments import CPU_VARIABLES, differences, fits
from adjourn.training.state import environment
from adjourn.v1.worker_pb2 import Worker

CPU = torch.device("cpu")


def test_a_worker_that_reports_its_software_fits_what_trains_on_it() -> None:
    reported = Worker(environment=environment.software_environment())
    assert fits(environment.fingerprint(CPU), reported, 0) == []
    assert fits(environment.fingerprint(CPU, imported=lambda _: True), reported, 0) == []


def test_libraries_are_recorded_once_they_are_imported() -> None:
    installed = environment.software_environment()["library.scikit-learn"]
    used = environment.fingerprint(CPU, imported=lambda module: module == "sklearn")
    assert used["library.scikit-learn"] == installed
    assert "library.scikit-learn" not in environment.fingerprint(CPU, imported=lambda _: False)
    here = environment.fingerprint(CPU, imported=lambda _: True)
    assert differences(used, here) == {}
    assert differences(environment.fingerprint(CPU, imported=lambda _: False), here) == {}


def test_variables_that_math_libraries_read_are_recorded() -> None:
    found = {"OMP_PROC_BIND": "true", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "HOME": "/root"}
    text = environment.variables(found, CPU_VARIABLES)
    assert text == "MKL_CBWR=AVX2 OMP_PROC_BIND=true ONEDNN_MAX_CPU_ISA=AVX2"
    script = "from adjourn.training.state import environment as e; print(e.software_environment()['cpu_variables'])"
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env=os.environ | {"MKL_CBWR": "COMPATIBLE"},
        capture_output=True,
        text=True,
    )
    assert "MKL_CBWR=COMPATIBLE" in done.stdout.split()


def test_variables_that_user_code_sets_are_not_what_the_libraries_read(monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment.fingerprint(CPU)
    monkeypatch.setenv("OMP_SCHEDULE", "dynamic")
    assert environment.fingerprint(CPU) == before


@pytest.mark.parametrize(
    "text",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version: 12\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build  (dvs-builder@U22)\n",
    ],
)
def test_the_driver_is_read_where_the_kernel_says_it(tmp_path: Path, text: str) -> None:
    (tmp_path / "driver").write_text(text)
    assert environment.driver_version(tmp_path / "module", tmp_path / "driver") == "535.104.05"
    (tmp_path / "module").write_text("580.65.06\n")
    assert environment.driver_version(tmp_path / "module", tmp_path / "driver") == "580.65.06"
    assert environment.driver_version(tmp_path / "nothing", tmp_path / "nothing") is None

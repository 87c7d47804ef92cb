import pytest

from adjourn.environments import differences, fits
from adjourn.v1.worker_pb2 import Device, Worker

SOFTWARE = {"torch": "2.13.0", "python": "3.11", "cpu": "Xeon 8480", "cpu_capability": "AVX512", "cpu_variables": ""}
ON_CPU = {**SOFTWARE, "device": "cpu", "threads": "8"}
ON_GPUS = {
    **SOFTWARE,
    "device": "cuda",
    "threads": "8",
    "gpus": "H100, H100",
    "compute_capability": "9.0, 9.0",
    "cuda": "13.0",
    "cudnn": "91300",
    "driver": "580.65",
    "gpu_variables": "",
}


def worker(*models: str, **environment: str) -> Worker:
    devices = [Device(uuid=str(index), index=index, model=model) for index, model in enumerate(models)]
    return Worker(devices=devices, environment={**SOFTWARE, **environment})


def gpu_worker(*models: str, **environment: str) -> Worker:
    return worker(*models, **{"cuda": "13.0", "driver": "580.65", "gpu_variables": ""} | environment)


def test_equal_environments_have_no_differences() -> None:
    assert differences(ON_CPU, ON_CPU) == {}
    assert differences(ON_GPUS, ON_GPUS) == {}


def test_differences_have_both_sides() -> None:
    here = {**ON_CPU, "torch": "2.14.0", "more": "1"}
    assert differences(ON_CPU, here) == {"torch": ("2.13.0", "2.14.0"), "more": ("unknown", "1")}
    assert differences(here, ON_CPU) == {"torch": ("2.14.0", "2.13.0"), "more": ("1", "unknown")}


@pytest.mark.parametrize("name", ["cpu", "cpu_capability", "cpu_variables"])
def test_the_cpu_counts_only_for_what_runs_on_it(name: str) -> None:
    assert list(differences(ON_CPU, {**ON_CPU, name: "other"})) == [name]
    assert differences(ON_GPUS, {**ON_GPUS, name: "other"}) == {}
    assert fits(ON_CPU, worker(**{name: "other"}), 0) == [name]
    assert fits(ON_GPUS, gpu_worker("H100", "H100", **{name: "other"}), 2) == []


def test_drivers_count_only_for_what_runs_on_gpus() -> None:
    assert differences(ON_CPU, {**ON_CPU, "driver": "1"}) == {}
    assert list(differences(ON_GPUS, {**ON_GPUS, "driver": "1"})) == ["driver"]
    assert fits(ON_CPU, gpu_worker("H100"), 0) == []
    assert fits(ON_GPUS, gpu_worker("H100", "H100", driver="1"), 2) == ["driver"]


def test_a_library_counts_if_it_was_used() -> None:
    used, other = {**ON_CPU, "library.scipy": "1.0"}, {**ON_CPU, "library.scipy": "2.0"}
    assert list(differences(used, other)) == ["library.scipy"]
    assert list(differences(used, ON_CPU)) == ["library.scipy"]
    assert differences(ON_CPU, other) == {}
    assert fits(used, worker(**{"library.scipy": "1.0", "library.timm": "1"}), 0) == []
    assert fits(used, worker(), 0) == ["library.scipy"]


@pytest.mark.parametrize("models", [(), ("H100",), ("H100", "A100"), ("A100", "A100")])
def test_gpus_must_be_of_the_same_model(models: tuple[str, ...]) -> None:
    assert fits(ON_GPUS, gpu_worker(*models), 2) == ["gpus"]


def test_quarantined_gpus_do_not_count() -> None:
    place = gpu_worker("H100", "H100", "A100")
    assert fits(ON_GPUS, place, 2) == []
    place.devices[0].quarantined = True
    assert fits(ON_GPUS, place, 2) == ["gpus"]


def test_what_a_worker_does_not_know_is_different() -> None:
    assert fits(ON_CPU, Worker(), 0) == sorted(SOFTWARE)
    assert fits({}, Worker(), 0) == []

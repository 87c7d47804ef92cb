from pathlib import Path

import pytest

from adjourn_worker.host import cgroup


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    path = tmp_path / "cgroup"
    path.mkdir()
    return path


def write(directory: Path, **files: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name.replace("__", ".")).write_text(content)


def proc(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "proc"
    path.write_text(text)
    return path


def test_version_2_the_tightest_limit_around_us_counts(tmp_path: Path, mount: Path) -> None:
    write(mount / "pod", memory__max="1000\n", memory__current="900\n", memory__stat="anon 1\ninactive_file 300\n")
    write(mount / "pod/container", memory__max="max\n", memory__current="5\n", cpu__max="max 100000\n")
    write(mount / "pod", cpu__max="150000 100000\n", cpu__stat="usage_usec 2500000\nuser_usec 1\n")
    ours = proc(tmp_path, "0::/pod/container\n")
    assert cgroup.memory(ours, mount) == cgroup.Memory(limit=1000, used=600)
    assert cgroup.cpu(ours, mount) == cgroup.Cpu(cores=1.5, seconds=2.5)


def test_version_1(tmp_path: Path, mount: Path) -> None:
    write(
        mount / "memory/job",
        memory__limit_in_bytes="2000\n",
        memory__usage_in_bytes="500\n",
        memory__stat="inactive_file 1\ntotal_inactive_file 100\n",
    )
    write(mount / "memory", memory__limit_in_bytes=f"{2**63 - 4096}\n", memory__usage_in_bytes="7\n")
    write(mount / "cpu/job", cpu__cfs_quota_us="50000\n", cpu__cfs_period_us="100000\n", cpuacct__usage="3000000000\n")
    write(mount / "cpu", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    ours = proc(tmp_path, "4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/x\n")
    assert cgroup.memory(ours, mount) == cgroup.Memory(limit=2000, used=400)
    assert cgroup.cpu(ours, mount) == cgroup.Cpu(cores=0.5, seconds=3.0)


def test_within_a_container_the_path_may_be_the_machine_s(tmp_path: Path, mount: Path) -> None:
    write(mount, memory__max="1000\n", memory__current="10\n")
    assert cgroup.memory(proc(tmp_path, "0::/not/here\n"), mount) == cgroup.Memory(limit=1000, used=10)


def test_without_limits_or_groups_there_are_none(tmp_path: Path, mount: Path) -> None:
    for text in ("0::/\n", "4:memory:/\n", ""):
        assert cgroup.memory(proc(tmp_path, text), mount) is None
        assert cgroup.cpu(proc(tmp_path, text), mount) is None
    assert cgroup.memory(tmp_path / "none", mount) is None


def test_what_ran_out_of_memory_is_counted_by_the_group_nearest_to_us(tmp_path: Path, mount: Path) -> None:
    write(mount / "pod", memory__events="low 0\noom 5\noom_kill 4\n")
    write(mount / "pod/container", memory__events="low 0\noom 3\noom_kill 2\n")
    write(mount / "box", memory__events="oom_kill 3\n", memory__events__local="oom_kill 1\n")
    write(mount / "memory/job", memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 7\n")
    assert cgroup.out_of_memory_kills(proc(tmp_path, "0::/pod/container\n"), mount) == 2
    assert cgroup.out_of_memory_kills(proc(tmp_path, "0::/box\n"), mount) == 1, "groups below have their own"
    assert cgroup.out_of_memory_kills(proc(tmp_path, "4:memory:/job\n0::/\n"), mount) == 7
    assert cgroup.out_of_memory_kills(proc(tmp_path, "0::/\n"), mount) is None

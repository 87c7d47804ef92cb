from pathlib import Path

import pytest

from adjourn.channel import DEFAULT_ADDRESS
from adjourn.settings_reader import InvalidSettings
from adjourn_worker.data.places import Access
from adjourn_worker.paths import Kept
from adjourn_worker.settings import GpuShare, LogFormat, OnTerm, Settings
from adjourn_worker.storage.venvs import Venvs

ENOUGH = {
    "ADJOURN_WORKER": "worker-1",
    "ADJOURN_DATA": "/srv/adjourn",
    "ADJOURN_S3_ENDPOINT": "http://127.0.0.1:9000",
    "ADJOURN_S3_BUCKET": "models",
    "ADJOURN_S3_ACCESS_KEY": "someone",
    "ADJOURN_S3_SECRET_KEY": "hush-hush",
}


def test_what_is_not_said_has_a_default() -> None:
    settings = Settings.from_environment(ENOUGH)
    assert settings.control_plane == DEFAULT_ADDRESS
    assert settings.data == Path("/srv/adjourn")
    assert settings.cpu_slots == 1
    assert settings.labels == {}
    assert settings.threads >= 1
    assert settings.log_bytes == 64 << 20
    assert settings.shared_memory == Path("/dev/shm")
    assert settings.kept == Kept(logs=1000, log_bytes=1 << 30, bundle_bytes=1 << 30)
    assert settings.on_term is OnTerm.LEAVE
    assert (settings.drain_grace, settings.out_of_contact_leases) == (120, 10)
    assert settings.log_format is LogFormat.JSON
    assert settings.s3.region == "us-east-1"


def test_everything_can_be_said() -> None:
    said = {
        "ADJOURN_CONTROL_PLANE": "plane.example:7400",
        "ADJOURN_CPU_SLOTS": "4",
        "ADJOURN_LABELS": "zone=a, disk = nvme",
        "ADJOURN_GPUS": "1/2",
        "ADJOURN_THREADS": "3",
        "ADJOURN_LOG_BYTES": "100000",
        "ADJOURN_SHARED_MEMORY": "/mnt/memory",
        "ADJOURN_KEPT_LOGS": "10",
        "ADJOURN_KEPT_LOG_BYTES": "1000000",
        "ADJOURN_KEPT_BUNDLE_BYTES": "0",
        "ADJOURN_ON_TERM": "stop",
        "ADJOURN_DRAIN_GRACE": "60",
        "ADJOURN_OUT_OF_CONTACT_LEASES": "3",
        "ADJOURN_LOG_FORMAT": "console",
        "ADJOURN_S3_REGION": "eu-central-1",
    }
    settings = Settings.from_environment({**ENOUGH, **said})
    assert settings.control_plane == "plane.example:7400"
    assert settings.cpu_slots == 4
    assert settings.labels == {"zone": "a", "disk": "nvme"}
    assert settings.gpus == GpuShare(part=1, of=2)
    assert settings.threads == 3
    assert settings.log_bytes == 100_000
    assert settings.shared_memory == Path("/mnt/memory")
    assert settings.kept == Kept(logs=10, log_bytes=1_000_000, bundle_bytes=0)
    assert settings.on_term is OnTerm.STOP
    assert (settings.drain_grace, settings.out_of_contact_leases) == (60, 3)
    assert settings.log_format is LogFormat.CONSOLE
    assert settings.s3.region == "eu-central-1"


def test_all_that_is_wrong_is_said_at_once() -> None:
    wrong = {
        "ADJOURN_CONTROL_PLANE": "plane",
        "ADJOURN_WORKER": "Worker_1",
        "ADJOURN_DATA": "here",
        "ADJOURN_CPU_SLOTS": "-1",
        "ADJOURN_LABELS": "a=1,a=2",
        "ADJOURN_GPUS": "2/2",
        "ADJOURN_THREADS": "many",
        "ADJOURN_ON_TERM": "panic",
        "ADJOURN_LOG_FORMAT": "xml",
        "ADJOURN_S3_ENDPOINT": "127.0.0.1:9000",
        "ADJOURN_S3_BUCKET": "No",
        "ADJOURN_S3_ACCESS_KEY": "someone",
    }
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_environment(wrong)
    assert caught.value.problems == {
        "ADJOURN_CONTROL_PLANE": "must be host:port",
        "ADJOURN_WORKER": "must be 1 to 63 of a-z, 0-9 and -, with a letter or digit at both ends",
        "ADJOURN_DATA": "must be an absolute path",
        "ADJOURN_CPU_SLOTS": "must be from 0 to 1024",
        "ADJOURN_LABELS": "has the key a twice",
        "ADJOURN_GPUS": "must be part/of, as 0/2 and 1/2 for two workers that share a machine's GPUs",
        "ADJOURN_THREADS": "must be a whole number",
        "ADJOURN_ON_TERM": "must be leave, stop or drain",
        "ADJOURN_LOG_FORMAT": "must be json or console",
        "ADJOURN_S3_ENDPOINT": "must be http://host:port or https://host:port",
        "ADJOURN_S3_BUCKET": "must be 3 to 63 of a-z, 0-9, . and -",
        "ADJOURN_S3_SECRET_KEY": "is not set",
    }


@pytest.mark.parametrize("endpoint", ["http://me:hush-hush@host", "http://host/path", "http://host:99999", "http://"])
def test_an_endpoint_is_a_server_and_nothing_more(endpoint: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_environment({**ENOUGH, "ADJOURN_S3_ENDPOINT": endpoint})
    assert list(caught.value.problems) == ["ADJOURN_S3_ENDPOINT"]
    assert "hush-hush" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    shown = repr(Settings.from_environment(ENOUGH))
    assert "hush-hush" not in shown
    assert "someone" not in shown


def test_labels_need_both_sides() -> None:
    with pytest.raises(InvalidSettings, match="must be key=value,key=value"):
        Settings.from_environment({**ENOUGH, "ADJOURN_LABELS": "zone"})


def test_what_jobs_may_read_is_a_folder_of_the_bucket_or_what_a_key_for_data_may() -> None:
    settings = Settings.from_environment(ENOUGH)
    assert settings.data_s3 == settings.s3
    assert settings.data_access == Access(prefixes=("s3://models/data/",), own_bucket="models")
    said = {"ADJOURN_DATA_PREFIXES": "s3://sets/, s3://models/more", "ADJOURN_KEPT_DATA_BYTES": "1000"}
    settings = Settings.from_environment({**ENOUGH, **said})
    assert settings.data_access == Access(prefixes=("s3://sets/", "s3://models/more"), own_bucket="models")
    assert settings.kept.data_bytes == 1000
    own = {"ADJOURN_DATA_S3_ENDPOINT": "https://s3.example", "ADJOURN_DATA_S3_REGION": "eu-central-1"}
    settings = Settings.from_environment({**ENOUGH, **own})
    assert settings.data_access == Access(prefixes=("s3://",))
    assert (settings.data_s3.endpoint, settings.data_s3.access_key) == ("https://s3.example", "")
    same = {"ADJOURN_DATA_S3_ENDPOINT": ENOUGH["ADJOURN_S3_ENDPOINT"], **keys("reader", "hush")}
    settings = Settings.from_environment({**ENOUGH, **same})
    assert settings.data_access == Access(prefixes=("s3://",), own_bucket="models")
    assert "hush" not in repr(settings)


def test_a_worker_that_installs_needs_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {**ENOUGH, "ADJOURN_VENVS": "wheels", "ADJOURN_KEPT_VENV_BYTES": "5"}
    settings = Settings.from_environment(said)
    assert (settings.venvs, settings.kept.venv_bytes) == (Venvs.WHEELS, 5)
    assert Settings.from_environment(ENOUGH).venvs is Venvs.OFF
    monkeypatch.setattr("adjourn_worker.settings.find_spec", lambda _: None)
    with pytest.raises(InvalidSettings, match="needs pip"):
        Settings.from_environment(said)
    assert Settings.from_environment(ENOUGH).venvs is Venvs.OFF


def keys(access_key: str, secret_key: str) -> dict[str, str]:
    return {"ADJOURN_DATA_S3_ACCESS_KEY": access_key, "ADJOURN_DATA_S3_SECRET_KEY": secret_key}


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ({"ADJOURN_DATA_PREFIXES": "models/data"}, "ADJOURN_DATA_PREFIXES"),
        ({"ADJOURN_DATA_PREFIXES": "s3://UPPER/"}, "ADJOURN_DATA_PREFIXES"),
        ({"ADJOURN_DATA_S3_ENDPOINT": "s3.example"}, "ADJOURN_DATA_S3_ENDPOINT"),
        (keys("reader", ""), "ADJOURN_DATA_S3_ACCESS_KEY"),
        ({"ADJOURN_DATA_S3_ENDPOINT": "https://s3.example", **keys("reader", "")}, "ADJOURN_DATA_S3_SECRET_KEY"),
    ],
)
def test_settings_of_data_that_make_no_sense_are_told(said: dict[str, str], wrong: str) -> None:
    with pytest.raises(InvalidSettings) as raised:
        Settings.from_environment({**ENOUGH, **said})
    assert set(raised.value.problems) == {wrong}

"""What the control plane reads from its environment."""

from datetime import timedelta

import pytest

from adjourn.settings_reader import InvalidSettings
from adjourn.v1.job_pb2 import Money
from adjourn_control_plane.settings import Settings

ENVIRONMENT = {
    "ADJOURN_REDIS_URL": "redis://:secret@127.0.0.1:6379/0",
    "ADJOURN_S3_ENDPOINT": "http://127.0.0.1:9000",
    "ADJOURN_S3_BUCKET": "models",
    "ADJOURN_S3_ACCESS_KEY": "key",
    "ADJOURN_S3_SECRET_KEY": "hidden",
}


def problems(**changes: str) -> dict[str, str]:
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_environment(ENVIRONMENT | changes)
    return caught.value.problems


def test_defaults() -> None:
    settings = Settings.from_environment(ENVIRONMENT)
    assert (settings.listen, settings.namespace, settings.log_format) == ("127.0.0.1:7400", "adjourn", "json")
    assert (settings.sync_interval, settings.lease_duration) == (timedelta(seconds=2), timedelta(seconds=15))


def test_a_webhook_needs_its_secret_and_shows_neither() -> None:
    assert Settings.from_environment(ENVIRONMENT).webhook_url == ""
    url, secret = "https://sink/adjourn?key=hidden", "whsec_aGlkZGVuaGlkZGVuaGlkZGVuaGlkZGVu"
    assert problems(ADJOURN_WEBHOOK_URL=url) == {"ADJOURN_WEBHOOK_SECRET": "is needed with ADJOURN_WEBHOOK_URL"}
    settings = Settings.from_environment(ENVIRONMENT | {"ADJOURN_WEBHOOK_URL": url, "ADJOURN_WEBHOOK_SECRET": secret})
    assert (settings.webhook_url, settings.webhook_secret) == (url, b"hidden" * 4)
    assert "hidden" not in repr(settings).replace(repr(settings.s3), "")


def test_what_is_given_is_taken() -> None:
    settings = Settings.from_environment(
        ENVIRONMENT
        | {
            "ADJOURN_LISTEN": "0.0.0.0:80",
            "ADJOURN_NAMESPACE": "team-a_1",
            "ADJOURN_SYNC_INTERVAL": "0.5",
            "ADJOURN_LEASE_DURATION": "1",
            "ADJOURN_LOG_FORMAT": "console",
            "ADJOURN_WORKER_RETENTION": "3600",
            "ADJOURN_BUNDLE_RETENTION": "86400",
            "ADJOURN_GPU_HOUR_PRICE": "2.50 EUR",
        }
    )
    assert settings.gpu_hour_price == Money(amount=2.5, currency="EUR")
    assert settings.bundle_retention == timedelta(days=1)
    assert settings.worker_retention == timedelta(hours=1)
    assert (settings.listen, settings.namespace, settings.log_format) == ("0.0.0.0:80", "team-a_1", "console")
    assert (settings.sync_interval, settings.lease_duration) == (timedelta(seconds=0.5), timedelta(seconds=1))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ADJOURN_REDIS_URL", "http://127.0.0.1"),
        ("ADJOURN_REDIS_URL", "redis://:hidden@host:port/0"),
        ("ADJOURN_REDIS_URL", "redis://:hidden@host:99999/0"),
        ("ADJOURN_REDIS_URL", ""),
        ("ADJOURN_LISTEN", "7400"),
        ("ADJOURN_LISTEN", "host:0"),
        ("ADJOURN_NAMESPACE", "a:b"),
        ("ADJOURN_NAMESPACE", "{a}"),
        ("ADJOURN_NAMESPACE", "ä"),
        ("ADJOURN_SYNC_INTERVAL", "soon"),
        ("ADJOURN_SYNC_INTERVAL", "0"),
        ("ADJOURN_SYNC_INTERVAL", "nan"),
        ("ADJOURN_LEASE_DURATION", "-1"),
        ("ADJOURN_LEASE_DURATION", "inf"),
        ("ADJOURN_LEASE_DURATION", "3.9"),
        ("ADJOURN_LOG_FORMAT", "xml"),
        ("ADJOURN_WORKER_RETENTION", "0"),
        ("ADJOURN_BUNDLE_RETENTION", "59"),
        ("ADJOURN_WEBHOOK_URL", "ftp://host/"),
        ("ADJOURN_WEBHOOK_URL", "https://"),
        ("ADJOURN_WEBHOOK_URL", "https://user:hidden@host/"),
        ("ADJOURN_WEBHOOK_URL", "https://host:hidden/"),
        ("ADJOURN_WEBHOOK_SECRET", "hidden"),
        ("ADJOURN_WEBHOOK_SECRET", "whsec_hidden"),
        ("ADJOURN_GPU_HOUR_PRICE", "2.50"),
        ("ADJOURN_GPU_HOUR_PRICE", "-1 EUR"),
        ("ADJOURN_GPU_HOUR_PRICE", "1e3 EUR"),
        ("ADJOURN_S3_ENDPOINT", "ftp://127.0.0.1"),
    ],
)
def test_each_wrong_value_is_named_and_no_secret_told(name: str, value: str) -> None:
    found = problems(**{name: value})
    assert list(found) == [name]
    assert "hidden" not in str(found)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(InvalidSettings) as caught:
        Settings.from_environment(
            {"ADJOURN_LISTEN": "x", "ADJOURN_NAMESPACE": "", "ADJOURN_SYNC_INTERVAL": "9", "ADJOURN_LOG_FORMAT": "y"}
        )
    assert set(caught.value.problems) == {
        "ADJOURN_REDIS_URL",
        "ADJOURN_LISTEN",
        "ADJOURN_LEASE_DURATION",
        "ADJOURN_LOG_FORMAT",
        "ADJOURN_S3_ENDPOINT",
        "ADJOURN_S3_BUCKET",
        "ADJOURN_S3_ACCESS_KEY",
        "ADJOURN_S3_SECRET_KEY",
    }


def test_secrets_are_not_shown() -> None:
    to_public = repr(Settings.from_environment(ENVIRONMENT))
    assert "secret@" not in to_public
    assert "hidden" not in to_public


def test_a_lease_outlasts_two_intervals_however_settings_are_made() -> None:
    settings = Settings.from_environment(ENVIRONMENT)
    with pytest.raises(ValueError, match="must outlast two sync intervals"):
        Settings(redis_url="redis://h", s3=settings.s3, lease_duration=timedelta(seconds=3))

"""An S3 server as a URL, and as the environment variables that our processes read."""

from urllib.parse import parse_qs, unquote, urlsplit

from adjourn.objects import S3Settings, bucket_name


def parse(url: str) -> S3Settings:
    """Reads `http(s)://key:secret@host:port/bucket[?region=...]`; raises ValueError, whose text has no secret."""
    parts = urlsplit(url)
    bucket = parts.path.strip("/")
    environment = {
        "ADJOURN_S3_ENDPOINT": f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
        "ADJOURN_S3_BUCKET": bucket,
        "ADJOURN_S3_ACCESS_KEY": unquote(parts.username or ""),
        "ADJOURN_S3_SECRET_KEY": unquote(parts.password or ""),
        "ADJOURN_S3_REGION": parse_qs(parts.query).get("region", [""])[0],
    }
    try:
        if bucket:
            bucket_name(bucket)
    except ValueError as error:
        raise ValueError(f"the bucket's name {error}") from None
    try:
        return S3Settings.from_environment(environment)
    except ValueError:
        raise ValueError("must be http(s)://key:secret@host:port/bucket") from None


def environment(settings: S3Settings) -> dict[str, str]:
    """Returns the variables that S3Settings.from_environment reads."""
    return {
        "ADJOURN_S3_ENDPOINT": settings.endpoint,
        "ADJOURN_S3_BUCKET": settings.bucket,
        "ADJOURN_S3_ACCESS_KEY": settings.access_key,
        "ADJOURN_S3_SECRET_KEY": settings.secret_key,
        "ADJOURN_S3_REGION": settings.region,
    }

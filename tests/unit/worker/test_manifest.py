import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn_worker.storage.manifest import File, Manifest, ManifestInvalid, Part

DIGEST = "ab" * 32


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "job": "jobs/digits-1",
        "attempt": 3,
        "nonce": "0123456789abcdef" * 2,
        "sequence": 2,
        "spec": JobSpec(entry_point="a:b", total_epochs=4, seed=7),
        "progress": Progress(epoch=2, step=40, metrics={"loss": math.nan}),
        "metrics": {"val_loss": 0.25, "best": math.inf},
        "files": (
            File(name="tensors.safetensors", parts=(Part(digest=DIGEST, size=8 << 20), Part(digest="cd" * 32, size=9))),
            File(name="state.json", parts=(Part(digest="ef" * 32, size=100),)),
        ),
        "component_digests": {"model": "12" * 32},
        "state_digest": "34" * 32,
    }
    return Manifest(**{**values, **changes})


def test_it_comes_back_as_it_was() -> None:
    written = manifest()
    read = Manifest.from_json(written.to_json())
    assert read.to_json() == written.to_json()
    assert read.files == written.files
    assert read.spec == written.spec
    assert (read.progress.epoch, read.progress.step) == (2, 40)
    assert math.isnan(read.progress.metrics["loss"])
    assert read.metrics == written.metrics
    assert read.size == (8 << 20) + 109
    assert read.parts == {DIGEST: 8 << 20, "cd" * 32: 9, "ef" * 32: 100}


@given(st.permutations(["a", "b", "c", "model", "random.torch"]))
def test_its_bytes_do_not_depend_on_the_order_of_names(names: list[str]) -> None:
    digests = dict.fromkeys(names, DIGEST)
    metrics = dict.fromkeys(names, 1.0)
    shuffled = manifest(component_digests=digests, metrics=metrics).to_json()
    ordered = {name: digests[name] for name in sorted(names)}
    assert shuffled == manifest(component_digests=ordered, metrics=dict.fromkeys(sorted(names), 1.0)).to_json()


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("format", "adjourn.checkpoint/9", "format"),
        ("format", None, "format"),
        ("job", "jobs/../x", "job"),
        ("attempt", -1, "attempt"),
        ("attempt", True, "attempt"),
        ("nonce", "short", "nonce"),
        ("epoch", 3, "epoch and step"),
        ("size_bytes", 1, "size_bytes"),
        ("spec", {"totalEpochs": "many"}, "spec"),
        ("metrics", {"loss": "low"}, "metrics"),
        ("metrics", {"loss": True}, "metrics"),
        ("component_digests", {"model": "12"}, "component_digests"),
        ("state_digest", "xyz", "state_digest"),
        ("files", [{"name": "../evil", "size": 0, "parts": []}], "name"),
        ("files", [{"name": "a", "size": 5, "parts": [[DIGEST, 4]]}], "size"),
        ("files", [{"name": "a", "size": 0, "parts": [[DIGEST, 0]]}], "part"),
        ("files", [{"name": "a", "size": 1 << 30, "parts": [[DIGEST, 1 << 30]]}], "part"),
        ("files", [{"name": "a", "size": 1, "parts": [["xyz", 1]]}], "part"),
        ("files", [{"name": "a", "size": 0, "parts": [], "mode": 1}], "mode"),
        ("files", ["a"], "object"),
        ("files", {}, "files"),
        ("surprise", 1, "surprise"),
    ],
)
def test_what_is_not_exactly_a_manifest_is_refused(field: str, value: object, why: str) -> None:
    document = json.loads(manifest().to_json())
    document[field] = value
    with pytest.raises(ManifestInvalid, match=why):
        Manifest.from_json(json.dumps(document).encode())


def test_files_have_different_names() -> None:
    twice = manifest().files[1:] * 2
    with pytest.raises(ManifestInvalid, match="one name"):
        Manifest.from_json(manifest(files=twice).to_json())


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"null", b"[" * 100_000])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        Manifest.from_json(data)


def test_what_a_newer_version_added_to_a_message_does_not_matter() -> None:
    document = json.loads(manifest().to_json())
    document["progress"]["samples"] = 1
    assert Manifest.from_json(json.dumps(document).encode()).progress.step == 40

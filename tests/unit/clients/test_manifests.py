import json
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adjourn import snapshots
from adjourn.manifests import FORMAT, ManifestInvalid, Place, decode, distinct_parts, encode, places, total_size
from adjourn.v1.job_pb2 import JobSpec, Progress
from adjourn.v1.manifest_pb2 import Manifest

DIGEST = "ab" * 32
COMPONENTS = {"model": "12" * 32, "optimizer": "34" * 32}


def manifest(components: dict[str, str] = COMPONENTS, metrics: dict[str, float] | None = None) -> Manifest:
    made = Manifest(
        format=FORMAT,
        job="jobs/digits-1",
        job_uid="01234567-89ab-4def-8123-456789abcdef",
        attempt=3,
        nonce="0123456789abcdef" * 2,
        sequence=2,
        spec=JobSpec(entry_point="a:b", total_epochs=4, seed=7),
        progress=Progress(epoch=2, step=40, metrics={"loss": math.nan}),
        metrics={"val_loss": 0.25, "best": math.inf} if metrics is None else metrics,
        component_digests=components,
        state_digest=snapshots.state_digest(components),
        environment={"torch": "2.13.0", "cpu": "x"},
    )
    made.parts.add(digest=DIGEST, size_bytes=8 << 20)
    made.parts.add(digest="cd" * 32, size_bytes=109)
    tensors = made.files.add(name="tensors.safetensors", chunk_sizes=[1 << 20, 7 << 20, 9], chunk_digests=bytes(96))
    tensors.spans.add(part=0, size_bytes=8 << 20)
    tensors.spans.add(part=1, offset=100, size_bytes=9)
    state = made.files.add(name="state.json", chunk_sizes=[100], chunk_digests=bytes(32))
    state.spans.add(part=1, size_bytes=100)
    return made


def of_version_2() -> bytes:
    """Returns a manifest whose files have parts of their own, as version 2 wrote them."""
    document = json.loads(encode(manifest()))
    parts = [
        {"digest": "ab" * 32, "sizeBytes": 8 << 20},
        {"digest": "cd" * 32, "sizeBytes": 9},
        {"digest": "ef" * 32, "sizeBytes": 100},
    ]
    files = [
        {"name": "tensors.safetensors", "parts": [*parts[:2], parts[0]]},
        {"name": "state.json", "parts": parts[2:]},
    ]
    del document["parts"]
    return json.dumps({**document, "format": "adjourn.checkpoint/2", "files": files}).encode()


def test_it_comes_back_as_it_was() -> None:
    written = manifest()
    read = decode(encode(written))
    assert encode(read) == encode(written)
    assert (read.files, read.spec, read.environment) == (written.files, written.spec, written.environment)
    assert math.isnan(read.progress.metrics["loss"])
    assert dict(read.metrics) == dict(written.metrics)
    assert total_size(read) == (8 << 20) + 109
    assert distinct_parts(read) == {DIGEST: 8 << 20, "cd" * 32: 109}
    assert places(read) == {
        DIGEST: [Place(file="tensors.safetensors", offset=0, begin=0, end=8 << 20)],
        "cd" * 32: [
            Place(file="tensors.safetensors", offset=8 << 20, begin=100, end=109),
            Place(file="state.json", offset=0, begin=0, end=100),
        ],
    }


def test_one_of_version_2_is_read_as_if_this_version_had_written_it() -> None:
    read = decode(of_version_2())
    assert distinct_parts(read) == {DIGEST: 8 << 20, "cd" * 32: 9, "ef" * 32: 100}
    assert places(read)[DIGEST] == [
        Place(file="tensors.safetensors", offset=0, begin=0, end=8 << 20),
        Place(file="tensors.safetensors", offset=(8 << 20) + 9, begin=0, end=8 << 20),
    ]
    assert places(read)["ef" * 32] == [Place(file="state.json", offset=0, begin=0, end=100)]
    assert total_size(read) == (16 << 20) + 109
    assert read.files[1].chunk_digests == bytes.fromhex("ef" * 32)
    assert decode(encode(read)) == read


@pytest.mark.parametrize(
    "files", [[{}], [{"name": "a"}], [{"name": "a", "parts": [{}]}], [{"name": "a", "parts": 7}], 7, ["a"]]
)
def test_one_of_version_2_that_makes_no_sense_is_refused(files: object) -> None:
    document = {**json.loads(of_version_2()), "files": files}
    with pytest.raises(ManifestInvalid):
        decode(json.dumps(document).encode())


@given(st.permutations(["a", "b", "c", "model", "random.torch"]))
def test_its_bytes_do_not_depend_on_the_order_of_names(names: list[str]) -> None:
    def of(order: list[str]) -> bytes:
        return encode(manifest(dict.fromkeys(order, DIGEST), dict.fromkeys(order, 1.0)))

    assert of(names) == of(sorted(names))


def test_it_is_json_with_sorted_keys_and_no_blanks() -> None:
    text = encode(manifest()).decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert text.startswith('{"attempt":3,"componentDigests":{"model":')


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda m: setattr(m, "format", "adjourn.checkpoint/1"), "format"),
        (lambda m: m.ClearField("format"), "format"),
        (lambda m: setattr(m, "job", "jobs/../x"), "job"),
        (lambda m: setattr(m, "job_uid", "digits"), "job_uid"),
        (lambda m: m.ClearField("job_uid"), "job_uid"),
        (lambda m: setattr(m, "attempt", -1), "attempt"),
        (lambda m: m.ClearField("sequence"), "sequence"),
        (lambda m: setattr(m, "nonce", "short"), "nonce"),
        (lambda m: m.component_digests.update({"model": "12"}), r"component_digests\[model\]"),
        (lambda m: m.component_digests.update({"model": DIGEST}), "state_digest"),
        (lambda m: setattr(m, "state_digest", "xyz"), "state_digest"),
        (lambda m: setattr(m.files[0], "name", "../evil"), "evil"),
        (lambda m: setattr(m.files[0], "name", "state.json"), "one name"),
        (lambda m: setattr(m.parts[0], "size_bytes", 0), r"parts\[0\].size_bytes"),
        (lambda m: setattr(m.parts[0], "size_bytes", 1 << 30), r"parts\[0\].size_bytes"),
        (lambda m: setattr(m.parts[1], "digest", "XYZ"), r"parts\[1\].digest"),
        (lambda m: setattr(m.parts[1], "digest", DIGEST), "one digest"),
        (lambda m: setattr(m.files[1].spans[0], "part", 2), r"files\[state.json\].spans\[0\].part"),
        (lambda m: setattr(m.files[1].spans[0], "part", -1), r"files\[state.json\].spans\[0\].part"),
        (lambda m: setattr(m.files[1].spans[0], "offset", -1), r"files\[state.json\].spans\[0\]"),
        (lambda m: setattr(m.files[1].spans[0], "offset", 10), r"files\[state.json\].spans\[0\]"),
        (lambda m: setattr(m.files[1].spans[0], "size_bytes", 0), r"files\[state.json\].spans\[0\]"),
        (lambda m: setattr(m.files[1].spans[0], "size_bytes", 110), r"files\[state.json\].spans\[0\]"),
        (lambda m: setattr(m.files[1], "chunk_digests", b""), r"files\[state.json\].chunk_digests"),
        (lambda m: m.files[1].chunk_sizes.__setitem__(0, 99), r"files\[state.json\].chunk_sizes"),
        (lambda m: m.files[0].chunk_sizes.__setitem__(slice(None), [8, -1, 2]), "chunk_sizes"),
        (lambda m: m.files[0].chunk_sizes.__setitem__(slice(None), [1 << 20, (7 << 20) + 1, 8]), "chunk_sizes"),
    ],
)
def test_what_no_restore_could_rely_on_is_refused(change: Callable[[Manifest], object], place: str) -> None:
    wrong = manifest()
    change(wrong)
    with pytest.raises(ManifestInvalid, match=place):
        decode(encode(wrong))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spec", {"totalEpochs": "many"}),
        ("metrics", {"loss": "low"}),
        ("files", ["a"]),
        ("files", {}),
        ("files", [{"name": "a", "spans": [[0, 4]]}]),
        ("attempt", 1.5),
        ("job", 7),
    ],
)
def test_what_is_of_another_type_is_refused(field: str, value: object) -> None:
    document = json.loads(encode(manifest()))
    document[field] = value
    with pytest.raises(ManifestInvalid, match=r"not a manifest|is not the name"):
        decode(json.dumps(document).encode())


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"null", b"7", b"[" * 100_000])
def test_what_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        decode(data)


def test_what_a_newer_version_added_does_not_matter() -> None:
    document = json.loads(encode(manifest()))
    document["progress"]["samples"] = 1
    document["signature"] = "s"
    assert decode(json.dumps(document).encode()).progress.step == 40

import pytest
import torch

from adjourn.training.state.detector import Detector
from adjourn.training.state.variables import CHUNK_WORDS, checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.uint8])
@pytest.mark.parametrize("count", [1, 3, 64, 1001])
def test_checksums_see_every_change(dtype: torch.dtype, count: int) -> None:
    tensor = torch.ones(count).to(dtype)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    tensor[count // 2] = 0
    assert checksum(tensor) != before


def test_checksums_of_what_is_large_turned_or_odd() -> None:
    large = torch.zeros(CHUNK_WORDS * 8 + 9, dtype=torch.uint8)
    before = checksum(large)
    large[-1] = 1
    assert checksum(large) == before + 1
    value = torch.randn(3, 4, dtype=torch.complex64)
    assert checksum(value.t()) == checksum(value.t().contiguous())
    assert checksum(value.conj()) == checksum(value.conj().resolve_conj()) != checksum(value)
    assert checksum(torch.ones(2, device="meta")) == checksum(torch.eye(2).to_sparse()) == 0
    swapped = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert checksum(swapped) != checksum(swapped.flip(0))


def test_looking_asks_nothing_of_objects_that_are_not_its_business() -> None:
    class Touchy:
        def __getattribute__(self, name: str) -> object:
            raise AssertionError(name)

    touchy = Touchy()
    detector = Detector()
    detector.begin({}, [], None)
    assert detector.findings({}, [], None) == []
    del touchy

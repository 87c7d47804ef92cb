"""A state that is recalled is encoded as one that is encoded anew, whatever has changed since."""

import math
import struct
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from adjourn.snapshots import dumps
from adjourn.training.errors import StateNotEncodable
from adjourn.training.state.codec import Encoder
from adjourn.training.state.recall import Recall

WHOLE = torch.arange(12.0)
OTHER = torch.ones(12)
ARRAY = np.arange(4)
NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0]
SHARED = [1, 2]


def anew(states: dict[str, Any]) -> Any:
    encoder = Encoder()
    try:
        trees = {name: encoder.encode(state, (name,)) for name, state in states.items()}
    except StateNotEncodable as error:
        return str(error)
    return content(trees, encoder.blobs), encoder.remarks


def recalled(recall: Recall, states: dict[str, Any]) -> Any:
    try:
        encoded = recall.encode(states)
    except StateNotEncodable as error:
        return str(error)
    return content(encoded.trees, encoded.blobs), encoded.remarks


def content(trees: dict[str, Any], blobs: Mapping[str, Any]) -> Any:
    data = {name: (blob.dtype, tuple(blob.shape), b"".join(blob.chunks())) for name, blob in blobs.items()}
    return {name: dumps(tree) for name, tree in trees.items()}, list(trees), data, list(blobs)


LEAVES: list[Any] = [
    *(0, 1, True, False, None, "", "1", 0.0, -0.0, 1.0, math.nan, NAN, math.inf, b"1", torch.float32),
    *(WHOLE, OTHER, WHOLE[:6], WHOLE[2:8], WHOLE.view(3, 4), WHOLE.view(3, 4).t(), WHOLE.int(), torch.empty(0)),
    *(torch.ones(2, dtype=torch.complex64).conj(), nn.Parameter(OTHER), torch.eye(2).to_sparse(), ARRAY, ARRAY[::2]),
    *(np.float32(1), SHARED, [1, True], [1, 1], (1, 2), [], {3}, deque([1])),
]


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keys = st.sampled_from(["a", "b", "$", 1])
    return st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.dictionaries(keys, inner, max_size=3).map(OrderedDict),
    )


VALUES = st.recursive(st.sampled_from(LEAVES), nested, max_leaves=6)
STATES = st.dictionaries(st.sampled_from(["x", "y", "z"]), VALUES, max_size=3)


@given(st.lists(STATES, min_size=1, max_size=4))
def test_any_states_are_encoded_as_anew(states: list[dict[str, Any]]) -> None:
    recall = Recall()
    for state in [each for each in states for _ in range(2)]:
        assert recalled(recall, state) == anew(state)


def training() -> dict[str, Any]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "model": {"state_dict": model.state_dict(), "frozen": []},
        "optimizer": optimizer.state_dict(),
        "data": {"epoch": 1, "losses": [0.5], "names": ["a"]},
    }


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "values of tensors": lambda state: state["model"]["state_dict"]["weight"].add_(1),
    "a number": lambda state: state["data"].update(epoch=2),
    "a number into a truth": lambda state: state["data"].update(epoch=True),
    "the sign of zero": lambda state: state["optimizer"]["param_groups"][0].update(lr=-0.0),
    "a rate": lambda state: state["optimizer"]["param_groups"][0].update(lr=0.25),
    "a list that grows": lambda state: state["data"]["losses"].append(0.25),
    "a list of texts": lambda state: state["data"].update(names=["b"]),
    "a list into a tuple": lambda state: state["data"].update(names=("a",)),
    "a type": lambda state: state["model"]["state_dict"].update(weight=torch.ones(2, 3).half()),
    "strides": lambda state: state["model"]["state_dict"].update(weight=torch.ones(3, 2).t()),
    "a shape": lambda state: state["model"]["state_dict"].update(weight=torch.ones(3, 2)),
    "a negation": lambda state: state["model"]["state_dict"].update(weight=torch._neg_view(torch.ones(2, 3))),
    "a layout": lambda state: state["model"]["state_dict"].update(weight=torch.ones(2, 3).to_sparse()),
    "what requires gradients": lambda state: state["optimizer"]["state"][0]["exp_avg"].requires_grad_(),
    "other memory": lambda state: state["model"]["state_dict"].update(weight=torch.ones(2, 3)),
    "a tensor into a number": lambda state: state["optimizer"]["state"][0].update(step=1.0),
    "a tie": lambda state: state["optimizer"]["state"][0].update(exp_avg=state["model"]["state_dict"]["weight"]),
    "a view": lambda state: state["model"]["state_dict"].update(part=state["model"]["state_dict"]["weight"][0]),
    "a new key": lambda state: state["optimizer"]["state"].update({7: torch.ones(1)}),
    "an order": lambda state: state["model"]["state_dict"].move_to_end("weight"),
    "metadata": lambda state: state["model"]["state_dict"]._metadata[""].update(version=2),
    "a component": lambda state: state.update(more=torch.ones(1)),
    "one component less": lambda state: state.pop("model"),
    "what cannot be stored": lambda state: state["data"].update(epoch=object()),
    "a number that is too long": lambda state: state["data"].update(epoch=1 << 9000),
}


@pytest.mark.parametrize("what", CHANGES)
def test_change_of_a_training_is_encoded(what: str) -> None:
    recall, states = Recall(), training()
    before = anew(states)
    assert recalled(recall, states) == before
    CHANGES[what](states)
    assert recalled(recall, states) == anew(states)
    assert recalled(recall, states) == anew(states)
    again = training()
    assert recalled(recall, again) == anew(again)


def test_only_what_changed_is_encoded_again() -> None:
    recall, states = Recall(), training()
    first = recall.encode(states)
    states["data"]["epoch"] = 2
    states["data"]["losses"].append(0.25)
    states["optimizer"]["param_groups"][0]["lr"] = 0.25
    second = recall.encode(states)
    assert second.trees["model"] is first.trees["model"]
    assert second.trees["optimizer"]["state"] is first.trees["optimizer"]["state"]
    assert first.trees["optimizer"]["param_groups"][0]["lr"] == 0.5, "nobody's tree has changed"
    assert second.trees["optimizer"]["param_groups"][0]["lr"] == 0.25


def test_heads_are_the_same_as_long_as_the_data_of_blobs_is_alike() -> None:
    recall, states = Recall(), training()
    recall.encode(states)
    heads = recall.encode(states).blobs.heads
    states["model"]["state_dict"]["weight"] = torch.zeros(2, 3)
    states["data"]["epoch"] = 7
    with torch.autocast("cpu"):
        assert recall.encode(states).blobs.heads is heads
    states["model"]["state_dict"]["weight"] = torch.zeros(3, 2)
    assert recall.encode(states).blobs.heads is not heads

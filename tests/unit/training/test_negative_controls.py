"""What a resume must not go on without, item by item, and the tests that leave it out.

Left out, a training is refused, or its resume is UNPROVEN and says why; none is EXACT with other bits. What is always
saved cannot be left out by user code: it is left out of a snapshot, or is another one, and the restore is refused.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adjourn import snapshots, training
from adjourn.snapshots import STATE
from adjourn.training.state.numerics import NUMERICS, numerics, restore_numerics
from adjourn.training.state.registry import State
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses

TESTS = Path(__file__).parents[2]

STATE_ITEMS = {
    "parameters": """
        test_silent_divergence::test_a_model_that_is_not_tracked_as_one_is_refused
        test_exact_resume::test_every_component_matters test_negative_controls::test_a_component_is_left_out[model]""",
    "buffers, also those that are not persistent": """
        test_silent_divergence::test_a_model_that_is_not_tracked_as_one_is_refused
        test_components::test_other_buffers_are_refused""",
    "attributes, modes and frozen parameters of modules": """
        test_silent_divergence::test_verdict_is_lowered[object_in_module]
        test_process_restored::test_what_is_not_saved_leaves_a_resume_unproven""",
    "optimizer's state, groups and flags": """
        test_silent_divergence::test_refused_while_it_runs[optimizer]
        test_components::test_groups_of_modules_that_are_not_known_are_refused
        test_exact_resume::test_every_component_matters
        test_negative_controls::test_a_component_is_left_out[optimizer]""",
    "schedulers": """
        test_silent_divergence::test_refused_while_it_runs[scheduler]
        test_exact_resume::test_every_component_matters
        test_negative_controls::test_a_component_is_left_out[scheduler]""",
    "what the function of a LambdaLR reads": """
        test_silent_divergence::test_verdict_is_lowered[decays_by_hand]
        test_silent_divergence::test_hidden_values_that_are_carried_on_lower_the_verdict[closure]""",
    "gradient scaler": "test_silent_divergence::test_refused_while_it_runs[scaler]",
    "averaged models and teachers": """
        test_silent_divergence::test_refused_while_it_runs[averaged]
        test_silent_divergence::test_refused_while_it_runs[teacher]
        test_silent_divergence::test_verdict_is_lowered[teacher]""",
    "generators of Python": """
        test_silent_divergence::test_refused_while_it_runs[python_generator]
        test_exact_resume::test_every_component_matters
        test_negative_controls::test_a_component_is_left_out[random.python]""",
    "generators of NumPy, old and new": """
        test_silent_divergence::test_refused_while_it_runs[numpy_generator]
        test_silent_divergence::test_refused_while_it_runs[legacy_generator]
        test_exact_resume::test_every_component_matters
        test_negative_controls::test_a_component_is_left_out[random.numpy]""",
    "generators of torch": """
        test_silent_divergence::test_refused_while_it_runs[torch_generator]
        test_exact_resume::test_every_component_matters
        test_negative_controls::test_a_component_is_left_out[random.torch]""",
    "generators of GPUs": "test_negative_controls::test_the_generator_of_a_gpu_is_left_out",
    "generators that are made while it trains": """
        test_silent_divergence::test_refused_while_it_runs[lazy_generator]
        test_silent_divergence::test_verdict_is_lowered[lazy_generator]""",
    "identity of the data": """
        test_silent_divergence::test_other_data_is_refused test_process_restored::test_other_data_than_before""",
    "sampler's seed, epoch, place in the data, drop_last": """
        test_exact_resume::test_every_component_matters test_negative_controls::test_a_component_is_left_out[data]
        test_loader::test_a_sampler_that_gives_other_samples_is_refused
        test_silent_divergence::test_refused_while_it_runs[plain_generator]""",
    "weights of a sampler": "test_silent_divergence::test_verdict_is_lowered[weighs]",
    "seeds of loader workers": """
        test_silent_divergence::test_refused_while_it_runs[persistent_workers]
        test_silent_divergence::test_refused_while_it_runs[drawing_dataset]""",
    "place in a stream, shuffle buffer": "test_silent_divergence::test_refused_while_it_runs[plain_stream]",
    "replay memory": "test_silent_divergence::test_verdict_is_lowered[replays]",
    "where gradient accumulation is": """
        test_silent_divergence::test_verdict_is_lowered[accumulates]
        test_components::test_gradients_are_kept_only_if_the_next_step_will_use_them""",
    "steps, epochs, samples": """
        test_exact_resume::test_every_component_matters test_negative_controls::test_a_component_is_left_out[data]
        test_silent_divergence::test_verdict_is_lowered[local]""",
    "early stopping, best metric, callbacks": """
        test_silent_divergence::test_refused_while_it_runs[stopping]
        test_silent_divergence::test_verdict_is_lowered[attribute]
        test_negative_controls::test_a_component_is_left_out[stopping]""",
    "what a state_dict() of the user's own forgets": """
        test_silent_divergence::test_what_a_state_dict_of_the_users_forgets_lowers_the_verdict[teacher]
        test_silent_divergence::test_what_a_state_dict_of_the_users_forgets_lowers_the_verdict[best]""",
    "running means, hidden states that are carried on": "test_silent_divergence::test_verdict_is_lowered[hidden]",
    "default and autocast types, TF32, cuDNN, deterministic algorithms": """
        test_negative_controls::test_a_switch_that_stands_otherwise_is_another_state
        test_negative_controls::test_a_component_is_left_out[numerics]""",
    "hash seed, variables of math libraries": """
        test_launcher::test_it_does_not_run_where_training_could_not_be_exact
        test_environment::test_variables_that_math_libraries_read_are_recorded""",
    "versions, processor, GPUs, driver": """
        test_process_restored::test_other_environment_is_refused
        test_environments::test_the_cpu_counts_only_for_what_runs_on_it
        test_environments::test_gpus_must_be_of_the_same_model
        test_environments::test_drivers_count_only_for_what_runs_on_gpus""",
    "threads": "test_process_restored::test_number_of_threads_is_that_of_the_beginning",
    "code": "test_agent_faults::test_a_bundle_that_is_missing_or_damaged",
}
"""The checklist of exact resumes: what has to be saved, or to be equal."""

RULES = {
    "the order is a function of seed and epoch; draws are one of the sample's place": """
        test_silent_divergence::test_refused_while_it_runs[plain_generator]
        test_loader::test_number_of_workers_changes_nothing""",
    "loaders draw nothing from the global generators": "test_loader::test_global_generators_are_left_alone",
    "optimizers are loaded last": "test_components::test_optimizers_load_last_and_schedulers_before_them",
    "nothing draws or changes between restore and first batch": """
        test_process_restored::test_state_that_is_changed_after_it_was_restored""",
    "a snapshot is a copy": "test_writer::test_copy_that_differs_from_the_live_state_is_no_snapshot",
    "a state that cannot be loaded is no state": """
        test_round_trip::test_state_that_a_resumed_run_cannot_take_is_refused_at_the_first_boundary""",
    "no pickle": "test_codec::test_other_things_are_refused_with_their_path",
    "nothing is cut where code would be left out": "test_loader_positions::test_cuts_change_nothing",
    "operations that are not deterministic": "test_silent_divergence::test_verdict_is_lowered[nondeterministic]",
    "another environment is never EXACT": """
        test_process_restored::test_other_environment_may_be_allowed
        test_process_restored::test_states_are_compared_also_where_another_environment_is_allowed""",
}
"""And what has to be done in a certain way."""

DIVERGED_SILENTLY = {
    "attributes of modules": "test_silent_divergence::test_verdict_is_lowered[object_in_module]",
    "what is not tracked": """
        test_silent_divergence::test_refused_while_it_runs[teacher]
        test_silent_divergence::test_verdict_is_lowered[hidden]
        test_silent_divergence::test_verdict_is_lowered[local]
        test_silent_divergence::test_hidden_values_that_are_carried_on_lower_the_verdict""",
    "iterators that are kept over epochs": """
        test_silent_divergence::test_refused_while_it_runs[lazy_iterator]
        test_silent_divergence::test_verdict_is_lowered[lazy_iterator]
        test_silent_divergence::test_iterators_in_generators_and_attributes_go_on""",
    "datasets with a state": """
        test_silent_divergence::test_refused_while_it_runs[drawing_dataset]
        test_silent_divergence::test_verdict_is_lowered[caching_dataset]
        test_silent_divergence::test_verdict_is_lowered[aging_dataset]
        test_silent_divergence::test_verdict_is_lowered[fading_dataset]""",
    "other data of equal length": "test_silent_divergence::test_other_data_is_refused",
    "plain loaders with workers that persist, or generators": """
        test_silent_divergence::test_refused_while_it_runs[persistent_workers]
        test_silent_divergence::test_refused_while_it_runs[plain_generator]""",
    "generators that are spawned": """
        test_silent_divergence::test_refused_while_it_runs[numpy_generator]
        test_components::test_generators_spawn_the_same_children""",
    "lazy views": "test_codec::test_conjugates_are_not_their_originals",
    "operations that only warn; switches that user code turns": """
        test_silent_divergence::test_verdict_is_lowered[nondeterministic]
        test_negative_controls::test_a_switch_that_stands_otherwise_is_another_state""",
    "layout in memory, order of sets, what is shared": """
        test_codec::test_digests_see_the_layout test_codec::test_digests_see_what_is_shared
        test_silent_divergence::test_verdict_is_lowered[shrunken_set]""",
    "driver, compute capability, libraries, variables": """
        test_environments::test_drivers_count_only_for_what_runs_on_gpus
        test_environments::test_a_library_counts_if_it_was_used
        test_environment::test_variables_that_math_libraries_read_are_recorded""",
    "child processes, modules that train in parallel": """
        test_silent_divergence::test_verdict_is_lowered[child_process]
        test_silent_divergence::test_refused_while_it_runs[parallel]
        test_silent_divergence::test_parallel_modules_are_refused_when_they_are_tracked""",
}
"""What a look at an early version found to be neither restored nor refused."""

NOT_YET = {
    "ranks, shards of the data, generators of tensor parallel trackers, NCCL": """
        test_silent_divergence::test_refused_while_it_runs[parallel]
        test_components::test_modules_that_train_in_parallel_are_refused""",
}
"""What a training cannot have yet: it is refused."""

ROWS = [
    (item, named.split()) for table in (STATE_ITEMS, RULES, DIVERGED_SILENTLY, NOT_YET) for item, named in table.items()
]


@pytest.mark.parametrize(("item", "named"), ROWS, ids=[item for item, _ in ROWS])
def test_each_item_has_tests_that_exist(item: str, named: list[str]) -> None:
    assert item
    assert named
    for each in named:
        found = re.fullmatch(r"(\w+)::(\w+)(?:\[([\w.]+)\])?", each)
        assert found, each
        file, name, case = found.groups()
        heads = [head for path in TESTS.rglob(f"{file}.py") for head in heads_of(path.read_text(), name)]
        assert len(heads) == 1, each
        assert case is None or f'"{case}"' in heads[0] or ("COMPONENTS" in heads[0] and case in COMPONENTS), each


def heads_of(code: str, name: str) -> Iterator[str]:
    """Yields the decorators of the functions of that name, as text."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            yield "".join(ast.get_source_segment(code, each) or "" for each in node.decorator_list)


COMPONENTS = (
    *("model", "optimizer", "scheduler", "stopping", "data", "numerics"),
    *("random.python", "random.numpy", "random.torch"),
)


@pytest.fixture(scope="module")
def paused(trainings: TrainingProcesses) -> Attempt:
    return trainings.run("tiny:main", args={"workers": 0}, order=PAUSE)


@pytest.mark.parametrize("told", [False, True], ids=["unknown to the digests", "known to them"])
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_is_left_out(
    trainings: TrainingProcesses, paused: Attempt, component: str, tmp_path: Path, *, told: bool
) -> None:
    """As if a snapshot had been made without it; `told`: its digests are those of the whole one."""
    source = Path(paused.snapshots[-1].directory)
    document: dict[str, Any] = json.loads((source / STATE).read_text())
    del document["components"][component]
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / STATE).write_text(json.dumps(document))
    digests = paused.digests if told else snapshots.component_digests(tmp_path)
    attempt = trainings.run("tiny:main", args={"workers": 0}, restore_directory=str(tmp_path), restore_digests=digests)
    assert attempt.code == 1
    assert attempt.last.failed.reason in ("STATE_MISMATCH", "RESTORE_DIVERGED", "CHECKPOINT_CORRUPT"), attempt.log
    assert component in attempt.last.failed.message


def test_the_generator_of_a_gpu_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where user code has begun to use a GPU, its generator is part of the state, and counts in a comparison."""
    without = State(dict, None).digests()
    gpus = [torch.zeros(16, dtype=torch.uint8)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: gpus)
    state = State(dict, None)
    before = state.digests()
    assert before.keys() - without.keys() == {"random.cuda.0"}
    with pytest.raises(training.RestoreDiverged, match=r"random\.cuda\.0"):
        state.compare(without)
    gpus[0] += 1
    with pytest.raises(training.RestoreDiverged, match=r"random\.cuda\.0"):
        state.compare(before)


OTHERS: dict[Any, Any] = {
    0: 2,
    "none": "ieee",
    "tf32": "ieee",
    torch.float32: torch.float64,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
"""What a switch may stand at instead."""


@pytest.mark.parametrize("name", [name for name, value in numerics().items() if value is not None])
def test_a_switch_that_stands_otherwise_is_another_state(name: str) -> None:
    before, state = numerics(), State(dict, None)
    digests = state.digests()
    value = before[name]
    try:
        restore_numerics({name: not value if isinstance(value, bool) else OTHERS[value]})
        with pytest.raises(training.RestoreDiverged, match=NUMERICS):
            state.compare(digests)
    finally:
        restore_numerics(before)
    state.compare(digests)

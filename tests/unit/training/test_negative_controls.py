"""What a resume must not go on without, item by item, and the tests that leave it out.

Left out, a training is refused, or its resume is UNPROVEN and says why; none is EXACT with other bits. What is always
saved cannot be left out by user code: it is left out of a snapshot, or is another one, and the restore is refused.
"""

import ast
import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adjourn import snapshots, training
from adjourn.snapshots import STATE
from adjourn.training.state.codec import Encoder
from adjourn.training.state.components import Component, component
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
        test_negative_controls::test_a_part_of_a_module_is_left_out[state_dict]
        test_negative_controls::test_a_part_of_a_module_is_left_out[buffers]
        test_negative_controls::test_a_part_of_a_module_is_left_out[empty_buffers]
        test_components::test_other_buffers_are_refused""",
    "attributes, modes and frozen parameters of modules": """
        test_silent_divergence::test_verdict_is_lowered[object_in_module]
        test_negative_controls::test_a_part_of_a_module_is_left_out[attributes]
        test_negative_controls::test_a_part_of_a_module_is_left_out[frozen]
        test_negative_controls::test_a_part_of_a_module_is_left_out[evaluating]
        test_negative_controls::test_a_part_of_a_module_is_left_out[generators]
        test_process_restored::test_what_is_not_saved_leaves_a_resume_unproven""",
    "optimizer's state, groups and flags": """
        test_silent_divergence::test_refused_while_it_runs[optimizer]
        test_components::test_groups_of_modules_that_are_not_known_are_refused
        test_negative_controls::test_a_part_of_an_optimizer_is_left_out[state]
        test_negative_controls::test_a_part_of_an_optimizer_is_left_out[step]
        test_negative_controls::test_a_part_of_an_optimizer_is_left_out[initial_lr]
        test_negative_controls::test_a_part_of_an_optimizer_is_left_out[foreach]
        test_negative_controls::test_a_part_of_an_optimizer_is_left_out[group]
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
        test_components::test_gradients_are_kept_only_if_the_next_step_will_use_them
        test_negative_controls::test_a_part_of_a_module_is_left_out[gradients]
        test_negative_controls::test_a_part_of_an_optimizer_is_left_out[gradients]""",
    "place in a validation": """
        test_amid_epochs::test_a_validation_is_not_cut
        test_amid_epochs::test_an_epoch_is_not_cut_where_an_earlier_loop_would_get_no_batches""",
    "time that was trained, which decides nothing": "test_progress::test_time_and_metrics_are_carried_on",
    "steps, epochs, samples": """
        test_exact_resume::test_every_component_matters test_negative_controls::test_a_component_is_left_out[data]
        test_silent_divergence::test_verdict_is_lowered[local]""",
    "early stopping, best metric, callbacks, steps of loggers": """
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
    "flags of compilers": "test_silent_divergence::test_verdict_is_lowered[compiled]",
    "threads": "test_process_restored::test_number_of_threads_is_that_of_the_beginning",
    "code": "test_agent_faults::test_a_bundle_that_is_missing_or_damaged",
}
"""The checklist of exact resumes: what has to be saved, or to be equal."""

RULES = {
    "the order is a function of seed and epoch; draws are one of the sample's place": """
        test_silent_divergence::test_refused_while_it_runs[plain_generator]
        test_loader::test_number_of_workers_changes_nothing""",
    "loaders draw nothing from the global generators": "test_loader::test_global_generators_are_left_alone",
    "the boundary of an epoch is one point; so is its last batch": """
        test_positions::test_cut_at_the_ends_of_epochs
        test_amid_epochs::test_a_step_that_no_batch_follows_is_cut_at_the_end_of_its_epoch""",
    "an epoch whose code is executed anew does nothing twice": """
        test_amid_epochs::test_a_run_that_is_cut_amid_its_epochs_is_the_same
        test_amid_epochs::test_what_begins_anew_with_the_epoch_lowers_the_verdict
        test_amid_epochs::test_a_run_that_never_comes_to_where_it_was_cut_ends""",
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
    "master copies, groups that are added, modules that grow": """
        test_components::test_master_copies_are_not_cast
        test_components::test_groups_of_modules_that_are_not_known_are_refused
        test_round_trip::test_pause_of_a_structure_that_cannot_be_resumed_stays_pending""",
    "gradients that wait, sparse ones, states that cannot be stored later": """
        test_negative_controls::test_a_part_of_an_optimizer_is_left_out[gradients]
        test_silent_divergence::test_exact[sparse]
        test_amid_epochs::test_a_value_that_cannot_be_stored_is_named""",
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

FORESEEN_BY_NO_LIST = {
    "state in C code, threads, files, variables of the environment": """
        test_drill::test_what_nothing_finds_is_found_by_a_drill[environment]
        test_drill::test_what_nothing_finds_is_found_by_a_drill[file]
        test_drill::test_what_nothing_finds_is_found_by_a_drill[c]
        test_drill::test_what_nothing_finds_is_found_by_a_drill[thread]
        test_drill::test_a_drill_that_differs_lowers_the_verdict_if_that_is_accepted""",
    "a restore that does not come to what was saved": "test_drill::test_a_drill_that_cannot_restore_differs",
    "only a drill that came to the same bits makes EXACT_REPLAYED": """
        test_drill::test_a_drill_that_comes_to_the_same_bits_makes_later_resumes_exact_replayed
        test_drill::test_a_second_process_that_is_killed_shows_nothing
        test_drill::test_a_drill_in_another_environment_is_made_again""",
}
"""What a drill finds, where one is asked for: the run ends, or its verdict is lowered. Without one it is not found."""

NOT_YET = {
    "ranks, shards of the data, generators of tensor parallel trackers, NCCL": """
        test_silent_divergence::test_refused_while_it_runs[parallel]
        test_components::test_modules_that_train_in_parallel_are_refused""",
}
"""What a training cannot have yet: it is refused."""

TABLES = (STATE_ITEMS, RULES, DIVERGED_SILENTLY, FORESEEN_BY_NO_LIST, NOT_YET)
ROWS = [(item, named.split()) for table in TABLES for item, named in table.items()]


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


class Parts(nn.Module):
    """Has something of all that is saved of a module."""

    mean: torch.Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout = nn.Linear(2, 3), nn.Dropout(0.1)
        self.register_buffer("mean", torch.zeros(3), persistent=False)
        self.register_buffer("mask", torch.ones(3))
        self.generator = torch.Generator().manual_seed(1)

    def change(self) -> None:
        """Changes each part, as training may."""
        self.linear.weight.requires_grad_(False)
        self.linear.bias.grad = torch.ones(3)
        self.dropout.eval().p = 0.2
        self.mean = torch.ones(3)
        self.mask = None
        torch.rand((), generator=self.generator)


def digest(state: Any) -> str:
    encoder = Encoder()
    tree = encoder.encode(state, ("state",))
    return snapshots.component_digest(tree, lambda blob: encoder.blobs[blob].chunks())


def is_refused(whole: Component, other: Component, state: Any) -> bool:
    """Tells whether a state, loaded by the `other`, is refused, or is not that of the `whole` by the digest."""
    try:
        other.load(state)
    except Exception:  # noqa: BLE001  (as `State` does: load_state_dict() may raise anything)
        return True
    return digest(other.state()) != digest(whole.state())


@pytest.mark.parametrize(
    "part",
    [
        *("nothing", "state_dict", "buffers", "empty_buffers", "frozen"),
        *("evaluating", "attributes", "generators", "gradients"),
    ],
)
def test_a_part_of_a_module_is_left_out(part: str) -> None:
    torch.manual_seed(1)
    net, again = Parts(), Parts()
    whole, other = (component("net", module, owned=set) for module in (net, again))
    net.change()
    state = whole.state()
    if part != "nothing":
        assert state[part], "there is something to leave out"
        state[part] = type(state[part])()
    assert is_refused(whole, other, state) is (part != "nothing")


LEFT_OUT: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda _: None,
    "state": lambda state: state["state_dict"]["state"].clear(),
    "step": lambda state: state["state_dict"]["state"][0].pop("step"),
    "initial_lr": lambda state: state["state_dict"]["param_groups"][0].pop("initial_lr"),
    "foreach": lambda state: state["state_dict"]["param_groups"][0].pop("foreach"),
    "group": lambda state: (state["state_dict"]["param_groups"].pop(), state["groups"].pop()),
    "gradients": lambda state: state.update(gradients=None),
}
"""What is taken out of the state of an optimizer."""


@pytest.mark.parametrize("part", ["nothing", "state", "step", "initial_lr", "foreach", "group", "gradients"])
def test_a_part_of_an_optimizer_is_left_out(part: str) -> None:
    def made() -> tuple[nn.ModuleList, torch.optim.Optimizer, Component]:
        torch.manual_seed(1)
        nets = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
        optimizer = torch.optim.Adam(nets[0].parameters(), lr=0.1, foreach=True)
        return nets, optimizer, component("optimizer", optimizer, lambda: dict(nets.named_parameters()))

    (nets, optimizer, whole), (_, _, other) = made(), made()
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.add_param_group({"params": nets[1].parameters()})
    for steps in (True, False):
        for parameter in nets.parameters():
            parameter.grad = torch.ones_like(parameter)
        if steps:
            optimizer.step()
    state = copy.deepcopy(whole.state())
    LEFT_OUT[part](state)
    assert is_refused(whole, other, state) is (part != "nothing")


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

"""What decides how a training goes on is restored to the bit, or refused while it runs, or lowers the verdict."""

import re
from pathlib import Path

import pytest

from adjourn import snapshots
from adjourn.v1.job_pb2 import JobSpec, Pause
from tests.harness.training_processes import PAUSE, Attempt, TrainingProcesses, failed

EPOCHS = 4


def verdict(attempt: Attempt) -> tuple[int, list[str]]:
    began = next(event.began for event in attempt.events if event.HasField("began"))
    return began.verdict, list(began.verdict_reasons)


@pytest.mark.parametrize(
    "training",
    [
        *(
            "attributes",
            "values",
            "spawned",
            "switches",
            "layouts",
            "sparse",
            "masters",
            "thaws",
            "constants",
            "aliases",
        ),
        *("strays", "rebuilt"),
        *("average_saves_model", "parameters", "functional_only", "innocent", "kept_iterator", "streams_and_samplers"),
    ],
)
def test_exact(trainings: TrainingProcesses, training: str) -> None:
    entry_point = f"silent:{training}"
    whole = trainings.run(entry_point, epochs=EPOCHS)
    assert whole.last.HasField("finished"), whole.log
    paused: Attempt | None = None
    for _ in range(2):
        paused = trainings.run(entry_point, epochs=EPOCHS, restore=paused, order=PAUSE)
        resumed = trainings.run(entry_point, epochs=EPOCHS, restore=paused)
        assert resumed.last.HasField("finished"), resumed.log
        assert verdict(resumed) == (Pause.Verdict.EXACT, [])
        assert resumed.digests == whole.digests
        assert resumed.values.items() <= whole.values.items()


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_iterators_in_generators_and_attributes_go_on(trainings: TrainingProcesses, cut: int) -> None:
    """What a generator holds, nobody can see to be used again before it is."""
    entry_point = "silent:two_kept_iterators"
    whole = trainings.run(entry_point, epochs=EPOCHS)
    paused = trainings.paused_at(entry_point, cut, epochs=EPOCHS)
    resumed = trainings.run(entry_point, epochs=EPOCHS, restore=paused)
    assert resumed.digests == whole.digests
    assert verdict(resumed)[0] == Pause.Verdict.UNPROVEN


@pytest.mark.parametrize(
    ("training", "what", "epochs"),
    [
        ("averaged", "a torch.optim.swa_utils.AveragedModel in variable averaged", 1),
        ("teacher", "a silent.Net in variable teacher of teacher", 1),
        ("optimizer", "a torch.optim.adam.Adam in variable second", 1),
        ("parameter", "a torch.nn.parameter.Parameter in variable scale of parameter (silent.py:", 1),
        ("scheduler", "a torch.optim.lr_scheduler.ExponentialLR in variable warmup", 1),
        ("scaler", "a torch.amp.grad_scaler.GradScaler in variable scaler", 1),
        ("numpy_generator", "a numpy.random._generator.Generator in variable generator", 1),
        ("legacy_generator", "a numpy.random.mtrand.RandomState in variable generator", 1),
        ("stopping", "a adjourn.training.early_stopping.EarlyStopping in variable stopping", 1),
        ("python_generator", "a random.Random in", 1),
        ("torch_generator", "a torch._C.Generator in variable generator", 1),
        ("lazy_generator", "a numpy.random._generator.Generator in", 2),
        ("drawing_dataset", "a numpy.random._generator.Generator in attribute generator of a silent.Drawing", 1),
        ("lazy_iterator", "made in epoch 1, is used in epoch 2", 1),
        ("plain_generator", "a torch._C.Generator in", 1),
        ("plain_stream", "is still iterated over when the epoch ends", 1),
        ("persistent_workers", "keeps its workers", 1),
        ("parallel", "a torch.nn.parallel.data_parallel.DataParallel in variable wrapped", 1),
    ],
)
def test_refused_while_it_runs(trainings: TrainingProcesses, training: str, what: str, epochs: int) -> None:
    attempt = trainings.run(f"silent:{training}", epochs=EPOCHS)
    assert what in failed(attempt, "UNTRACKED_STATE"), attempt.log
    assert len(attempt.epochs) == epochs


@pytest.mark.parametrize("parameters", [False, True])
def test_a_model_that_is_not_tracked_as_one_is_refused(trainings: TrainingProcesses, *, parameters: bool) -> None:
    """Also if each of its parameters is: it has buffers and attributes."""
    attempt = trainings.run("silent:untracked", args={"parameters": parameters})
    assert "a silent.Net in variable model" in failed(attempt, "UNTRACKED_STATE")


def test_parallel_modules_are_refused_when_they_are_tracked(trainings: TrainingProcesses) -> None:
    attempt = trainings.run("silent:tracked_parallel")
    assert "DataParallel is not supported yet" in failed(attempt, "STATE_NOT_ENCODABLE")


@pytest.mark.parametrize(
    ("training", "args", "reason"),
    [
        ("averages", {}, "the value of attribute model of average"),
        ("local", {}, "the value of variable rate of local"),
        ("hidden", {}, "the value of variable state of hidden"),
        ("accumulates", {}, "the value of variable count of accumulates"),
        ("replays", {}, "the value of variable memory of replays"),
        ("weighs", {}, "the value of attribute weights of the sampler of loader 1"),
        ("decays_by_hand", {}, "the value of variable rate of decays_by_hand"),
        ("attribute", {}, "the value of attribute best of self in train"),
        ("caching_dataset", {}, "the value of attribute cache of the dataset of loader 0.dataset (silent.Caching)"),
        ("aging_dataset", {}, "the value of attribute reads of the dataset of loader 0 (silent.Aging)"),
        ("fading_dataset", {}, "the value of attribute fading of the dataset of loader 0 (silent.Aging)"),
        ("object_in_module", {}, "model.counter is a silent.Counter that changed in training"),
        ("shrunken_set", {}, "the order of this set comes from how it grew and shrank"),
        ("child_process", {}, "the process ForkPoolWorker-1: outlives the epoch"),
        ("nondeterministic", {}, "scatter_add_cuda_kernel is not deterministic"),
        ("compiled", {}, "torch.compile was used"),
        ("lazy_generator", {}, "a numpy.random._generator.Generator"),
        ("lazy_iterator", {}, "an iterator over loader 0: has batches left"),
        ("lazy_iterator", {"ignored": True}, "Loader is ignored: which batch comes next does not matter"),
        ("teacher", {"ignored": True}, "Net is ignored: only its plots are looked at"),
        ("teacher", {"lax": True}, "a silent.Net in variable teacher"),
    ],
)
def test_verdict_is_lowered(trainings: TrainingProcesses, training: str, args: dict[str, bool], reason: str) -> None:
    entry_point = f"silent:{training}"
    cut = 0 if training in ("lazy_generator", "lazy_iterator") and not args else 1
    paused = trainings.paused_at(entry_point, cut + 1, epochs=EPOCHS, args=args)
    assert paused.last.HasField("paused"), paused.log
    resumed = trainings.run(entry_point, epochs=cut + 2, args=args, restore=paused)
    lowered, reasons = verdict(resumed)
    assert lowered == Pause.Verdict.UNPROVEN
    assert any(reason in each for each in reasons), reasons


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("default", "attribute rate of decaying in carried"),
        ("slot", "attribute rate of slotted in carried"),
        ("lazy", "attribute best of lazy in carried"),
        ("nested", "variable nested of carried"),
        ("closure", "variable function of carried"),
        ("generator", "variable generator of carried"),
        ("count", "variable numbers of carried"),
        ("cycle", "variable cycle of carried"),
        ("class", "attribute rate of Decaying in module silent"),
        ("module", "variable RATE of module rates"),
    ],
)
def test_hidden_values_that_are_carried_on_lower_the_verdict(
    trainings: TrainingProcesses, place: str, reason: str
) -> None:
    paused = trainings.run("silent:carried", epochs=EPOCHS, args={"place": place}, order=PAUSE)
    resumed = trainings.run("silent:carried", epochs=2, args={"place": place}, restore=paused)
    lowered, reasons = verdict(resumed)
    assert lowered == Pause.Verdict.UNPROVEN
    assert any(re.search(rf"{reason} \((silent|rates)\.py:\d+\)", each) for each in reasons), reasons


@pytest.mark.parametrize(
    "lacks", ["nothing", "teacher", "optimizer", "rng", "draws", "recent", "inner", "sums", "best"]
)
def test_what_a_state_dict_of_the_users_forgets_lowers_the_verdict(trainings: TrainingProcesses, lacks: str) -> None:
    args = {"lacks": lacks}
    whole = trainings.run("silent:entrusts", epochs=EPOCHS, args=args)
    paused = trainings.paused_at("silent:entrusts", 2, epochs=EPOCHS, args=args)
    resumed = trainings.run("silent:entrusts", epochs=EPOCHS, args=args, restore=paused)
    found, reasons = verdict(resumed)
    if lacks == "nothing":
        assert (found, reasons) == (Pause.Verdict.EXACT, [])
        assert resumed.digests == whole.digests
        return
    assert resumed.digests != whole.digests
    assert found == Pause.Verdict.UNPROVEN
    name = "rate of experiment.inner" if lacks == "inner" else f"{lacks} of experiment"
    assert any(f"the value of attribute {name}" in each for each in reasons), reasons


def test_what_begins_to_change_later_is_seen_in_a_checkpoint_that_is_no_pause_s(trainings: TrainingProcesses) -> None:
    whole = trainings.run("silent:begins_late", epochs=5, spec=JobSpec(checkpoint_epochs=4))
    first, _ = whole.snapshots
    (remark,) = snapshots.read_state(Path(first.directory)).remarks
    assert "variable average of begins_late" in remark


def test_what_is_done_about_a_value_is_said_as_code_that_works(trainings: TrainingProcesses) -> None:
    paused = trainings.run("silent:carried", args={"place": "nested"}, order=PAUSE)
    assert 'keep what changes of it in run.state. If not: run.ignore("nested"' in paused.log
    paused = trainings.run("silent:attribute", order=PAUSE)
    assert 'keep it in run.state. If not: run.ignore("self.best"' in paused.log
    paused = trainings.run("silent:hidden", order=PAUSE)
    assert "run.track(state=state) before the first epoch, and change it in place" in paused.log


def test_other_data_is_refused(trainings: TrainingProcesses) -> None:
    paused = trainings.paused_at("silent:split", 1, epochs=EPOCHS, args={"split": 1})
    same = trainings.run("silent:split", epochs=EPOCHS, args={"split": 1}, restore=paused)
    assert verdict(same)[0] == Pause.Verdict.EXACT
    other = trainings.run("silent:split", epochs=EPOCHS, args={"split": 2}, restore=paused)
    assert "the data of loader 0 is not that of before" in failed(other, "STATE_MISMATCH")

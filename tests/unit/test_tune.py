"""`fastres tune` without a GPU: Triton's interpreter does the work, a planted clock the timing."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from fastres import cli
from fastres.backends import triton as backend
from fastres.bench.operator_calls import Call, TensorSpec
from fastres.bench.operator_inputs import Judge, make_arguments
from fastres.kernels import bn_stats, tables, tuned
from fastres.kernels.tuned import Choice, Key
from fastres.tuning import command, user_table
from fastres.tuning.candidates import KNOBS, identity, neighbours, providers
from fastres.tuning.progress import Lines, progress
from fastres.tuning.search import Search
from fastres.tuning.tasks import find_tasks

CPU = torch.device("cpu")
FAMILY = "sm_90"


def activation(*size: int, dtype=torch.float32) -> TensorSpec:
    empty = torch.empty(size, device="meta", memory_format=torch.channels_last)
    return TensorSpec(size, tuple(empty.stride()), dtype)


STATS = Call("bn_stats", (activation(2, 4, 3, 5),))


@pytest.fixture(autouse=True)
def interpreted():
    if torch.cuda.is_available():
        pytest.skip("the interpreter runs where there is no GPU")


class Machine:
    """A clock, and a bn_stats kernel that takes as long as `cost` says and may be wrong."""

    def __init__(self, monkeypatch, cost, wrong=lambda config: False, fails=lambda config: False):
        self.now, real = 0.0, bn_stats.bn_stats

        def planted(y, config):
            if fails(config):
                raise RuntimeError("out of resources: shared memory\nand more")
            self.now += cost(config)
            mean, var = real(y, config)
            return (mean, var * 1.5) if wrong(config) else (mean, var)

        monkeypatch.setattr(bn_stats, "bn_stats", planted)

    def clock(self, call):
        before = self.now
        call()
        return self.now - before


def stats_task():
    (task,) = find_tasks(Counter({STATS: 3}), None, FAMILY)
    return task


def distance_to(tile, warps):
    """Seconds that fall towards one config."""

    def cost(config):
        return 1e-6 * (1 + abs(config["tile"].bit_length() - tile.bit_length())
                       + abs(config["num_warps"].bit_length() - warps.bit_length()))  # fmt: skip

    return cost


def test_tasks_are_what_the_backend_asks_the_tables():
    conv = Call(
        "conv_stats",
        (activation(2, 8, 4, 4, dtype=torch.float16), activation(16, 8, 1, 1),
         (1, 1), (0, 0), (1, 1), 1, *[TensorSpec((8,), (1,), torch.float32)] * 4, True),
    )  # fmt: skip
    tasks = find_tasks(Counter({conv: 2, STATS: 1}), None, FAMILY)
    keys = {task.key: task.calls.total() for task in tasks}
    assert keys == {
        Key("conv1x1", "float16", True, (("inner", 8), ("outer", 16))): 2,
        Key("bn_stats", "float32", False, ()): 1,
    }
    assert tasks[0].nbytes >= tasks[1].nbytes


def test_neighbours_move_one_step_within_bounds():
    config = {"BLOCK_M": 16, "BLOCK_N": 256, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    found = neighbours("conv1x1", Choice("triton", config))
    assert Choice("cudnn", config) in found
    assert Choice("triton", config | {"num_stages": 3}) in found
    assert Choice("triton", config | {"BLOCK_M": 32, "BLOCK_N": 128}) in found
    assert len({identity(choice) for choice in found}) == len(found)
    for choice in found:
        if choice.provider == "triton":
            assert choice.config != config
            assert all(KNOBS[k][0] <= v <= KNOBS[k][1] for k, v in choice.config.items())
    # a config says nothing about cuDNN, so all of Triton's are candidates beside it
    beside = neighbours("conv1x1", Choice("cudnn", config))
    assert Choice("triton", config) in beside
    assert all(choice.provider == "triton" for choice in beside)
    assert providers("bn_stats") == ("triton",)


def test_the_search_walks_to_the_fastest(monkeypatch):
    machine = Machine(monkeypatch, distance_to(1024, 1))
    task = stats_task()
    assert task.choice.config["tile"] == 2048
    told = []
    outcome = Search(CPU, rounds=2, clock=machine.clock).run(task, told.append)
    assert (outcome.choice.config["tile"], outcome.choice.config["num_warps"]) == (1024, 1)
    assert outcome.seconds == pytest.approx(1e-6)
    assert outcome.before == pytest.approx(4e-6)
    assert outcome.rejected == []
    assert len(told) > 1


def test_a_wrong_candidate_gets_no_time(monkeypatch):
    """The fastest of all, but its numbers are wrong: it is named, and the best right one wins."""
    machine = Machine(
        monkeypatch, distance_to(1024, 4), wrong=lambda config: config["tile"] == 1024
    )
    outcome = Search(CPU, rounds=2, clock=machine.clock).run(stats_task())
    assert outcome.choice.config["tile"] == 2048
    reasons = {choice.config["tile"]: reason for choice, reason in outcome.rejected}
    assert set(reasons) == {1024}
    assert "output 1 is wrong: relative error 0.5" in reasons[1024]


def test_a_candidate_that_does_not_run_is_named(monkeypatch):
    machine = Machine(monkeypatch, distance_to(4096, 4), fails=lambda config: config["tile"] > 2048)
    outcome = Search(CPU, rounds=2, clock=machine.clock).run(stats_task())
    assert outcome.choice.config["tile"] == 2048
    reason = outcome.rejected[0][1]
    assert reason.startswith("RuntimeError: out of resources: shared memory (test_tune.py:")


def test_a_choice_in_use_that_is_wrong_is_replaced(monkeypatch):
    machine = Machine(
        monkeypatch, distance_to(2048, 4), wrong=lambda config: config["tile"] == 2048
    )
    outcome = Search(CPU, rounds=2, clock=machine.clock).run(stats_task())
    assert outcome.choice.config["tile"] != 2048
    assert outcome.before is None
    row = user_table.row(outcome, FAMILY, {})
    assert "the one in use before was rejected" in row["reason"]
    assert tables.problem(row) is None


def test_nothing_right_is_no_outcome(monkeypatch):
    machine = Machine(monkeypatch, distance_to(2048, 4), wrong=lambda config: True)
    outcome = Search(CPU, rounds=2, limit=3, clock=machine.clock).run(stats_task())
    assert outcome.seconds is None
    assert outcome.tried == 3
    assert outcome.problem.startswith("output 1 is wrong")


def test_a_small_gain_changes_nothing(monkeypatch):
    def cost(config):
        return 1e-6 if config["tile"] == 2048 else 0.995e-6

    outcome = Search(CPU, rounds=2, clock=Machine(monkeypatch, cost).clock).run(stats_task())
    assert outcome.choice == outcome.task.choice
    assert "as in use before" in user_table.row(outcome, FAMILY, {})["reason"]


def test_the_whole_loop_writes_a_table_that_is_then_used(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FASTRES_CONFIGS", str(tmp_path))
    tuned.forget()
    gpu, versions = "NVIDIA H200", {"torch": "2.0"}
    path = tables.user_path(gpu)
    search = Search(CPU, rounds=2, clock=Machine(monkeypatch, distance_to(1024, 4)).clock)

    def save(outcome):
        user_table.merge(path, gpu, versions, [user_table.row(outcome, FAMILY, versions)])

    task = stats_task()
    with progress(1) as shown:
        assert type(shown) is Lines
        command.measure(search, [task], save, shown)
    assert "[1/1] bn_stats float32: triton tile 1024" in capsys.readouterr().out
    (row,) = json.loads(path.read_text())["rows"]
    assert row["measured"]["microseconds"] == pytest.approx(1)
    assert row["measured"]["versions"] == versions
    tuned.forget()
    with tuned.choosing_for(gpu, FAMILY):
        assert tuned.choose("bn_stats", CPU, torch.float32).config["tile"] == 1024
    # measured again, the row is replaced, and rows for others stay
    other = row | {"dtypes": ["float16"]}
    user_table.merge(path, gpu, versions, [other])
    user_table.merge(path, gpu, versions, [row | {"reason": "measured: again"}])
    rows = json.loads(path.read_text())["rows"]
    assert [(r["dtypes"], r["reason"]) for r in rows] == [
        (["float32"], "measured: again"), (["float16"], row["reason"]),
    ]  # fmt: skip
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    with pytest.raises(tables.TableError, match="gpu must be 'NVIDIA A100'"):
        user_table.merge(path, "NVIDIA A100", versions, [row])
    tuned.forget()


def test_the_time_may_be_up(monkeypatch, capsys):
    machine = Machine(monkeypatch, distance_to(2048, 4))
    search = Search(CPU, rounds=2, clock=machine.clock, deadline=0.0)
    assert command.measure(search, [stats_task()], None, Lines(1)) == []
    assert "the time is up: 1 choices are not measured" in capsys.readouterr().out


def pool_arguments(dtype):
    x, out = activation(2, 4, 7, 6, dtype=dtype), activation(2, 4, 4, 3, dtype=dtype)
    index = activation(2, 4, 4, 3, dtype=torch.uint8)
    call = Call("max_pool_backward", (out, index, x.size, (3, 3), (2, 2), (1, 1)))
    return call, make_arguments(call, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_judge_accepts_the_kernels_and_no_more(dtype):
    call, arguments = pool_arguments(dtype)
    assert arguments[1].min() >= 0
    assert arguments[1].max() < 9
    judge = Judge(call, arguments)
    right = backend.max_pool_backward(*arguments)
    assert judge.problem(right) is None
    for spoil in (lambda t: t[..., :-1], lambda t: t * 1.05, lambda t: t.fill_(torch.nan)):
        assert judge.problem(spoil(right.clone())) is not None
    one = right.clone()
    one[0, 0, 0, 0] += 1  # a single element
    assert "output 0 is wrong" in judge.problem(one)


def test_arguments_have_the_recorded_layout():
    spec = TensorSpec((2, 3, 4, 4), (48, 16, 4, 1), torch.float16)
    expanded = TensorSpec((2, 3, 4, 4), (0, 0, 0, 0), torch.float16)
    (y,) = make_arguments(Call("bn_stats", (spec,)), CPU)
    assert y.stride() == spec.stride
    assert y.dtype == torch.float16
    (y,) = make_arguments(Call("bn_stats", (expanded,)), CPU)
    assert y.is_contiguous(memory_format=torch.channels_last)


def fails(capsys, *arguments):
    code = cli.main(["tune", *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    return code, line


def test_without_a_gpu_it_says_what_it_needs(capsys):
    code, line = fails(capsys)
    assert code == 2
    assert "tune measures on an NVIDIA GPU of compute capability 8.0 or higher" in line
    assert "torch finds no usable CUDA device (--dry-run lists" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--seconds", "0"], "seconds must be above 0, got 0"),
        (["--dry-run", "--model", "vgg"], "model 'vgg', batch 256: name must be one of"),
        (["--dry-run", "--operators", "x", "--model", "resnet20"],
         "operators must be among bn_apply"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(capsys, arguments, message):
    code, line = fails(capsys, *arguments)
    assert code == 2
    assert message in line


def test_a_dry_run_of_inference(capsys):
    arguments = ["--inference", "--model", "bottleneck14", "--batch", "3", "--dtype", "bf16"]
    assert cli.main(["tune", "--dry-run", *arguments]) == 0
    out = capsys.readouterr().out
    assert "choices of inference on any GPU of family sm_90" in out
    # layer1's last convolution and its projection, on 3 images of 8x8: 192 rows count as 256
    shape = "bfloat16 inner 64 outer 256 rows 256 taps 1"
    assert f"\nconv_bias {shape}: cudnn\n" in out
    assert f"\nconv_bias_act {shape}: triton BLOCK_M" in out
    assert "bn_apply" not in out


def test_a_dry_run_lists_operators_shapes_and_candidates(capsys):
    assert cli.main(["tune", "--dry-run", "--model", "resnet20", "--dtype", "bf16", "fp16"]) == 0
    out = capsys.readouterr().out
    assert "choices of a training step on any GPU of family sm_90" in out
    for dtype in ("bfloat16", "float16"):
        assert f"\nbn_apply {dtype}  " in out
        assert f"\nconv3x3 {dtype} inner 16 outer 16: triton BLOCK_M" in out

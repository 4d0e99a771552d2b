"""The folder of a run: one run at a time, and a clear word where it cannot be written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from training_runs import COMMAND, assert_same_run, tiny_config, tiny_trainer

from fastres import cli
from fastres.training import checkpoint, folder
from fastres.training.distributed import World
from fastres.training.errors import Stopped, TrainingError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def forked(work: Callable[[], object]) -> int:
    """Exit code of a forked process: 0 where `work` returned, else that of what it raised."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        except TrainingError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def take(path) -> None:
    with folder.hold_folder(path, World()):
        pass


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends(tmp_path):
    with folder.hold_folder(tmp_path, World()):
        assert forked(lambda: take(tmp_path)) == UsageError.exit_code
        assert (tmp_path / folder.LOCK).read_text().startswith(f"process {os.getpid()} on ")
    assert forked(lambda: take(tmp_path)) == 0


def test_the_command_refuses_a_folder_in_use_and_leaves_it_alone(tmp_path, capfd):
    tiny_trainer(tiny_config(tmp_path, epochs=1, milestones=None)).run()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    arguments = [*COMMAND, "--resume", "auto", "--out", str(tmp_path)]
    with folder.hold_folder(tmp_path, World()):
        child = os.fork()
        if child == 0:
            os._exit(cli.main(arguments))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    error = capfd.readouterr().err
    assert f"{tmp_path} is in use by another run (process {os.getpid()} on " in error
    assert "wait for it, end it, or choose another out" in error
    assert before == {
        path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != folder.LOCK
    }


def test_a_killed_run_leaves_no_lock_even_while_its_workers_live(tmp_path):
    """The regression: a lock that workers inherit lasts until they notice their parent's death."""
    program = (
        "import os, sys, pathlib; from fastres.training import folder, distributed\n"
        "with folder.hold_folder(pathlib.Path(sys.argv[1]), distributed.World()):\n"
        "    if os.fork() == 0: os.read(0, 1); os._exit(0)\n"
        "    os.write(1, b'x'); os.kill(os.getpid(), 9)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.wait(timeout=60) == -signal.SIGKILL
    try:
        take(tmp_path)
    finally:
        process.stdin.close()  # the child reads the end, and ends
        process.stdout.close()


def test_what_a_kill_inside_a_save_left_is_removed(tmp_path):
    left = [checkpoint.temporary_of(tmp_path / name) for name in ("last.pt", "best.pt")]
    for path in left:
        path.write_bytes(b"half")
    take(tmp_path)
    assert not any(path.exists() for path in left)


def test_a_file_in_place_of_the_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main([*COMMAND, "--out", str(tmp_path / "file" / "run")]) == 1
    assert "cannot make the folder" in capsys.readouterr().err
    with pytest.raises(TrainingError, match=r"cannot write .*\.lock: Not a directory"):
        take(tmp_path / "file")


def test_a_folder_that_may_not_be_written(tmp_path, capfd):
    """As another user, where this one is root, whom nothing is forbidden."""
    trainer = tiny_trainer(tiny_config(tmp_path, epochs=1, milestones=None))
    trainer.run()
    state = checkpoint.load(tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    tmp_path.chmod(0o555)

    def attempt(work: Callable[[], object]) -> None:
        if os.geteuid() == 0:
            os.seteuid(65534)
        try:
            work()
        except TrainingError as error:
            print(error, file=sys.stderr, flush=True)
            raise

    try:
        saved = lambda: checkpoint.save(tmp_path / "last.pt", state)  # noqa: E731
        assert forked(lambda: attempt(saved)) == 1
        assert "last.pt: Permission denied" in capfd.readouterr().err
        assert forked(lambda: attempt(lambda: take(tmp_path))) == 1
        assert "cannot write" in capfd.readouterr().err
    finally:
        tmp_path.chmod(0o755)
    assert (tmp_path / "last.pt").read_bytes() == before


def test_a_run_that_found_no_room_goes_on_where_there_is_some(tmp_path):
    """A file size limit, which is real where a full disk cannot be had: EFBIG from write()."""
    tiny_trainer(tiny_config(tmp_path / "whole", epochs=3, milestones=None)).run()
    config = tiny_config(tmp_path / "run", epochs=3, milestones=None)
    first = tiny_trainer(config)
    first.total = first.steps_per_epoch  # as if it had ended after an epoch
    first.run()
    last = tmp_path / "run" / "last.pt"
    before = last.read_bytes()
    trainer = tiny_trainer(config)
    trainer.resume(last)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(TrainingError, match="File too large; the last good one is kept"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert last.read_bytes() == before
    again = tiny_trainer(config)
    again.resume(last)
    again.run()
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 1 MiB in memory: two checkpoints and a half fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*mount, f"mount -t tmpfs -o size=1m none {disk}"], capture_output=True
        ).returncode
    ):
        pytest.skip("needs a user namespace that may mount a tmpfs")
    program = (
        "import sys, torch, pathlib\n"
        "from fastres.training import checkpoint\n"
        "from fastres.training.errors import TrainingError\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "state = dict.fromkeys(checkpoint._KEYS)\n"
        "good = {**state, 'model': torch.arange(100_000)}\n"  # 800 kB, so not a second one
        "checkpoint.save(folder / 'last.pt', good)\n"
        "try:\n"
        "    checkpoint.save(folder / 'last.pt', {**state, 'model': torch.zeros(100_000)})\n"
        "except TrainingError as error:\n"
        "    print(error)\n"
        "assert torch.equal(checkpoint.load(folder / 'last.pt')['model'], good['model'])\n"
        "print([path.name for path in folder.iterdir()])\n"
    )
    script = f'mount -t tmpfs -o size=1m none {disk} && "$0" -c "$1" {disk}'
    done = subprocess.run(
        [*mount, script, sys.executable, program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.splitlines()
    assert message == (
        f"cannot write the checkpoint {disk / 'last.pt'}: No space left on device; "
        "the last good one is kept"
    )
    assert left == "['last.pt']"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_signal_inside_a_save_ends_the_run_after_it(tmp_path, monkeypatch, moment, signum):
    real, times = getattr(os, moment), []

    def interrupted(*arguments):
        times.append(moment)
        if len(times) == 3:
            os.kill(os.getpid(), signum)
        return real(*arguments)

    trainer = tiny_trainer(tiny_config(tmp_path / "run", save_every=2))
    monkeypatch.setattr(checkpoint.os, moment, interrupted)
    with pytest.raises(Stopped, match=f"stopped by {signum.name} .* go on with --resume auto"):
        trainer.run()
    monkeypatch.undo()
    done = checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["iteration"]
    assert done == trainer.progress.iteration > 0
    again = tiny_trainer(tiny_config(tmp_path / "run", save_every=2))
    again.resume(tmp_path / "run" / "last.pt")
    again.run()
    tiny_trainer(tiny_config(tmp_path / "whole", save_every=2)).run()
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_folder_is_synced_after_the_rename(tmp_path, monkeypatch):
    """Or a power failure could undo it."""
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def noted(*arguments, _name=name, _real=real):
            inside = isinstance(arguments[0], int) and os.readlink(
                f"/proc/self/fd/{arguments[0]}"
            ) == str(tmp_path)
            order.append(f"{_name} folder" if inside else _name)
            return _real(*arguments)

        monkeypatch.setattr(checkpoint.os, name, noted)
    checkpoint.save(tmp_path / "last.pt", {"model": torch.zeros(1)})
    assert order == ["fsync", "replace", "fsync folder"]

"""Faults: whatever happens, the results in the end are those of an undisturbed run."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_runs import answers, rows, run, table_model, write_csv

import crosscoding as cc
from crosscoding.batch import StoppedError
from crosscoding.batch import folder as folders
from crosscoding.batch import worker as workers

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

SOURCE = str(Path(cc.__file__).parents[1])


@pytest.fixture(scope="module")
def vae():
    return table_model()


@pytest.fixture
def csv(tmp_path):
    return write_csv(tmp_path / "rows.csv", rows(40))


def test_sigterm_stops_after_the_shard_at_hand_and_the_next_run_goes_on(tmp_path, vae, csv):
    def stop(progress):
        if progress.rows == 20:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    stopped = run(vae, csv, tmp_path / "out", on_progress=stop)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (stopped.complete, stopped.interrupted, stopped.answered) == (False, False, 20)
    assert not stopped.manifest["complete"]
    resumed = run(vae, csv, tmp_path / "out")
    assert resumed.manifest == run(vae, csv, tmp_path / "whole").manifest


@pytest.mark.parametrize("grace", [0.0, 60.0])
def test_the_shard_at_hand_gets_the_grace_time(tmp_path, vae, csv, monkeypatch, grace):
    """Slow work, which reports once in a while as a method does, when SIGTERM comes."""
    original = workers.answers_to

    def slow(vae, rows, settings, max_bytes, report):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(20):
            time.sleep(0.02)
            report(0.5, "")
        return original(vae, rows, settings, max_bytes, report)

    monkeypatch.setattr(workers, "answers_to", slow)
    stopped = run(vae, csv, tmp_path / "out", grace=grace)
    assert stopped.answered == (10 if grace else 0)


def test_ctrl_c_stops_at_once(tmp_path, vae, csv, monkeypatch):
    original = workers.answers_to

    def interrupted(vae, rows, settings, max_bytes, report):
        if rows.numbers[0] == 10:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            report(0.5, "")
        return original(vae, rows, settings, max_bytes, report)

    monkeypatch.setattr(workers, "answers_to", interrupted)
    stopped = run(vae, csv, tmp_path / "out")
    assert (stopped.complete, stopped.interrupted, stopped.answered) == (False, True, 10)


def test_a_full_disk_is_said_and_the_next_run_goes_on(tmp_path, vae, csv, monkeypatch):
    synced = os.fsync
    num = iter(range(100))

    def full(handle):
        if next(num) == 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(handle)

    monkeypatch.setattr(folders.os, "fsync", full)
    with pytest.raises(StoppedError, match=r"no space .* finished shards are kept: free some"):
        run(vae, csv, tmp_path / "out")
    monkeypatch.undo()
    left = [path.name for path in tmp_path.joinpath("out").rglob(".tmp-*")]
    assert left == []
    assert run(vae, csv, tmp_path / "out").manifest == run(vae, csv, tmp_path / "whole").manifest


def test_leftovers_of_killed_writers_are_removed(tmp_path, vae, csv):
    run(vae, csv, tmp_path / "out")
    (tmp_path / "out" / "shards" / ".tmp-1").write_text("half a sh")
    (tmp_path / "out" / "records" / ".tmp-2").mkdir()
    (tmp_path / "out" / ".stop").write_text("now")
    assert run(vae, csv, tmp_path / "out").complete
    assert not list((tmp_path / "out").rglob(".tmp-*"))
    assert not (tmp_path / "out" / ".stop").exists()


def test_clocks_that_jump_do_not_matter(tmp_path, vae, csv, monkeypatch):
    jumps = iter([1e9, -1e9] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    seen = []
    assert run(vae, csv, tmp_path / "out", on_progress=seen.append).complete
    assert all(now.seconds_left >= 0 for now in seen[1:])


def test_a_run_outside_the_main_thread_leaves_signals_alone(tmp_path, vae, csv):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(vae, csv, tmp_path / "out")))
    thread.start()
    thread.join()
    assert found[0].complete


# ---- processes: slow, as each of them imports torch ----------------------------------------------


@pytest.fixture
def command(tmp_path, vae):
    vae.save(tmp_path / "model")

    def start(*more):
        words = ("batch", "model", "rows.csv", "--out", "out", "--shard-rows", "5", "--json", *more)
        return subprocess.Popen(
            [sys.executable, "-m", "crosscoding", *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def lines_until(process, num):
    """Read lines of progress until so many shards are done."""
    for line in process.stdout:
        if f'"shards": {num}' in line:
            return
    raise AssertionError(process.wait())


@pytest.mark.slow
def test_a_killed_driver_is_resumed(tmp_path, vae, csv, command):
    process = command()
    lines_until(process, 2)
    process.kill()
    process.communicate()
    process = command()
    assert process.wait(120) == 0, process.communicate()
    process.communicate()
    cc.batch.run(tmp_path / "model", csv, tmp_path / "whole", shard_rows=5, progress=False)
    pd.testing.assert_frame_equal(answers(tmp_path / "out"), answers(tmp_path / "whole"))


@pytest.mark.slow
def test_killed_workers_are_replaced_and_orphans_end(tmp_path, vae, csv, command):
    process = command("--workers", "1")
    lines_until(process, 1)
    (child,) = children(process.pid)
    os.kill(child, signal.SIGKILL)
    lines_until(process, 3)
    (child,) = children(process.pid)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{child}").exists()
    process = command()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    cc.batch.run(tmp_path / "model", csv, tmp_path / "whole", shard_rows=5, progress=False)
    pd.testing.assert_frame_equal(answers(tmp_path / "out"), answers(tmp_path / "whole"))


def children(pid):
    """Worker processes of a process, without the one that tracks its shared memory."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [
        int(child) for child in found if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]


@pytest.mark.slow
def test_workers_that_always_die_end_the_run(tmp_path, vae, csv, monkeypatch):
    from crosscoding.batch import engines

    monkeypatch.setattr(engines, "_start", _die)
    with pytest.raises(StoppedError, match="workers died 3 times in a row, at one of the shards"):
        run(vae, csv, tmp_path / "out", workers=1)


def _die(job):
    os._exit(1)


@pytest.mark.slow
def test_workers_stop_on_sigterm_too(tmp_path, vae, csv, command):
    process = command("--workers", "2")
    lines_until(process, 1)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert '"complete": false' in output

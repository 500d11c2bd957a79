"""Progress rises from 0 to 1, keeps moving, and is shown only on a terminal or in a notebook."""

import io
import os
import pty
import subprocess
import sys
import threading
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from problems import linear_gaussian_problem, mirrored_vae

import crosscoding as cc
from crosscoding import progress
from crosscoding.errors import counted
from crosscoding.methods import HMC, Auto, Grid, Laplace, TemperedSMC, Variational
from crosscoding.progress import Progress, followed, in_words, silent

pytestmark = pytest.mark.usefixtures("without_closed_form")


class Listener:
    """Notes what it is told, and when."""

    def __init__(self, clock=lambda: 0.0) -> None:
        self.clock, self.shares, self.words, self.times = clock, [], [], []

    def __call__(self, share: float, what: str) -> None:
        self.shares.append(share)
        self.words.append(what)
        self.times.append(self.clock())


def test_progress_rises_with_every_report(now):
    listener = Listener()
    with followed("", listener, True) as told:
        for share in (0.0, 0.0, 0.6, 0.3, 0.0, 0.7, 2.0):
            now[0] += 1.0
            told(share, "work")
    shares = listener.shares
    assert all(a < b for a, b in pairwise(shares[:-1]))
    assert 0 < shares[0] < 0.1
    assert shares[-1] == 1.0


def test_beats_move_progress_on_but_not_to_the_end(now):
    listener = Listener()
    told = Progress(listener)
    for _ in range(1000):
        now[0] += 1.0
        told.beat()
    assert len(listener.shares) == 1000
    assert all(a < b for a, b in pairwise(listener.shares))
    assert listener.shares[-1] < 1
    now[0] += 0.1
    told.beat()
    assert len(listener.shares) == 1000  # not at every piece


def test_progress_says_about_how_long_the_rest_takes(now):
    listener = Listener()
    told = Progress(listener)
    now[0] = 10.0
    told(0.25, "halving")
    assert listener.words == ["halving, about 30 s left"]
    assert [in_words(s) for s in (0.2, 89, 600, 9000)] == ["1 s", "89 s", "10 min", "2 h"]


def test_numbers_agree_with_their_nouns():
    assert counted(1, "query", "queries") == "1 query"
    assert counted(0, "query", "queries") == "0 queries"
    assert counted(2, "draw") == "2 draws"


def several() -> tuple[cc.VAE, cc.Evidence]:
    vae = mirrored_vae(8, 16, 0.3, seed=2)
    evidence = cc.Evidence(vae.sample_prior(6, seed=102), cc.random_mask((16,), 0.7, seed=2))
    return vae, evidence[[0, 3]]


METHODS = {
    "auto": Auto(max_decodes=20_000),
    "auto in time": Auto(max_seconds=1.0),
    "laplace": Laplace(),
    "smc": TemperedSMC(num_particles=64),
    "hmc": HMC(num_warmup=20, num_draws=20),
    "variational": Variational(steps=100),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_progress_of_every_method_rises_to_1(method):
    vae, evidence = several()
    listener = Listener()
    cc.condition(vae, evidence, method, seed=0, report=listener)
    assert all(a <= b for a, b in pairwise(listener.shares))
    assert 0 <= listener.shares[0] < 0.2
    assert listener.shares[-1] == 1.0
    assert not any("1 queries" in words for words in listener.words)


def test_progress_moves_while_one_stage_decodes(monkeypatch):
    """By a clock of decodes, at least every two seconds and a piece."""
    seconds = [0.0]

    class Slow(torch.nn.Module):
        def __init__(self, decoder):
            super().__init__()
            self.decoder = decoder

        def forward(self, z):
            seconds[0] += 1e-3 * len(z)
            return self.decoder(z)

    problem = linear_gaussian_problem(8, data_dim=16, scale=0.1, batch=2)
    vae = cc.VAE(Slow(problem.vae.decoder), 8, problem.vae.likelihood)
    monkeypatch.setattr("crosscoding.target.observed_likelihood._PIECE_BYTES", 2**16)
    monkeypatch.setattr("crosscoding.model.bank._CHUNK_BYTES", 2**16)
    monkeypatch.setattr("time.perf_counter", lambda: seconds[0])
    listener = Listener(lambda: seconds[0])
    cc.condition(vae, problem.evidence, seed=0, report=listener)
    gaps = [b - a for a, b in pairwise(listener.times)]
    assert max(gaps) < 2
    assert listener.times[-1] > 5


def test_query_log_prob_and_calibrate_scale_report_progress():
    problem = linear_gaussian_problem(2, data_dim=12, scale=0.3, batch=20)
    told = []
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    for work in (
        lambda report: cc.query_log_prob(posterior, problem.truth, Grid(), seed=0, report=report),
        lambda report: cc.calibrate_scale(problem.vae, problem.truth, report=report),
    ):
        listener = Listener()
        work(listener)
        told.append(listener.shares)
    for shares in told:
        assert shares == sorted(shares)
        assert shares[-1] == 1.0


# ---- the display -------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bars(monkeypatch) -> list[str]:
    """What displays do, on a stderr that is a terminal."""
    done = []

    class Bar:
        def __init__(self, title):
            done.append(f"open {title}")

        def update(self, share, what):
            done.append(what)

        def close(self):
            done.append("close")

    monkeypatch.setattr(progress, "_OnTerminal", Bar)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=Terminal(), modules={}))
    return done


def work(now: list[float], *, report=silent, shown: bool = True) -> None:
    with followed("work", report, shown) as told:
        for step in range(5):
            now[0] += 1.0
            told(step / 5, "step")


def test_progress_is_shown_once_work_has_taken_two_seconds(now, bars):
    work(now)
    assert bars[0] == "open work"
    assert bars[-1] == "close"
    assert len(bars) == 6  # steps 2 to 5


def test_progress_is_not_shown_where_it_is_not_wanted(now, bars, monkeypatch):
    work(now, shown=False)
    work(now, report=lambda share, what: None)
    thread = threading.Thread(target=work, args=(now,))
    thread.start()
    thread.join()
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    work(now)
    monkeypatch.setattr(progress.sys, "stderr", None)
    work(now)
    assert bars == []


def test_work_within_work_is_shown_once_and_an_error_closes_it(now, bars):
    def fail() -> None:
        with followed("outer", silent, True) as told:
            now[0] += 3.0
            told(0.1, "outside")
            work(now)
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        fail()
    assert [word for word in bars if word.startswith("open")] == ["open outer"]
    assert bars[-1] == "close"
    work(now)
    assert bars[-1] == "close"
    assert bars.count("open work") == 1


SCRIPT = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("progress", {progress.__file__!r})
progress = importlib.util.module_from_spec(spec)
spec.loader.exec_module(progress)
with progress.followed("working", progress.silent, True) as told:
    told(0.1, "first [/]")
    time.sleep(2.1)
    told(0.5, "half")
    time.sleep(0.3)
print("done")
"""


@pytest.mark.slow
def test_a_terminal_sees_a_bar_and_a_pipe_does_not():
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    piped = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=True
    )
    assert piped.stderr == ""
    assert piped.stdout == "done\n"
    leader, follower = pty.openpty()
    shown = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
        timeout=60,
        check=True,
        env=environment,
    )
    os.close(follower)
    written = os.read(leader, 100_000).decode()
    os.close(leader)
    assert shown.stdout == "done\n"
    assert "working" in written
    assert "half" in written


def test_a_progress_of_ones_own_hears_of_every_piece_of_work_and_may_end_it():
    class Ended(Exception):  # noqa: N818
        pass

    class Watch(Progress):
        beats = 0

        def beat(self) -> None:
            self.beats += 1
            if self.beats == 5:
                raise Ended
            super().beat()

    problem, watch = linear_gaussian_problem(), Watch(silent)
    with pytest.raises(Ended):
        cc.condition(problem.vae, problem.evidence, Auto(), seed=0, report=watch)
    assert watch.beats == 5

"""Memory is bounded: that of a piece, and the peak of a process that works on large pictures."""

import subprocess
import sys

import pytest
import torch
from problems import linear_gaussian_problem, seeded
from torch import nn

import crosscoding as cc


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_jacobian_that_is_too_large_is_computed_by_columns(share, monkeypatch):
    decoder = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 30)).double()
    vae = cc.VAE(decoder, 6, cc.likelihoods.Gaussian(0.3))
    data = vae.sample_prior(4, seed=0)
    target = cc.VAETarget(vae, cc.Evidence(data, cc.random_mask((30,), share, seed=0))).prepare()
    z = torch.randn(3, 4, 6, generator=seeded(1), dtype=torch.double)
    whole = target.curvature(z)
    monkeypatch.setattr("crosscoding.target.vae_target._JACOBIAN_BYTES", 1)
    # Differences: about 1e-9 of the largest in double.
    torch.testing.assert_close(target.curvature(z), whole, rtol=1e-6, atol=1e-6)


def test_a_wide_layer_counts_in_the_memory_of_a_row():
    wide = nn.Sequential(nn.Linear(2, 3000), nn.Tanh(), nn.Linear(3000, 5))
    assert cc.VAE(wide, 2, cc.likelihoods.Gaussian(0.1)).row_values >= 2000
    assert linear_gaussian_problem(2, data_dim=500).vae.row_values == 500


PEAK = """
import sys, torch, crosscoding as cc
torch.set_num_threads(int(sys.argv[1]))
from torch import nn
decoder = nn.Sequential(
    nn.Linear(16, 8 * 64), nn.Unflatten(1, (8, 8, 8)), nn.Conv2d(8, 16, 3, padding=1), nn.SiLU(),
    nn.Upsample(scale_factor=8), nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(),
    nn.Upsample(scale_factor=4), nn.Conv2d(16, 3, 3, padding=1),
)
vae = cc.VAE(decoder, 16, cc.likelihoods.Gaussian(0.1))
evidence = cc.Evidence(vae.sample_prior(1, seed=0), cc.random_mask((3, 256, 256), 0.6, seed=0))
def peak():
    words = [line.split() for line in open("/proc/self/status")]
    return next(int(word[1]) for word in words if word[0] == "VmHWM:") / 2**20
before = peak()
methods = cc.methods
method = {
    "laplace": methods.Laplace(num_starts=2, steps=2, num_fresh=30),
    "hmc": methods.HMC(num_chains=16, num_warmup=1, num_draws=4, num_leapfrog=1),
    "smc": methods.TemperedSMC(num_particles=16, num_islands=2, num_moves=1, num_leapfrog=1),
    "auto": methods.Auto(max_seconds=3.0, num_draws=50),
}[sys.argv[2]]
posterior = cc.condition(vae, evidence, method, seed=0, max_bytes=int(sys.argv[3]))
answer = posterior.predict(30).nbytes / 2**30
posterior.std()
print(peak() - before - cc.Bank.of(vae).num_bytes / 2**30 - answer)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("method", "threads", "max_bytes"),
    [("laplace", 1, 2**27), ("smc", 1, 2**27), ("hmc", 1, 2**28), ("auto", 2, 2**29)],
)
@pytest.mark.slow
def test_peak_memory_on_large_pictures_stays_within_its_bound(method, threads, max_bytes):
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(threads), method, str(max_bytes)],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert float(done.stdout) < 1.5 * max_bytes / 2**30

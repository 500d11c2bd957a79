"""The conditional VAE that the paper argues against, and its comparison."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crosscoding.experiments import conditional_vae
from crosscoding.experiments.experiment import Context, UnavailableError
from crosscoding.experiments.figures import cvae_comparison
from crosscoding.experiments.recorded_runs import run


@pytest.fixture(scope="module")
def trained():
    """Data of four elements, x being the first two: y repeats x in nine of ten cases."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(4000, 2, generator=generator) < 0.5).float()
    flip = (torch.rand(4000, 2, generator=generator) < 0.1).float()
    data = torch.cat([x, (x - flip).abs()], -1)
    mask = torch.tensor([True, True, False, False])
    recipe = conditional_vae.CVAERecipe(
        16, latent_dim=2, epochs=40, batch_size=100, learning_rate=0.01
    )
    return conditional_vae.train(data, mask, recipe, seed=0), data


def test_a_conditional_vae_learns_the_conditional_distribution(trained):
    model, data = trained
    found = conditional_vae.log_prob(model, data, 100, seed=1).mean().item()
    entropy = -2 * (0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    # The best possible is 0.65 nats; allows 0.1 for the short training, 0.02 for 4,000 data.
    assert -entropy - 0.1 < found < -entropy + 0.02


def test_more_draws_give_a_tighter_bound(trained):
    model, data = trained
    one, many = (conditional_vae.log_prob(model, data, num, seed=1).mean() for num in (1, 200))
    assert many >= one - 0.01


def test_the_same_seed_trains_the_same_model():
    data = (torch.rand(300, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    mask = torch.tensor([True, False, False, True])
    recipe = conditional_vae.CVAERecipe(hidden=4, latent_dim=1, epochs=1)
    first, second = (conditional_vae.train(data, mask, recipe, seed=3) for _ in range(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
def test_the_comparison_is_written_for_every_model_and_split(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", train_images=images, test_images=images)
    settings = cvae_comparison.Settings(
        cases=(("mnist-2d", "quarter"), ("mnist-2d", "pixels")),
        epochs=1,
        num_train=40,
        num_test=3,
        num_draws=10,
    )
    context = Context(tmp_path / "out", data=tmp_path)
    context.folder.mkdir()
    record, _ = run(replace(cvae_comparison.CVAE, full=settings), context)
    rows = record["numbers"]["rows"]
    assert [(row["model"], row["split"]) for row in rows] == [
        ("mnist-2d", "quarter"),
        ("mnist-2d", "pixels"),
    ]
    for row in rows:
        assert len(row["cvae"]["log_prob"]) == len(row["auto"]["log_prob"]) == 3
        assert row["cvae"]["training_seconds"] > 0
    assert "cvae.png" in record["files"]
    with pytest.raises(UnavailableError, match=r"mnist\.npz"):
        run(cvae_comparison.CVAE, Context(tmp_path / "out2"))

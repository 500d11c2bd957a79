"""A loaded posterior continues where it was saved, with its own model or the same one passed."""

import pytest
import torch
from cheap_methods import LISTED, every_method
from problems import linear_gaussian_problem, mirrored_problem, mixture_target, seeded
from torch import nn

import crosscoding as cc
from crosscoding.crosscoders import FCN, Gaussian, Mixture, Planar
from crosscoding.methods import Grid, Rejection, Variational

pytestmark = pytest.mark.usefixtures("short_start")


def assert_same_posterior(first, second, truth):
    names = ("log_evidence", "log_evidence_error", "c_elbo", "c_elbo_error", "ess", "draws")
    for name in (*names, "pareto_k"):
        torch.testing.assert_close(
            getattr(second, name), getattr(first, name), rtol=0, atol=0, equal_nan=True
        )
    assert first.stats.keys() == second.stats.keys()
    for name, value in first.stats.items():
        assert torch.equal(second.stats[name], value)
    assert (second.method, second.batch_shape) == (first.method, first.batch_shape)
    assert (second.seconds, second.bound) == (first.seconds, first.bound)
    assert torch.equal(second.sample(7), first.sample(7))  # the streams continue
    assert torch.equal(second.predict(7), first.predict(7))
    assert torch.equal(second.predict_mean(7), first.predict_mean(7))
    # Not bitwise: a product of matrices rounds by how they lie in memory, which is not saved.
    torch.testing.assert_close(second.mean(), first.mean())
    torch.testing.assert_close(second.std(), first.std())
    torch.testing.assert_close(second.query_log_prob(truth), first.query_log_prob(truth))


@every_method
@pytest.mark.parametrize("batch", [(), (2, 2)], ids=["none", "2x2"])
@pytest.mark.slow
def test_a_saved_posterior_continues_where_it_stopped(method, batch, tmp_path):
    problem = linear_gaussian_problem(2, data_dim=6, scale=1.0, batch=batch)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    posterior.sample(3)  # in the middle of its stream
    posterior.save(tmp_path / "saved")
    assert_same_posterior(posterior, cc.Posterior.load(tmp_path / "saved"), problem.truth)


@pytest.mark.parametrize(
    "crosscoder",
    [Gaussian(), Gaussian(rank=1), Planar(3, affine=False), FCN((5,)), FCN((4, 3)), Mixture(3)],
    ids=repr,
)
def test_a_saved_fit_keeps_its_settings(problem, crosscoder, tmp_path):
    method = Variational(crosscoder, steps=5, num_fresh=20)
    posterior = cc.condition(problem.vae, problem.evidence, method, seed=0)
    posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    assert torch.equal(loaded.sample(5, seed=1), posterior.sample(5, seed=1))
    if crosscoder.has_density:
        z = torch.randn(4, 3, 2, generator=seeded(0))
        assert torch.equal(loaded.log_prob(z), posterior.log_prob(z))


def test_a_posterior_of_a_zoo_model_needs_no_vae_to_load(digit_posterior, tmp_path):
    digit_posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    assert loaded.predict(2).shape == (2, 2, 28, 28)
    assert torch.equal(loaded.predict(3, seed=1), digit_posterior.predict(3, seed=1))


def test_an_empty_batch_can_be_saved(problem, tmp_path):
    posterior = cc.condition(problem.vae, problem.evidence[:0], Grid(), seed=0)
    posterior.save(tmp_path / "saved")
    assert cc.Posterior.load(tmp_path / "saved").predict(2).shape == (2, 0, 6)


DECODERS = {
    "one layer": nn.Linear(2, 6),
    "nested": nn.Sequential(nn.Sequential(nn.Linear(2, 4), nn.Tanh()), nn.Linear(4, 6)),
    "convolutions": nn.Sequential(
        nn.Linear(2, 8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 3, 4, 2, 1),
        nn.BatchNorm2d(3), nn.LeakyReLU(0.1), nn.Conv2d(3, 1, 3, padding=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_decoders_of_common_layers_are_saved_with_the_posterior(name, dtype, tmp_path):
    decoder = DECODERS[name].to(dtype)
    with torch.no_grad():
        for index, parameter in enumerate(decoder.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=seeded(index)))
    scale = cc.likelihoods.Gaussian(torch.tensor(0.7, dtype=dtype))
    vae = cc.VAE(decoder, 2, scale)
    truth = vae.sample_prior(3, seed=0)
    mask = cc.random_mask(vae.data_shape, 0.5, seed=0)
    posterior = cc.condition(vae, cc.Evidence(truth, mask), Rejection(20), seed=0)
    posterior.save(tmp_path / "saved")
    assert_same_posterior(posterior, cc.Posterior.load(tmp_path / "saved"), truth)


def test_a_decoder_of_a_users_class_is_passed_to_load(tmp_path):
    problem = mirrored_problem()
    posterior = cc.condition(problem.vae, problem.evidence, Rejection(20), seed=0)
    with pytest.warns(
        UserWarning, match=r"is not saved with .* Posterior.load\(path, vae"
    ) as caught:
        posterior.save(tmp_path / "saved")
    assert caught[0].filename == __file__
    without = cc.Posterior.load(tmp_path / "saved")
    assert torch.equal(without.sample(5, seed=0), posterior.sample(5, seed=0))
    for ask in (without.mean, lambda: without.predict(1)):
        with pytest.raises(ValueError, match=r"pass it: Posterior.load\(path, vae=...\)"):
            ask()
    within = cc.Posterior.load(tmp_path / "saved", vae=problem.vae)
    assert_same_posterior(posterior, within, problem.truth)


@pytest.mark.filterwarnings("ignore:the decoder is not a stack")
def test_a_grids_density_needs_its_model(tmp_path):
    problem = mirrored_problem()
    posterior = cc.condition(problem.vae, problem.evidence, Grid(), seed=0)
    posterior.save(tmp_path / "saved")
    z = torch.zeros(4, 2)
    with pytest.raises(NotImplementedError):
        cc.Posterior.load(tmp_path / "saved").log_prob(z)
    loaded = cc.Posterior.load(tmp_path / "saved", vae=problem.vae)
    assert torch.equal(loaded.log_prob(z), posterior.log_prob(z))


class Shifted(nn.Module):
    """Another decoder with the same weights."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, z):
        return self.decoder(z) + 0.1


@pytest.mark.filterwarnings("ignore:the decoder is not a stack")
def test_a_model_that_the_evidence_does_not_fit_is_refused(tmp_path):
    problem = mirrored_problem()
    cc.condition(problem.vae, problem.evidence, Rejection(20), seed=0).save(tmp_path / "saved")
    other = linear_gaussian_problem(2, data_dim=9).vae
    with pytest.raises(cc.ModelFormatError, match=r"the model that .* expected evidence of shape"):
        cc.Posterior.load(tmp_path / "saved", vae=other)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda vae: cc.VAE(Shifted(vae.decoder), 2, vae.likelihood), "expected the model that"),
        (lambda vae: cc.VAE(vae.decoder, 2, cc.likelihoods.Gaussian(9.0)), "the likelihood that"),
    ],
    ids=["outputs", "likelihood"],
)
def test_another_model_of_the_same_shapes_is_refused(problem, exact, other, said, tmp_path):
    exact.save(tmp_path / "saved")
    with pytest.raises(cc.ModelFormatError, match=said):
        cc.Posterior.load(tmp_path / "saved", vae=other(problem.vae))


def test_a_posterior_of_a_bare_density_is_saved_without_a_model(tmp_path):
    posterior = cc.infer(mixture_target(), LISTED["nf"], seed=0)
    posterior.save(tmp_path / "saved")
    loaded = cc.Posterior.load(tmp_path / "saved")
    assert torch.equal(loaded.sample(5), posterior.sample(5))
    z = torch.zeros(4, 2)
    assert torch.equal(loaded.log_prob(z), posterior.log_prob(z))


def test_loading_leaves_torchs_global_random_state_alone(exact, tmp_path):
    exact.save(tmp_path / "saved")
    before = torch.random.get_rng_state()
    cc.Posterior.load(tmp_path / "saved").predict(2)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_saving_again_replaces_what_was_saved(problem, exact, tmp_path):
    cc.condition(problem.vae, problem.evidence, LISTED["rejection"], seed=0).save(tmp_path / "a")
    exact.save(tmp_path / "a")
    assert cc.Posterior.load(tmp_path / "a").method == "Grid"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_something_else_is_never_overwritten(exact, tmp_path):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter").write_text("all of it")
    with pytest.raises(ValueError, match="expected a new folder or a saved posterior at"):
        exact.save(folder)
    model = tmp_path / "model"
    model.mkdir()
    (model / "description.json").write_text('{"kind": "vae"}')
    with pytest.raises(ValueError, match="expected a new folder or a saved posterior at"):
        exact.save(model)
    assert [path.name for path in folder.iterdir()] == ["chapter"]
    assert [path.name for path in model.iterdir()] == ["description.json"]


def test_a_path_that_cannot_be_written_to_is_named_and_not_changed(exact, tmp_path):
    file = tmp_path / "file"
    file.write_text("here")
    with pytest.raises(ValueError, match=r"cannot write to|something else"):
        exact.save(file / "below" / "saved")
    with pytest.raises(ValueError, match="something else"):
        exact.save(file)
    assert file.read_text() == "here"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_save_leaves_the_old_one_intact(exact, tmp_path, monkeypatch):
    def full_disk(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    exact.save(tmp_path / "old")
    before = exact.sample(3, seed=0)
    monkeypatch.setattr("crosscoding.persistence.folder.save_file", full_disk)
    for name in ("old", "new"):
        with pytest.raises((OSError, ValueError), match="No space left on device"):
            exact.save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert torch.equal(cc.Posterior.load(tmp_path / "old").sample(3, seed=0), before)


def test_a_posterior_works_with_the_loaded_model_of_a_decoder_saved_by_its_weights(
    tmp_path,
):
    vae = cc.VAE(Shifted(nn.Linear(2, 5)), 2, cc.likelihoods.Gaussian(0.5))
    posterior = cc.condition(vae, cc.Evidence(torch.ones(5), torch.arange(5) < 2), Grid(), seed=0)
    with pytest.warns(UserWarning, match="only the weights of the"):
        vae.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="is not saved with the posterior"):
        posterior.save(tmp_path / "saved")
    again = cc.load_vae(tmp_path / "model", decoder=Shifted(nn.Linear(2, 5)))
    loaded = cc.Posterior.load(tmp_path / "saved", vae=again)
    assert torch.equal(loaded.predict(4, seed=1), posterior.predict(4, seed=1))

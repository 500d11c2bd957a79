"""Models of pythae: decoded and evaluated as by pythae, refused if the prior is another."""

import pytest
import torch
from problems import seeded

import crosscoding as cc
from crosscoding.adapters import from_pythae
from crosscoding.adapters.pythae import (
    _OTHER_POSTERIORS,
    _OTHER_PRIORS,
    _STANDARD,
    _WITHOUT_LIKELIHOOD,
)
from crosscoding.likelihoods import Bernoulli, Gaussian
from crosscoding.methods import Auto, Grid, Variational

models = pytest.importorskip("pythae.models", reason="needs the extra `pythae`")
from pythae.data.datasets import DatasetOutput  # noqa: E402 (after the skip)

SHAPE = (1, 8, 8)
SETTINGS = {"VAMP": {"number_components": 2}}


def model_of(kind: str, **settings):
    """An untrained model of this class with two latent dimensions, the same at every call."""
    config = getattr(models, f"{kind}Config", None) or getattr(models, f"{kind}_Config")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        settings = SETTINGS.get(kind, {}) | settings
        return getattr(models, kind)(config(input_dim=SHAPE, latent_dim=2, **settings)).eval()


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.rand(3, *SHAPE, generator=seeded(2))


def test_every_model_of_pythae_has_a_row():
    listed = {*_STANDARD, *_WITHOUT_LIKELIHOOD, *_OTHER_PRIORS}
    kinds = {name for name in models.__all__ if isinstance(getattr(models, name), type)}
    kinds = {name for name in kinds if issubclass(getattr(models, name), models.BaseAE)}
    assert listed == kinds - {"BaseAE"}


@pytest.mark.parametrize("kind", _STANDARD)
def test_a_model_decodes_as_itself(kind):
    model = model_of(kind)
    vae = from_pythae(model)
    z = torch.randn(4, 2, generator=seeded(0))
    assert (vae.latent_dim, vae.data_shape) == (2, SHAPE)
    torch.testing.assert_close(vae.decode(z), model.decoder(z).reconstruction)
    assert all(weight.requires_grad for weight in model.decoder.parameters())


@pytest.mark.parametrize("kind", ["VAE", "BetaVAE", "INFOVAE_MMD", "VAE_LinNF"])
@pytest.mark.parametrize(("loss", "likelihood"), [("mse", Gaussian), ("bce", Bernoulli)])
def test_the_likelihood_is_what_the_loss_is_up_to_a_constant(kind, loss, likelihood, pictures):
    model = model_of(kind, reconstruction_loss=loss)
    vae = from_pythae(model)
    outputs = [model(DatasetOutput(data=picture[None])) for picture in pictures]  # a mean of one
    theirs = torch.stack([output.recon_loss for output in outputs])
    decoded = torch.cat([output.recon_x for output in outputs]).reshape(3, -1)
    observed = torch.ones(3, 64, dtype=torch.bool)
    ours = -vae.flat_likelihood.masked_log_prob(decoded, pictures.flatten(1), observed)
    assert isinstance(vae.likelihood, likelihood)
    torch.testing.assert_close(ours - ours.mean(), theirs - theirs.mean())


@pytest.mark.parametrize("loss", ["mse", "bce"])
def test_log_evidence_is_what_pythae_estimates(loss, pictures):
    model = model_of("VAE", reconstruction_loss=loss)
    whole = cc.Evidence(pictures[:1], torch.ones(SHAPE, dtype=torch.bool))
    posterior = cc.condition(from_pythae(model), whole, Grid(), seed=0)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        theirs = model.get_nll(pictures[:1], n_samples=2000, batch_size=2000)  # which is log p(x)
    # Untrained, p(z|x) is close to the prior and to q: the log weights of 2,000 draws spread by
    # less than 1, so the standard error is below 0.03.
    assert posterior.log_evidence.item() == pytest.approx(theirs, abs=0.1)


@pytest.mark.parametrize("method", [Auto(), Variational(steps=50)])
def test_a_trained_models_queries_are_answered(pictures, method):
    model = model_of("VAE")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(20):
            optimizer.zero_grad()
            model(DatasetOutput(data=pictures)).loss.backward()
            optimizer.step()
    vae = from_pythae(model)
    evidence = cc.Evidence(pictures, cc.rectangle_mask((8, 8), rows=(0, 3)))
    posterior = cc.condition(vae, evidence, method, seed=0)
    assert posterior.predict(4).shape == (4, 3, *SHAPE)
    assert vae.head is not None  # only rows of observed pixels of its last layer are run


GAUSSIAN = sorted({*_STANDARD, *_WITHOUT_LIKELIHOOD} - {*_OTHER_POSTERIORS})


@pytest.mark.parametrize("kind", GAUSSIAN)
def test_an_encoder_outputs_its_models_posterior(kind, pictures):
    """The model draws z = mean + deviation ε; both are right if the draws match."""
    model, drawn = model_of(kind), []

    def sample_gauss(mean, std):
        drawn.append((mean, std))
        return mean, torch.zeros_like(mean)

    model._sample_gauss = sample_gauss
    vae = from_pythae(model, likelihood=Gaussian(1.0))
    with torch.no_grad():
        model(DatasetOutput(data=pictures[:1].expand(4, *SHAPE)))
    for mine, theirs in zip(vae.encode(pictures[0]), drawn[0], strict=True):
        wanted = theirs.reshape(-1, 2)[0]  # of all pictures, and several draws of each, one
        torch.testing.assert_close(mine, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", _OTHER_POSTERIORS)
def test_an_encoder_of_another_posterior_is_left_out(kind):
    assert from_pythae(model_of(kind), likelihood=Gaussian(1.0)).encoder is None


def test_an_encoder_is_left_out_if_it_gives_a_point_or_is_not_wanted():
    model = model_of("Adversarial_AE", deterministic_posterior=True)
    assert from_pythae(model, likelihood=Gaussian(1.0)).encoder is None
    assert from_pythae(model_of("VAE")).encoder is not None
    assert from_pythae(model_of("VAE"), with_encoder=False).encoder is None


def test_saving_says_what_to_save_instead(tmp_path):
    with pytest.raises(ValueError, match=r"adapters made, save the library's own"):
        from_pythae(model_of("VAE")).save(tmp_path / "model")


def test_a_subclass_counts_as_its_base_class():
    class Mine(models.BetaVAE):
        pass

    class MineToo(models.VAMP):
        pass

    config = models.BetaVAEConfig(input_dim=SHAPE, latent_dim=2, beta=4.0)
    assert from_pythae(Mine(config)).latent_dim == 2
    with pytest.raises(ValueError, match="got VAMP"):
        from_pythae(MineToo(models.VAMPConfig(input_dim=SHAPE, latent_dim=2)))


@pytest.mark.parametrize(("kind", "prior"), _OTHER_PRIORS.items())
def test_a_model_with_another_prior_is_refused(kind, prior):
    with pytest.raises(ValueError, match=rf"prior N\(0, I\), got {kind}, which has {prior}"):
        from_pythae(model_of(kind), likelihood=Gaussian(1.0))


@pytest.mark.parametrize("kind", _WITHOUT_LIKELIHOOD)
def test_a_model_without_a_likelihood_has_to_be_given_one(kind):
    model = model_of(kind)
    with pytest.raises(ValueError, match=f"expected a likelihood for {kind}, which is trained"):
        from_pythae(model)
    assert from_pythae(model, likelihood=Gaussian(0.2)).likelihood.scale == 0.2


def test_a_folder_is_refused_with_advice_to_load_it(tmp_path):
    model = model_of("VAE")
    model.save(str(tmp_path))
    with pytest.raises(TypeError, match=r"AutoModel\.load_from_folder"):
        from_pythae(tmp_path)
    again = models.AutoModel.load_from_folder(str(tmp_path))
    z = torch.randn(4, 2, generator=seeded(0))
    torch.testing.assert_close(from_pythae(again).decode(z), from_pythae(model).decode(z))


def test_another_type_is_refused():
    with pytest.raises(TypeError, match=r"expected a model of pythae\.models, got Linear"):
        from_pythae(torch.nn.Linear(2, 5))

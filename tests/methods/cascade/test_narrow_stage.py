"""Evidence that is narrow in few of many directions: `Auto` is right or not trusted."""

import pytest
import torch
from bent_problem import bent, exact_log_evidence
from torch import Tensor, nn

import crosscoding as cc

VALUES = (0.2, 1.5)


def decodes_of(posterior: cc.Posterior, name: str) -> float:
    return sum(float(stage.decodes.sum()) for stage in posterior.trace if stage.name == name)


def test_a_narrow_element_that_bends_a_little_is_trusted_and_right():
    posterior = cc.infer(bent(0.3, VALUES, latent_dim=40), seed=0)
    assert decodes_of(posterior, "narrow") > 0
    assert posterior.trusted.all()
    assert ((posterior.log_evidence - exact_log_evidence(0.3, VALUES)).abs() < 0.1).all()


@pytest.mark.slow
@pytest.mark.parametrize(("bend", "folded"), [(0.0, True), (1.0, False), (1.0, True)])
def test_narrow_elements_that_bend_or_fold_are_right_or_not_trusted(bend, folded):
    posterior = cc.infer(bent(bend, VALUES, folded=folded, latent_dim=40), seed=1)
    gap = (posterior.log_evidence - exact_log_evidence(bend, VALUES, folded=folded)).abs()
    assert ((gap < 0.12) | ~posterior.trusted).all()


@pytest.mark.slow
def test_the_answer_of_a_query_does_not_depend_on_others():
    both = cc.infer(bent(0.3, VALUES, latent_dim=40), seed=0)
    alone = cc.infer(bent(0.3, VALUES[1:], latent_dim=40), seed=0)
    assert (both.log_evidence[1] - alone.log_evidence[0]).abs() < 1e-3


class Overflowing(nn.Module):
    """(eᶻ¹, exp exp 4 z₂, z₃): the gradient is NaN where the second overflows."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.stack([z[..., 0].exp(), (4 * z[..., 1]).exp().exp(), z[..., 2]], -1)


@pytest.mark.filterwarnings("ignore:the decoder outputs inf")
def test_gradients_that_are_nan_in_some_planes_are_no_error():
    vae = cc.VAE(Overflowing(), 40, cc.likelihoods.Gaussian(0.01))
    data = torch.tensor([[0.5, 5.0, 0.1]])
    posterior = cc.condition(vae, cc.Evidence(data, torch.ones_like(data).bool()), seed=0)
    assert decodes_of(posterior, "narrow") > 0
    standard = torch.distributions.Normal(0.0, 1.0)
    z = data.clone()
    z[0, 0], z[0, 1] = data[0, 0].log(), data[0, 1].log().log() / 4
    stretch = data[0, 0].log() + (4 * data[0, 1] * data[0, 1].log()).log()
    exact = standard.log_prob(z).sum() - stretch  # of data without noise
    assert ((posterior.log_evidence - exact).abs() < 0.1).all()


def test_a_limit_of_decodes_holds():
    most = 150_000
    method = cc.methods.Auto(max_decodes=most)
    posterior = cc.infer(bent(1.0, VALUES, latent_dim=40), method, seed=0)
    assert decodes_of(posterior, "narrow") > 0
    total = torch.stack([stage.decodes for stage in posterior.trace]).sum(0)
    assert (total < 1.1 * most).all()


def test_mixtures_whose_fisher_matrices_are_quadratures_are_left_to_other_stages():
    likelihoods = cc.likelihoods
    mixture = likelihoods.Mixture(likelihoods.Gaussian(None), 2)
    assert likelihoods.Gaussian(0.5).has_cheap_fisher
    assert not mixture.has_cheap_fisher
    assert not likelihoods.Mixed([(likelihoods.Gaussian(0.5), 1), (mixture, 1)]).has_cheap_fisher

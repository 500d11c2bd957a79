"""Components of fitted Gaussians and mixtures have their densities."""

import pytest
import torch
from problems import seeded
from torch.distributions import MultivariateNormal

from crosscoding.crosscoders import Gaussian, Mixture
from crosscoding.crosscoders.base import Fitted
from crosscoding.crosscoders.gaussian_parts import gaussian_parts


@pytest.mark.parametrize(
    "family", [Gaussian(), Gaussian(rank=2), Gaussian(diagonal=True), Mixture(3)], ids=repr
)
def test_components_together_have_the_density_of_the_fit(family):
    generator = seeded(0)
    mean, scale = torch.randn(2, 4, generator=generator).double(), torch.ones(2, 4).double()
    params = family.start(mean, scale, generator=generator)
    params = {
        name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator).double()
        for name, tensor in params.items()
    }
    log_shares, means, roots = gaussian_parts(Fitted(family, params, 4))
    torch.testing.assert_close(log_shares.exp().sum(-1), torch.ones(2).double())
    z = torch.randn(5, 2, 4, generator=generator).double()
    parts = MultivariateNormal(means, scale_tril=roots).log_prob(z[:, :, None])
    found = (parts + log_shares).logsumexp(-1)
    torch.testing.assert_close(found, Fitted(family, params, 4).log_prob(z))

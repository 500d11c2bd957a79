"""Changes the coordinates of z so that the aggregate posterior has the moments of the prior.

    q(z) = mean over data of q(z|t):  mean m, covariance C,   S = mean over data of Cov q(z|t)
    z = A z' + m  with  A⁻¹ C A⁻ᵀ = I  and  A⁻¹ S A⁻ᵀ diagonal

A short training leaves the latent dimensions correlated, and draws from N(0, I) then lie where no
datum does. The map changes the coordinates but not what can be decoded: q(z') has mean 0 and
covariance I, KL[q(z') ‖ N(0, I)] is the smallest that an affine map can achieve, and the q(z'|t)
are diagonal on average, so a diagonal encoder still fits.

Source: Hoffman & Johnson (2016), ELBO surgery, for the term of the ELBO that decreases. Differs in:
they measure this term; here an affine map reduces it.
"""

import torch
from torch import Tensor, nn

_BLOCK = 250


@torch.no_grad()
def match_prior(encoder: nn.Sequential, decoder: nn.Sequential, data: Tensor) -> None:
    """Change the coordinates of z in place, in the encoder's last and the decoder's first layer.

    Reconstructions from the encoder's mean stay the same. The encoder's variances are transformed
    to first order in their differences between data.

    Args:
        encoder: In eval mode; its last layer is linear, t -> mean and log-variance of q(z|t).
        decoder: Its first layer is linear; it gets a bias if it has none.
        data: Shape (N, *data), N much larger than the latent dimension.

    Raises:
        ValueError: These layers are not linear, or N does not exceed the latent dimension.
    """
    last, first = encoder[-1], decoder[0]
    if not isinstance(last, nn.Linear) or not isinstance(first, nn.Linear):
        raise ValueError(
            "expected an encoder that ends and a decoder that begins with a linear layer, got "
            f"{type(last).__name__} and {type(first).__name__}"
        )
    if len(data) <= first.in_features:
        raise ValueError(
            f"expected more data than latent dimensions, {first.in_features}, got {len(data)}"
        )
    outputs = torch.cat([encoder(block) for block in data.split(_BLOCK)]).double()
    means, log_variances = outputs.chunk(2, dim=-1)
    variance = log_variances.exp().mean(0)
    shift, (to_old, to_new) = means.mean(0), _coordinates(torch.cov(means.mT), variance)
    share = to_new.square() * variance  # of each old variance in each new one
    new_variance = share.sum(-1)
    mix = share / new_variance[:, None]
    bias = first.weight.new_zeros(first.out_features) if first.bias is None else first.bias
    shifted = bias + (first.weight.double() @ shift).to(bias)
    first.bias = nn.Parameter(shifted)
    _replace(first.weight, first.weight.double() @ to_old)
    weights, biases = last.weight.double().chunk(2), last.bias.double().chunk(2)
    _replace(last.weight, torch.cat([to_new @ weights[0], mix @ weights[1]]))
    centred = mix @ (biases[1] - variance.log()) + new_variance.log()
    _replace(last.bias, torch.cat([to_new @ (biases[0] - shift), centred]))


def _coordinates(of_means: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """A and A⁻¹, (latent, latent), from the covariance of the means and the mean variances."""
    factor = torch.linalg.cholesky(of_means + variance.diag())
    whitened = torch.linalg.solve_triangular(factor, variance.sqrt().diag(), upper=False)
    _, rotation = torch.linalg.eigh(whitened @ whitened.mT)
    return factor @ rotation, torch.linalg.solve_triangular(factor.mT, rotation, upper=True).mT


def _replace(parameter: Tensor, values: Tensor) -> None:
    parameter.copy_(values.to(parameter))

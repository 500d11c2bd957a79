"""`amortise`: a network that proposes z for any evidence, trained on the model's own draws."""

from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from crosscoding.amortisation.networks import default_network
from crosscoding.amortisation.record import record_of
from crosscoding.amortisation.training import Limits, Training, simulated
from crosscoding.crosscoders import Crosscoder, Mixture
from crosscoding.errors import check_count
from crosscoding.isolation import isolated
from crosscoding.masks import MaskDistribution, mixed
from crosscoding.masks.distributions import Given
from crosscoding.model.amortised import Amortised, check_amortisable
from crosscoding.model.in_noise import in_noise
from crosscoding.model.plain_copy import plain_copy
from crosscoding.model.vae import VAE
from crosscoding.progress import Report, followed, silent
from crosscoding.random import generator_from

_NUM_FOR_SCALES = 4096  # draws from which the elements' scales are estimated


@isolated
def amortise(
    vae: VAE,
    masks: MaskDistribution | Tensor | None = None,
    max_seconds: float | None = 300.0,
    seed: int = 0,
    progress: bool = True,
    *,
    crosscoder: Crosscoder | None = None,
    network: nn.Module | None = None,
    max_steps: int | None = None,
    checkpoint: str | Path | None = None,
    report: Report = silent,
) -> VAE:
    """Train a network that outputs q(z|x) for any query, so that `Auto` needs no fit.

    The network is trained only on draws of the model: z from the prior, t from the decoder, and a
    mask that hides a part of t. It maximises E log q(z|x), so q covers all modes of p(z|x).
    Training ends when the budget is used up, or earlier if this bound, on held-out twins, no longer
    improves by more than its error. `print(vae.amortised.record)` shows how good the network is.

    At the end, fresh simulated twins (z*, x) measure how much of p(z|x) the proposals lack on
    average, as z* is an exact draw of it. Where they lack at most 2 % and weights are even, `Auto`
    weighs draws of the network, once 16 climbs have found no mode outside of them. Otherwise it
    answers as it would without the network: for masks or data unlike those of the twins, and in up
    to three dimensions, where the bank and the grid answer at less cost.

    Args:
        vae: The model; it is not changed.
        masks: Masks of the queries, by default `masks.mixed()`; or boolean masks of your own, of
            shape (*data,) or (M, *data), which are used equally often.
        max_seconds: Time for training, > 0; None: no limit. With a limit, the result depends on
            the machine's speed.
        seed: Int ≥ 0.
        progress: As in `condition`.
        crosscoder: The family of q(z|x): `crosscoders.Mixture(K)` or `crosscoders.Gaussian()`; by
            default a mixture of two Gaussians.
        network: A module to train in place of the default, called as network(values, mask); see
            `Amortised.of`. It is copied.
        max_steps: Largest number of training steps; None: no limit. If this is the only limit, the
            same seed gives the same network on the same machine.
        checkpoint: A folder for checkpoints, from which an interrupted training resumes.
        report: As in `condition`.

    Returns:
        The model, with the trained network as its `amortised`.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: The model has discrete latents or takes covariates, masks or network do not fit
            it, or the checkpoint is from another training.
        NonFiniteError: p(t|z) does not exist at a draw from the prior.

    Example:
        >>> import torch, crosscoding as cc
        >>> vae = cc.VAE(torch.nn.Linear(4, 8), 4, cc.likelihoods.Gaussian(0.3))
        >>> faster = cc.amortise(vae, max_steps=10, seed=0)
        >>> faster.amortised.crosscoder
        Mixture(components=2)
    """
    if not isinstance(vae, VAE):
        raise TypeError(f"expected a crosscoding.VAE, got {type(vae).__name__}")
    check_amortisable(vae)
    limits = _limits(max_seconds, max_steps)
    seed = _seed(seed)
    distribution = _distribution(masks, vae)
    family = Mixture(2) if crosscoder is None else crosscoder
    own = in_noise(vae)
    generator = Generator().manual_seed(seed)
    if network is None:
        data = simulated(own, distribution, _NUM_FOR_SCALES, generator).data
        trained = default_network(own, family, data, generator)
    else:
        trained = plain_copy(network, "network").requires_grad_(True)
    Amortised.of(vae, trained, family)  # raises if the network does not fit
    training = Training(own, distribution, trained, family, seed)
    folder = None if checkpoint is None else Path(checkpoint)
    with followed("amortising", report, progress) as told:
        training.run(limits, told, folder)
        made = Amortised.of(vae, training.network, family)
        found = record_of(vae, made, distribution, training)
    return vae.with_amortised(made.with_record(found))


def _limits(max_seconds: float | None, max_steps: int | None) -> Limits:
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, int | float | None):
        raise TypeError(f"expected max_seconds to be a number > 0 or None, got {max_seconds!r}")
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(f"expected max_seconds > 0 or None, got {max_seconds}")
    if max_steps is not None:
        check_count("max_steps", max_steps, 1)
    if max_seconds is None and max_steps is None:
        raise ValueError("expected max_seconds or max_steps, got None for both")
    return Limits(max_seconds, max_steps)


def _seed(seed: int) -> int:
    if isinstance(seed, Generator) or seed is None:
        raise TypeError(f"expected seed to be an int >= 0, got {seed!r:.80}")
    return generator_from(seed).initial_seed()


def _distribution(masks: MaskDistribution | Tensor | None, vae: VAE) -> MaskDistribution:
    """The distribution of masks, after a trial draw.

    Raises:
        TypeError, ValueError: These are not masks, or they do not fit the data.
    """
    if masks is None:
        masks = mixed()
    if isinstance(masks, Tensor):
        if masks.dtype != torch.bool:
            raise TypeError(f"expected boolean masks (True = observed), got {masks.dtype}")
        own = masks[None] if masks.shape == vae.data_shape else masks
        masks = Given(own.cpu())
    if not isinstance(masks, MaskDistribution):
        raise TypeError(
            "expected masks to be a distribution such as crosscoding.masks.mixed(), or boolean "
            f"masks, got {masks!r:.80}"
        )
    drawn = masks.draw(2, vae.data_shape, generator=Generator().manual_seed(0))
    if drawn.dtype != torch.bool or drawn.shape != (2, *vae.data_shape):
        raise ValueError(
            f"expected boolean masks of shape {(2, *vae.data_shape)} from {masks!r:.80}, got "
            f"{drawn.dtype} of shape {tuple(drawn.shape)}"
        )
    return masks

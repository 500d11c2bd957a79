"""Decoders: tried on a few draws from the prior before any answer rests on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from crosscoding.covariates import Covariates, mapped, number_of_rows, tiled
from crosscoding.errors import first_line
from crosscoding.likelihoods import Likelihood
from crosscoding.likelihoods.decoder_output import doubt_of, joined, wrong_output
from crosscoding.model.bound import Bound, first_row
from crosscoding.model.memory_layout import use_channels_last
from crosscoding.model.plain_copy import tensors_of
from crosscoding.model.recognition import same_output
from crosscoding.model.trial import OutputError, Trial, check_derivatives
from crosscoding.model.tried_prior import NUM_PROBES, far_probes, prior_probes
from crosscoding.model.undefined_elements import element_name, sometimes_lost
from crosscoding.priors import Prior

# An element that is lost at all of these counts as lost everywhere; one that is lost at 95 % of the
# prior's draws is lost at all of these with probability 4 %.
_MORE_PROBES = 64
_HINT = (
    "check latent_dim, or wrap one that takes more than z in a module that gives it the rest; for "
    "one called as decoder(z, given), pass examples of its covariates: VAE(..., given=...)"
)
_WITH_GIVEN = "it is called as decoder(z, given), as given=... has examples; check both"


@dataclass(frozen=True, eq=False)
class TriedDecoder:
    """What a trial on a few draws from the prior showed about a decoder.

    Attributes:
        probes: These draws, (N, latent).
        given: The decoder's arguments after z: the covariates of the probes, if it takes any.
        output: The decoder's output for them, (N, *data, *param_shape).
        data_shape: Shape of one datum.
        flat_likelihood: The likelihood for flattened data.
        doubts: Warnings to the user.
    """

    probes: Tensor
    given: tuple[Covariates, ...]
    output: Tensor
    data_shape: torch.Size
    flat_likelihood: Likelihood
    doubts: tuple[str, ...]


def try_decoder(
    decoder: nn.Module,
    prior: Prior,
    likelihood: Likelihood,
    like: Tensor,
    examples: Covariates = None,
) -> TriedDecoder:
    """Run a frozen decoder on a few draws from the prior, and refuse it if p(t|z) would not exist.

    Args:
        decoder: The frozen copy.
        prior: The prior of z.
        likelihood: What the decoder's output means.
        like: An empty tensor of the decoder's dtype, on its device.
        examples: Examples of its covariates, if it takes any.
    Raises:
        ValueError: The decoder does not fit the size of z or the likelihood, or breaks a rule of
            `Trial`.
        NonFiniteError: It outputs NaN or infinity for all elements at a draw from the prior, or
            for one element at all draws.
    """

    def run(network: nn.Module, z: Tensor) -> Tensor:
        return decoder_output(network, likelihood, prior.decoder_input(z))

    given = first_row(examples)
    if examples is not None:
        decoder = Bound(decoder, given)
    probes, far = prior_probes(prior, like, given=given), far_probes(prior, like, given)
    try:
        hint = _HINT if examples is None else _WITH_GIVEN
        trial = Trial(decoder, run, probes, far, "decoder", hint)
    except OutputError as error:
        raise ValueError(str(error)) from None
    data_shape = _data_shape_of(likelihood, trial.output)
    trial.check(like.dtype)
    use_channels_last(decoder, lambda network: run(network, probes.clone()), trial.output)
    several = torch.cat([probes[:1], far[1:2]])
    check_derivatives(lambda z: run(decoder, z), several, "decoder")
    flat = likelihood.for_data(data_shape, like)
    misread = doubt_of(likelihood, lambda z: run(decoder, z), probes, trial.output)
    more = prior_probes(prior, like, _MORE_PROBES, given)
    lost = _doubt_of_lost(trial, likelihood, flat, data_shape, lambda: run(decoder, more))
    doubts = tuple(filter(None, [lost, misread]))
    _try_examples(run, decoder, examples, probes[:1], trial.output[:1])
    inputs = () if examples is None else (tiled(given, len(probes)),)
    return TriedDecoder(probes, inputs, trial.output, data_shape, flat, doubts)


@torch.no_grad()
def _try_examples(
    run: Callable[[nn.Module, Tensor], Tensor],
    decoder: nn.Module,
    examples: Covariates,
    z: Tensor,
    output: Tensor,
) -> None:
    """Raise ValueError unless the decoder takes every example, each independently of the others.

    Args:
        run: Gives a decoder's output at z.
        decoder: Bound to the first example.
        examples: Examples of covariates, or None.
        z: A point, (1, latent).
        output: The decoder's output there.
    """
    if examples is None or number_of_rows(examples) == 1:
        return
    assert isinstance(decoder, Bound)
    points = z.expand(number_of_rows(examples), -1)
    try:
        forward = run(Bound(decoder.network, examples), points.clone())
        back = run(Bound(decoder.network, mapped(lambda t: t.flip(0), examples)), points.clone())
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"expected a decoder that takes all {len(points)} examples of covariates at once, but "
            f"it failed: {first_line(error)}"
        ) from error
    same = forward.shape == back.shape and same_output(forward[:1], output)
    if not (same and same_output(back.flip(0), forward)):
        raise ValueError(
            "expected decoder output for one row that depends only on the z and the covariates of "
            "that row, got other output beside other covariates"
        )


def empty_like(decoder: nn.Module) -> Tensor:
    """An empty tensor of the decoder's dtype, on its device.

    Raises:
        ValueError: The decoder is in neither single nor double precision.
    """
    floats = (t for t in tensors_of(decoder) if t.is_floating_point())
    like = next(floats, torch.empty(0, dtype=torch.float32))
    if like.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"expected a decoder in float32 or float64, got {like.dtype}: log-probabilities "
            "need the digits; convert it with decoder.float()"
        )
    return torch.empty(0, dtype=like.dtype, device=like.device)


def decoder_output(decoder: nn.Module, likelihood: Likelihood, z: Tensor) -> Tensor:
    """The decoder's output at z (N, latent) as one tensor, (N, *data, *param_shape).

    Raises:
        OutputError: The output is not what the likelihood takes.
    """
    output = decoder(z)
    try:
        return joined(likelihood, output)
    except ValueError as error:
        raise OutputError(str(error)) from error


def lost_elements(likelihood: Likelihood, flat: Likelihood, output: Tensor) -> Tensor:
    """Which elements have no p(t|z), boolean, (N, E).

    They are NaN, or infinite though the likelihood does not allow it, or numbers that are not valid
    and whose log p(t|z) is NaN, such as negative rates. Numbers that only overflow on the way to a
    mean, like the logarithms of large rates, have a p(t|z).

    Args:
        likelihood: The model's likelihood.
        flat: The same for flattened data.
        output: The decoder's output, (N, *data, *param_shape).
    """
    lost, params = _not_finite(likelihood, flat, output), _flattened(likelihood, output)
    doubted = ~flat.valid(params) & ~lost
    if not doubted.any():
        return lost
    values = torch.full(lost.shape, flat.placeholder, dtype=output.dtype, device=output.device)
    return lost | doubted & flat.log_prob(params, values).isnan()


def _not_finite(likelihood: Likelihood, flat: Likelihood, output: Tensor) -> Tensor:
    """Which elements are NaN, or infinite though the likelihood does not allow it: (N, E)."""
    # 1 is a parameter that every likelihood takes
    usable = torch.where(likelihood.allowed(output), 1.0, output)
    return ~flat.valid(_flattened(likelihood, usable))


def _flattened(likelihood: Likelihood, output: Tensor) -> Tensor:
    return output.reshape(len(output), *likelihood.flat_shape(output.shape[1:]))


def _data_shape_of(likelihood: Likelihood, output: Tensor) -> torch.Size:
    data_shape = likelihood.data_shape(output.shape[1:])
    if output.shape[:1] != (NUM_PROBES,) or data_shape is None or output.numel() == 0:
        raise ValueError(wrong_output(likelihood, NUM_PROBES, output.shape))
    return data_shape


def _doubt_of_lost(
    trial: Trial,
    likelihood: Likelihood,
    flat: Likelihood,
    data_shape: Sequence[int],
    output_of_more: Callable[[], Tensor],
) -> str:
    """Which elements have no p(t|z) at some of the probes; "" if all have.

    Raises:
        ValueError: The finite part of the output cannot be the likelihood's parameters: by
            `check_params`, or for all elements at some probe, or one element at all draws.
        NonFiniteError: All elements are lost at some probe, or one element at all draws.
    """
    output = trial.output
    allowed = likelihood.allowed(output)
    likelihood.check_params(output[allowed.flatten(1).all(1)])
    lost = lost_elements(likelihood, flat, output)
    everywhere = lost.all(0)
    if everywhere.any():
        everywhere = everywhere & lost_elements(likelihood, flat, output_of_more()).all(0)
    params = _flattened(likelihood, output)
    fatal = lost & (everywhere | lost.all(1, keepdim=True))
    if fatal.any():
        if (fatal & _not_finite(likelihood, flat, output)).any():
            trial.check_finite(allowed)
        draw, element = fatal.nonzero()[0].tolist()
        raise ValueError(
            f"expected a decoder whose outputs are parameters of {type(likelihood).__name__}, got "
            f"{flat.describe(params[draw], element)} for {element_name(data_shape, element)} at a "
            "draw from the prior, where its `valid` is False"
        )
    if not lost.any():
        return ""
    return sometimes_lost(flat, lambda element: element_name(data_shape, element), params, lost)

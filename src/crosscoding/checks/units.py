"""Whether data are in the units of the model: on its scale, with counts of the same size."""

import math

from torch import Tensor

from crosscoding.checks.column_baseline import FEWEST
from crosscoding.checks.likelihood_parts import LikelihoodPart, parts_of, worst
from crosscoding.checks.subject import Subject
from crosscoding.model.check_report import CheckResult

_FAR = 6.0  # standard deviations of the model's draws, within which 99.7 % of data are in the zoo
# Shares of values off the scale above which to warn, or report an error: at most 0.003 in the zoo,
# and 0.043 in correct models of the tests.
_FEW, _MANY = 0.05, 0.5
_MARGIN = 0.1  # of a range; nothing lies beyond it in the zoo, with 12 to 2,000 data
_TIMES = 2.0  # ratio of counts: 0.91 to 1.12 in correct models; misread rates give e or more


def units(subject: Subject) -> CheckResult | None:
    """Whether data and the model's draws are on the same scale."""
    likelihood, params = subject.vae.flat_likelihood, subject.params
    shape = len(params), subject.vae.data_size
    noise = likelihood.noise(shape, generator=subject.generator, like=subject.like)
    draws, means = (
        values.reshape(-1, *subject.vae.data_shape)
        for values in (likelihood.draw(params, noise), likelihood.mean(params))
    )
    parts = parts_of(subject.vae.likelihood, subject.whole, draws, means)
    return worst([_units_of(part) for part in parts if _can_be_compared(part)])


def counts(subject: Subject) -> CheckResult | None:
    """Whether counts are as large as the model expects, and if not, whether its output is misread.

    A rate λ that is read as its logarithm gives a mean of exp λ ≥ e λ; a logarithm that is read as
    the rate gives log λ ≤ λ / e. This holds for every element, and so for medians of sums.
    """
    vae, data, params = subject.vae, subject.whole, subject.params
    if len(data) < FEWEST:
        return None
    other = vae.likelihood.other_reading() or vae.likelihood
    other = other.for_data(vae.data_shape, subject.like)
    means, otherwise = (
        reading.mean(params).reshape(-1, *vae.data_shape)
        for reading in (vae.flat_likelihood, other)
    )
    parts = parts_of(vae.likelihood, data, means, otherwise)
    return worst([_counts_of(part) for part in parts if part.counts])


def _can_be_compared(part: LikelihoodPart) -> bool:
    """Whether values are numbers, not all equal, with finite means under the model."""
    data, _, means = part.tensors
    return not part.classes and bool(means.isfinite().all() and data.min() != data.max())


def _units_of(part: LikelihoodPart) -> CheckResult:
    data, draws, means = (values.flatten(1) for values in part.tensors)
    spread = draws.std(0).clamp_min(1e-6 * draws.abs().max())
    far = ((data - draws.mean(0)).abs() > _FAR * spread).double()
    odd = (far.mean(0) > (_MANY if len(data) >= FEWEST else 1.0)).nonzero()[:, 0]
    shares = {
        "data": _share_outside(data, draws),
        "means": _share_outside(means, data),
        "far": far.mean().item(),
    }
    way_off = _share_outside(data, draws, margin=1.0) > _FEW
    of_data, of_draws, of_means = (_range(values) for values in (data, draws, means))
    most = "data" if way_off else max(shares, key=lambda name: shares[name])
    share = shares[most]
    if share <= _FEW and not len(odd):
        words = f"{part.where}data range over {of_data}, the model's draws over {of_draws}"
        return CheckResult("units", "ok", words, shares)
    words = {
        "data": f"{share:.0%} of the values of data, {of_data}, lie outside the model's draws, "
        f"{of_draws}",
        "means": f"{share:.0%} of the decoder's means, {of_means}, lie outside the data, {of_data}",
        "far": f"{share:.0%} of the values of data are more than {_FAR:.0f} standard deviations "
        "from the model's mean of their element",
    }[most]
    if share <= _FEW:
        words = (
            f"most values of {len(odd)} of {len(far[0])} elements, first index "
            f"{int(odd[0])}, are more than {_FAR:.0f} standard deviations from the model's mean"
        )
    advice = "pass counts unscaled" if part.counts else "scale the data as in training"
    status = "error" if way_off or share > _MANY else "warning"
    return CheckResult("units", status, f"{part.where}{words}; {advice}", shares)


def _counts_of(part: LikelihoodPart) -> CheckResult:
    data, means, otherwise = (values.double().flatten(1).sum(1) for values in part.tensors)
    times, other = _times(means, data), _times(otherwise, data)
    words = f"{part.where}the model's counts add up to {times:.2g} times those of the data"
    margin = _TIMES * math.exp(2 * (_error(means) + _error(data)))
    if 1 / margin <= times <= margin:
        return CheckResult("counts", "ok", words, {"times": times})
    advice = "was it trained on such data, with unscaled counts?"
    reading = part.likelihood.other_reading()
    if reading is not None and 1 / _TIMES <= other <= _TIMES:
        advice = f"read as {reading}, the decoder's output gives {other:.2g} times: use {reading}"
    return CheckResult("counts", "warning", f"{words}; {advice}", {"times": times, "other": other})


def _times(sums: Tensor, others: Tensor) -> float:
    """The ratio of medians, 1 added to each, as all counts may be 0."""
    return ((sums.median() + 1) / (others.median() + 1)).item()


def _error(sums: Tensor) -> float:
    """Standard error of the log median, as for a normal distribution."""
    return 1.25 * (sums + 1).log().std().item() / len(sums) ** 0.5


def _share_outside(values: Tensor, others: Tensor, margin: float = _MARGIN) -> float:
    """The share of values outside the range of others, widened by a share `margin` of it."""
    low, high = others.min(), others.max()
    beyond = margin * (high - low)
    return ((values < low - beyond) | (values > high + beyond)).double().mean().item()


def _range(values: Tensor) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"

"""Checks of a decoder alone: its output, and whether methods can work with it."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from crosscoding.checks.subject import Subject
from crosscoding.likelihoods.decoder_output import doubt_of, joined
from crosscoding.model.check_report import CheckResult
from crosscoding.model.vae import VAE
from crosscoding.random import normal

_TOLERANCE = 1e-3  # of the largest output: the zoo's models stay below 5e-5
_NUM_ALONE = 8  # probes to decode one by one
_NUM_DIRECTIONS = 8  # derivatives to compare with differences
# Standard deviations, or half the log ratio of variances, of the median channel: 0.05 in the
# zoo, 0.13 in a correct model of the tests, and 1.0 or more with wrong statistics.
_DRIFT = 0.5
_FAR = (1.0, 2.0, 3.0, 4.0)  # standard deviations of the prior beyond √latent


def output(subject: Subject) -> CheckResult:
    """Whether the decoder's output can be, and probably is, the likelihood's parameters."""
    likelihood, params = subject.vae.likelihood, subject.output
    lost = subject.vae.lost(params)
    if lost.any():
        bad, element = int(lost.any(1).sum()), int(lost.sum(0).argmax())
        return CheckResult(
            "output",
            "error",
            f"no p(t|z) at {bad} of {len(params)} draws from the prior, most often for "
            f"{subject.vae.element_name(element)}, whose parameters there are "
            f"{_described(subject.vae, params[lost[:, element]][0], element)}; check the loaded "
            "weights, and for overflow",
        )
    low, high = params.min().item(), params.max().item()
    figures = {"lowest": low, "highest": high}
    try:
        likelihood.check_params(params)
    except ValueError as error:
        return CheckResult("output", "error", str(error), figures)
    if doubt := doubt_of(likelihood, subject.vae.decode, subject.probes, params):
        return CheckResult("output", "error", doubt, figures)
    shape = tuple(subject.vae.data_shape)
    words = f"{type(likelihood).__name__}, data shape {shape}, parameters {low:.4g} to {high:.4g}"
    return CheckResult("output", "ok", words, figures)


def _described(vae: VAE, output: Tensor, element: int) -> str:
    flat = output.reshape(vae.likelihood.flat_shape(output.shape))
    return vae.flat_likelihood.describe(flat, element)


def repeatability(subject: Subject) -> CheckResult:
    """Whether one z always gives the same output: again, alone, and among other z."""
    vae, z, first = subject.vae, subject.probes, subject.output
    largest = torch.where(first.isfinite(), first, 0.0).abs().max().clamp_min(1e-6)
    training = [name or type(m).__name__ for name, m in vae.decoder.named_modules() if m.training]
    places = torch.arange(len(z), device=z.device)
    pairs = zip(z[:_NUM_ALONE].split(1), places.split(1), strict=False)
    alone = torch.cat([subject.decoded(*pair) for pair in pairs])
    others = places.flip(0)[: len(z) // 2]
    beside = z[others] if subject.is_discrete else 3 * z[others]
    among = subject.decoded(torch.cat([beside, z]), torch.cat([others, places]))[-len(z) :]
    differences = {
        "when it is decoded again": _gap(subject.decoded(z), first),
        "when it is decoded alone": _gap(alone, first[:_NUM_ALONE]),
        "among other z": _gap(among, first),
    }
    shares = {words: (gap.abs().max() / largest).item() for words, gap in differences.items()}
    figures = {"largest_difference": max(shares.values())}
    wrong = [f"{share:.1%} {words}" for words, share in shares.items() if not share <= _TOLERANCE]
    if wrong:
        return CheckResult(
            "repeatability",
            "error",
            f"the output for one z changes, by {', by '.join(wrong)}; turn off dropout, noise, "
            "batch statistics and any state kept from call to call",
            figures,
        )
    if training:
        return CheckResult(
            "repeatability",
            "warning",
            f"{', '.join(training[:3])} stayed in training mode after .eval(); a module that "
            "overrides train() must pass it on to its parts",
            figures,
        )
    return CheckResult(
        "repeatability", "ok", "the same z gives the same output: again, alone, in a batch", figures
    )


def batch_norm(subject: Subject) -> CheckResult | None:
    """Whether batch norm's running statistics were estimated, and match draws from the prior."""
    layers = {
        name: module
        for name, module in subject.vae.decoder.named_modules()
        if isinstance(getattr(module, "running_mean", None), Tensor)
    }
    if not layers:
        return None
    initial = [name for name, layer in layers.items() if _is_initial(layer)]
    if initial:
        return CheckResult(
            "batch norm",
            "error",
            f"the running mean and variance are 0 and 1 in {len(initial)} of {len(layers)} layers "
            f"(first {initial[0]}): never estimated, or not loaded; decode a few thousand draws of "
            "the encoder in training mode, with momentum=None",
        )
    drift = {name: _drift(layers[name], x) for name, x in _inputs(subject, layers).items()}
    worst = max(drift, key=lambda name: drift[name])
    figures = {"worst_drift": drift[worst]}
    if drift[worst] > _DRIFT:
        return CheckResult(
            "batch norm",
            "warning",
            f"at {worst}, draws from the prior differ from the running statistics by "
            f"{drift[worst]:.2g} standard deviations, or by as much in the log standard deviation "
            f"(median channel; at most {_DRIFT} is fine): estimate the statistics again with the "
            "final weights",
            figures,
        )
    return CheckResult(
        "batch norm",
        "ok",
        f"running statistics of {len(layers)} layers, within {drift[worst]:.2g} standard "
        "deviations of draws from the prior",
        figures,
    )


def far_out(subject: Subject) -> CheckResult:
    """Whether the output stays finite and allowed as far out as methods may look."""
    vae = subject.vae
    rays = nn.functional.normalize(subject.probes[:32], dim=-1)
    radius = 0.0
    for beyond in _FAR:
        radius = math.sqrt(vae.latent_dim) + beyond
        params = subject.decoded(radius * rays)
        try:
            vae.likelihood.check_params(params)
        except ValueError as error:
            return CheckResult("far out", "warning", f"at |z| = {radius:.3g}: {error}")
        if not vae.likelihood.allowed(params).all():
            return CheckResult(
                "far out",
                "warning",
                f"NaN or infinity at |z| = {radius:.3g}, where the prior has almost no mass but "
                "methods may look; bound what overflows, such as an exponential",
            )
    return CheckResult("far out", "ok", f"finite out to |z| = {radius:.3g}")


def gradients(subject: Subject) -> CheckResult:
    """Whether derivatives in z are finite, not all 0, and agree with finite differences."""
    decode, z, step, tolerance = _smooth(subject)
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        value = decode(z)
        if not value.requires_grad:
            return _bad_gradient("the decoder cuts gradients off: remove detach() and no_grad()")
        weight = normal(value.shape[1:], generator=subject.generator, like=value)
        finite = value.isfinite()  # a logit may be -inf throughout
        (gradient,) = torch.autograd.grad(torch.where(finite, value * weight, 0.0).sum(), z)
    if not gradient.isfinite().all():
        return _bad_gradient(
            "derivatives are NaN or infinite at draws from the prior; look for a root or "
            "logarithm of 0, or 0 / 0"
        )
    direction = nn.functional.normalize(gradient, dim=-1)
    if not gradient.any():  # then the output should not change along any direction
        direction = nn.functional.normalize(torch.ones_like(z), dim=-1)
    with torch.no_grad():
        change = (decode(z + step * direction) - decode(z - step * direction)) * weight
        change = torch.where(finite, change, 0.0)
    wanted = change.flatten(1).sum(1) / (2 * step)
    slope = (gradient * direction).sum(1)
    if not gradient.any() and not wanted.any():
        return _bad_gradient("the output does not change with z: the decoder is dead or saturated")
    error = (slope - wanted).abs() / torch.maximum(slope.abs(), wanted.abs()).clamp_min(1e-30)
    worst = error.median().item()  # a kink spoils a difference here and there
    if worst > tolerance:
        return _bad_gradient(
            f"derivatives differ from finite differences by {worst:.1%}; look for detach() or a "
            "custom backward()",
            worst,
        )
    kind = "in double precision" if z.dtype == torch.double else f"in {z.dtype}"
    return CheckResult(
        "gradients", "ok", f"agree with central differences, {kind}", {"relative_error": worst}
    )


def _gap(output: Tensor, other: Tensor) -> Tensor:
    """The difference of two outputs, 0 where both are NaN or the same infinity."""
    same = (output == other) | (output.isnan() & other.isnan())
    return torch.where(same, 0.0, output - other)


def _bad_gradient(message: str, error: float = math.nan) -> CheckResult:
    return CheckResult("gradients", "error", message, {"relative_error": error})


def _smooth(subject: Subject) -> tuple[Callable[[Tensor], Tensor], Tensor, float, float]:
    """The decoder and some z, in double if possible; and the step and tolerance that suit them.

    A difference is off by eps · |output| / step through rounding, by step² through curvature.
    """
    vae, z = subject.vae, subject.probes[:_NUM_DIRECTIONS]
    double = copy.deepcopy(vae.decoder).double()

    def decode(points: Tensor) -> Tensor:
        return joined(vae.likelihood, double(points.clone()))  # it may overwrite its input

    try:
        with torch.no_grad():
            if decode(z.double()).dtype == torch.double:
                return decode, z.double(), 1e-6, 1e-3
    except Exception:  # float32 is hard-coded in it
        pass
    return vae.decode, z, 1e-2, 0.05


def _is_initial(layer: nn.Module) -> bool:
    mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    return bool((mean == 0).all() and (variance == 1).all())


def _inputs(subject: Subject, layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """The first input (N, C, …) of each layer when the probes are decoded."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, inputs[0])

        return hook

    hooks = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        subject.decoded(subject.probes)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _drift(layer: nn.Module, inputs: Tensor) -> float:
    """How far inputs (N, C, …) are from the running statistics, in the median channel."""
    channels = inputs.transpose(0, 1).flatten(1)
    mean, variance = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    variance = variance.clamp_min(1e-12)
    shift = (channels.mean(1) - mean).abs() / variance.sqrt()
    ratio = 0.5 * (channels.var(1).clamp_min(1e-12) / variance).log().abs()
    return torch.maximum(shift.median(), ratio.median()).item()

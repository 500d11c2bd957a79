"""Likelihoods of one of K classes, unordered or ordered."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from crosscoding.isolation import isolated
from crosscoding.likelihoods.base import ADVICE_ON_WHOLE_NUMBERS
from crosscoding.likelihoods.discretized_logistic import log_interval
from crosscoding.likelihoods.finitely_many import FinitelyMany
from crosscoding.likelihoods.laws import FiniteLaw, Known
from crosscoding.likelihoods.layout import ElementGroup
from crosscoding.likelihoods.location_dispersion import setting
from crosscoding.likelihoods.rounding import nearly_underflown
from crosscoding.random import uniform

_CHUNK_BYTES = 64 * 2**20


class _Classes(FinitelyMany):
    """A likelihood of classes 0 to K − 1. All log-probabilities are kept, for matrix products."""

    kind = "classes"
    _advice_on_values = ADVICE_ON_WHOLE_NUMBERS

    @abstractmethod
    def log_probs(self, params: Tensor) -> Tensor:
        """log p of each class, shape (*sample, E, K)."""

    @abstractmethod
    def all_values(self, like: Tensor) -> Tensor:
        """The class numbers, in double."""

    def law(self, params: Tensor, known: Known) -> FiniteLaw:
        return FiniteLaw(self.all_values(params), self.log_probs(params), known)

    def join(self, outputs: Sequence[Tensor]) -> Tensor:
        """As in the base class, but refuses outputs that could be stacked in two ways."""
        num = math.prod(self.param_shape)
        if len(outputs) == num > 1 and all(piece.shape[-1:] == (num,) for piece in outputs):
            raise ValueError(
                f"expected one tensor from the decoder for {type(self).__name__}, got {num} that "
                f"end in a dimension of {num}: return torch.stack(outputs, 1) if each holds all "
                "classes of a variable, or torch.stack(outputs, -1) if each holds one class of all "
                "variables"
            )
        return super().join(outputs)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        return _of_class(self.log_probs(params), values)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        return (self.log_probs(params),)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        (log_probs,) = kept
        num_classes = log_probs.shape[-1]
        query_bytes = max(values[:1].numel() * num_classes * 8, 1)
        pieces = []
        for rows in torch.arange(len(values)).split(max(_CHUNK_BYTES // query_bytes, 1)):
            chosen = F.one_hot(values[rows].long(), num_classes) * mask[rows, :, None]
            pieces.append(_product(log_probs.flatten(1), chosen.flatten(1).to(log_probs.dtype)))
        return torch.cat(pieces, 1)

    def noise(self, shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
        return uniform(shape, generator=generator, like=like.double())


@dataclass(frozen=True)
class Categorical(_Classes):
    """One of K classes; the decoder outputs K logits for each variable.

        log p(t = k|z) = l_k − log Σ_j exp(l_j)

    Args:
        num_classes: K ≥ 2.
        one_hot: False if data are class numbers 0 to K − 1, shape (*data), and the decoder outputs
            (B, *data, K). True if each variable is a one among zeros, with the classes along the
            last dimension of the data, (*variables, K), or (V K,) for V variables concatenated;
            the decoder outputs the same shape.

    A one-hot variable is observed as a whole: a mask that observes only some of its classes is
    refused. For one-hot data `mean` is the probability of each class; otherwise it is the mean of
    the class numbers, which says little if the classes are unordered.
    """

    num_classes: int
    one_hot: bool = False

    def __post_init__(self) -> None:
        check_num_classes(self.num_classes)
        if not isinstance(self.one_hot, bool):
            raise TypeError(f"expected one_hot to be True or False, got {self.one_hot!r}")
        if self.one_hot:
            words = f"a single 1 among zeros for every {self.num_classes} classes,"
        else:
            object.__setattr__(self, "param_shape", (self.num_classes,))
            words = f"whole numbers from 0 to {self.num_classes - 1}"
        object.__setattr__(self, "support", words)
        object.__setattr__(self, "infinite", (-torch.inf,))
        object.__setattr__(self, "takes", "logits, at least one of them above -inf")

    def all_values(self, like: Tensor) -> Tensor:
        return torch.arange(self.num_classes, dtype=torch.double, device=like.device)

    def groups(self, num: int, device: torch.device) -> list[ElementGroup]:
        if not self.one_hot:
            return super().groups(num, device)
        elements = torch.arange(num, device=device).unflatten(0, (-1, self.num_classes))
        return [ElementGroup(Categorical(self.num_classes), elements, elements)]

    def _by_variable(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, self.num_classes)) if self.one_hot else flat

    def _by_element(self, of_classes: Tensor) -> Tensor:
        return of_classes.flatten(-2)

    def log_probs(self, params: Tensor) -> Tensor:
        return self._by_variable(params).log_softmax(-1)

    def log_prob(self, params: Tensor, values: Tensor) -> Tensor:
        """As in the base class; if one-hot, log p at the element that is 1, and 0 at the others."""
        if not self.one_hot:
            return super().log_prob(params, values)
        log_probs = self._by_element(self.log_probs(params))
        return torch.where(values > 0, log_probs, 0.0)  # 0 · −inf would be NaN

    def valid(self, params: Tensor) -> Tensor:
        """Where some class of the variable is possible."""
        found = self._by_variable(self.allowed(params)).all(-1)
        found = found & (self._by_variable(params).amax(-1) > -torch.inf)
        if not self.one_hot:
            return found
        return found[..., None].expand(*found.shape, self.num_classes).flatten(-2)

    def lost(self, params: Tensor, values: Tensor) -> Tensor:
        """Where a logit is the logarithm of a probability that nearly underflowed to 0."""
        if self.one_hot:
            return (values > 0) & nearly_underflown(params)
        return nearly_underflown(_of_class(params, values))

    def mean(self, params: Tensor) -> Tensor:
        probabilities = self.log_probs(params).exp()
        if self.one_hot:
            return self._by_element(probabilities)
        return probabilities @ self._numbers(params)

    def variance(self, params: Tensor) -> Tensor:
        mean = self.mean(params)
        if self.one_hot:
            return mean * (1 - mean)
        gaps = self._numbers(params) - mean[..., None]
        return (self.log_probs(params).exp() * gaps.square()).sum(-1)

    def fisher(self, params: Tensor) -> Tensor:
        probabilities = self.log_probs(params).exp()
        diagonal = probabilities * (1 - probabilities)
        return self._by_element(diagonal) if self.one_hot else diagonal

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        """F v with F = diag(p) − p pᵀ for the K logits of a variable."""
        probabilities = self.log_probs(params).exp()
        tangents = self._by_variable(tangents)
        mean = (probabilities * tangents).sum(-1, keepdim=True)
        product = probabilities * (tangents - mean)
        if self.one_hot:
            return torch.where(mask, self._by_element(product), 0.0)
        return torch.where(mask[..., None], product, 0.0)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        """The noise's quantile; for a one-hot variable, that of its first element's noise."""
        cumulative = self.log_probs(params).double().exp().cumsum(-1)[..., :-1]
        noise = self._by_variable(noise)[..., 0] if self.one_hot else noise
        classes = (noise[..., None] >= cumulative).sum(-1)
        if not self.one_hot:
            return classes.to(params.dtype)
        return self._by_element(F.one_hot(classes, self.num_classes)).to(params.dtype)

    def to_keep(self, params: Tensor) -> tuple[Tensor, ...]:
        (log_probs,) = super().to_keep(params)
        return (self._by_element(log_probs) if self.one_hot else log_probs,)

    def pairwise_log_prob(self, kept: tuple[Tensor, ...], values: Tensor, mask: Tensor) -> Tensor:
        if not self.one_hot:
            return super().pairwise_log_prob(kept, values, mask)
        return _product(kept[0], values * mask)

    def in_support(self, values: Tensor) -> Tensor:
        if not self.one_hot:
            return is_class(values, self.num_classes)
        by_variable = self._by_variable(values)
        whole = (by_variable.sum(-1) == 1) & ((by_variable == 0) | (by_variable == 1)).all(-1)
        return self._by_element(whole[..., None].expand(by_variable.shape))

    def check_values(self, values: Tensor, mask: Tensor, name: str = "observed values") -> None:
        if self.one_hot:
            by_variable = self._by_variable(mask)
            split = by_variable.any(-1) & ~by_variable.all(-1)
            if split.any():
                first = self._by_element(split[..., None] & by_variable).nonzero()[0]
                raise ValueError(
                    "expected a mask that observes all classes of a one-hot variable or none, got "
                    f"{int(split.sum())} observed in part, the first at index "
                    f"{tuple(first.tolist())}"
                )
        super().check_values(values, mask, name)

    def doubt(self, params: Tensor) -> str:
        by_variable = self._by_variable(params)
        sums = by_variable.sum(-1)
        if (by_variable < 0).any() or not torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
            return ""
        return (
            f"expected logits from the decoder, got numbers >= 0 that sum to 1 over every "
            f"{self.num_classes} classes; if they are probabilities, output their logarithms: "
            "leave softmax out, or use log_softmax"
        )

    def data_shape(self, output: Sequence[int]) -> torch.Size | None:
        if self.one_hot and (not output or output[-1] % self.num_classes):
            return None
        return super().data_shape(output)

    def output_shape(self) -> str:
        return f"*variables, {self.num_classes}" if self.one_hot else super().output_shape()

    def _numbers(self, like: Tensor) -> Tensor:
        return torch.arange(self.num_classes, dtype=like.dtype, device=like.device)


@dataclass(frozen=True, eq=False)
class Ordinal(_Classes):
    """One of K ordered classes: a logistic variable around η(z), cut into K intervals.

        P(t ≤ k|z) = σ(c_k − η),   c_0 < c_1 < … < c_{K−2}

    Args:
        cut_points: c, K − 1 increasing numbers, or a tensor of shape (K − 1,) or (*data, K − 1),
            where *data broadcasts to the data's shape; the decoder outputs η. None if the decoder
            outputs c − η itself, K − 1 increasing numbers for each element.
        num_classes: K ≥ 2; needed only with cut_points=None.

    Source: McCullagh (1980), the proportional odds model. Differs in: nothing.
    """

    cut_points: Sequence[float] | Tensor | None
    num_classes: int | None = None
    per_element: ClassVar[dict[str, int]] = {"cut_points": 1}

    @isolated
    def __post_init__(self) -> None:
        cuts = self.cut_points
        if cuts is None:
            check_num_classes(self.num_classes)
            object.__setattr__(self, "param_shape", (int(self.num_classes or 2) - 1,))
            object.__setattr__(self, "takes", "cut points that increase")
        else:
            values = cuts if isinstance(cuts, Tensor) else torch.tensor(cuts, dtype=torch.float32)
            if not values.ndim or not values.shape[-1] or not values.isfinite().all():
                raise ValueError(f"expected at least one finite cut point, got {cuts}")
            if not (values.diff(dim=-1) > 0).all():
                raise ValueError(f"expected cut points that increase, got {cuts}")
            if self.num_classes not in (None, values.shape[-1] + 1):
                raise ValueError(
                    f"expected one cut point fewer than num_classes={self.num_classes}, "
                    f"got {values.shape[-1]}"
                )
            own = cuts.detach().clone() if isinstance(cuts, Tensor) else tuple(map(float, cuts))
            object.__setattr__(self, "cut_points", own)
            object.__setattr__(self, "num_classes", values.shape[-1] + 1)
        words = f"whole numbers from 0 to {int(self.num_classes or 2) - 1}"
        object.__setattr__(self, "support", words)

    def all_values(self, like: Tensor) -> Tensor:
        num_classes = self.num_classes or 2
        return torch.arange(num_classes, dtype=torch.double, device=like.device)

    def _cuts(self, params: Tensor) -> Tensor:
        """c_k − η, shape (*sample, E, K − 1).

        Decoded cut points that do not increase become NaN, which raises if the element is observed.
        """
        if self.cut_points is None:
            increase = (params.diff(dim=-1) >= 0).all(-1, keepdim=True)
            return torch.where(increase, params, torch.nan)
        return setting(self.cut_points, params) - params[..., None]  # pyright: ignore[reportArgumentType]

    def log_probs(self, params: Tensor) -> Tensor:
        cuts = self._cuts(params)
        ends = F.logsigmoid(cuts[..., :1]), F.logsigmoid(-cuts[..., -1:])
        above, below = cuts[..., 1:], cuts[..., :-1]
        never = torch.zeros((), dtype=torch.bool, device=cuts.device)
        inside = log_interval(above, below, self._gaps(cuts), never, never)
        return torch.cat([ends[0], inside, ends[1]], -1)

    def _gaps(self, cuts: Tensor) -> Tensor:
        """c_k − c_{k−1}; from the settings if possible, because subtracting η loses digits."""
        own = cuts if self.cut_points is None else setting(self.cut_points, cuts)  # pyright: ignore[reportArgumentType]
        return own.diff(dim=-1)

    def valid(self, params: Tensor) -> Tensor:
        found = super().valid(params)
        return found & (params.diff(dim=-1) >= 0).all(-1) if self.cut_points is None else found

    def may_be_lost(self, values: Tensor) -> Tensor:
        return torch.full_like(values, self.cut_points is None, dtype=torch.bool)

    def check_params(self, params: Tensor) -> None:
        if self.cut_points is None and not (params.diff(dim=-1) > 0).all():
            raise ValueError(
                "expected a decoder whose cut points increase along its last dimension, got a step "
                f"of {params.diff(dim=-1).min():.4g}"
            )

    def mean(self, params: Tensor) -> Tensor:
        return (-self._cuts(params)).sigmoid().sum(-1)

    def variance(self, params: Tensor) -> Tensor:
        more = (-self._cuts(params)).sigmoid()
        odd = 2 * torch.arange(more.shape[-1], dtype=more.dtype, device=more.device) + 1
        return (more @ odd - more.sum(-1).square()).clamp_min(0)

    def _steepness(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f_k = σ′(c_k − η), f_k / p_k and f_k / p_{k+1}: (*sample, E, K − 1) each."""
        cuts = self._cuts(params)
        log_slopes = F.logsigmoid(cuts) + F.logsigmoid(-cuts)
        log_probs = self.log_probs(params)
        below = (log_slopes - log_probs[..., :-1]).exp()
        return log_slopes.exp(), below, (log_slopes - log_probs[..., 1:]).exp()

    def fisher(self, params: Tensor) -> Tensor:
        slope, below, above = self._steepness(params)
        if self.cut_points is None:
            return slope * (below + above)
        return self._product(slope, below, above, torch.ones_like(slope)).sum(-1)

    def fisher_product(self, params: Tensor, tangents: Tensor, mask: Tensor) -> Tensor:
        """F v; F is tridiagonal for decoded cut points, as p_k depends only on c_k and c_{k−1}."""
        if self.cut_points is not None:
            return super().fisher_product(params, tangents, mask)
        product = self._product(*self._steepness(params), tangents)
        return torch.where(mask[..., None], product, 0.0)

    @staticmethod
    def _product(slope: Tensor, below: Tensor, above: Tensor, tangents: Tensor) -> Tensor:
        """F v from the change of log p_k along v, f_k v_k / p_k − f_{k−1} v_{k−1} / p_k."""
        change = F.pad(below * tangents, (0, 1)) - F.pad(above * tangents, (1, 0))
        return slope * (change[..., :-1] - change[..., 1:])

    def in_support(self, values: Tensor) -> Tensor:
        return is_class(values, self.num_classes or 2)

    def draw(self, params: Tensor, noise: Tensor) -> Tensor:
        cumulative = self._cuts(params).double().sigmoid()
        return (noise[..., None] >= cumulative).sum(-1).to(params.dtype)


def _of_class(of_classes: Tensor, values: Tensor) -> Tensor:
    """The entry of the observed class, (*sample, E), from those of all, (*sample, E, K)."""
    shape = torch.broadcast_shapes(of_classes.shape[:-1], values.shape)
    index = values.long().expand(shape)[..., None]
    return of_classes.expand(*shape, -1).gather(-1, index)[..., 0]


def _product(log_probs: Tensor, chosen: Tensor) -> Tensor:
    """Σ of the log-probabilities, (N, E), that are chosen by ones in (B, E): (N, B).

    The others may be −inf, for an impossible class, or NaN.
    """
    result = log_probs @ chosen.mT
    if not result.isnan().any():
        return result
    result = torch.where(log_probs.isfinite(), log_probs, 0.0) @ chosen.mT
    for value, where in ((-torch.inf, log_probs == -torch.inf), (torch.nan, log_probs.isnan())):
        result = result.masked_fill(where.to(chosen) @ chosen.mT > 0, value)
    return result


def is_class(values: Tensor, num_classes: int) -> Tensor:
    """Whether each value is a class number, boolean."""
    return (values >= 0) & (values < num_classes) & (values == values.floor())


def check_num_classes(num_classes: int | None) -> None:
    """Raise TypeError or ValueError unless this is an int ≥ 2."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"expected num_classes to be an int, got {type(num_classes).__name__}")
    if num_classes < 2:
        raise ValueError(f"expected num_classes >= 2, got {num_classes}")

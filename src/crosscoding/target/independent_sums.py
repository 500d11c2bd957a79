"""Known sums as one linear system per query, without exact elements and dependent sums."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from crosscoding.evidence import Evidence
from crosscoding.linear_evidence import LinearEvidence

# Share of a row's length that is orthogonal to the rows before it: at most this if it follows from
# them, and more than this if it is clearly independent. The square of the latter is far above the
# rounding error of a Gram matrix, about 1e-12.
_DEPENDENT = 1e-9
_CLEAR = 1e-4
_DETERMINED = 1e-7  # share of an element that sums leave undetermined; less is rounding
_ROUNDING = 1e3  # how far off a sum may be, in eps of the data's dtype times its terms


@dataclass(frozen=True, eq=False)
class Sums:
    """A t = b + s η for each of B queries, t the elements that are not known exactly, in double.

    A row that a query lacks is 0, with b = 0 and s = 1. It adds nothing to log p(b|z), as
    `num_rows` does not count it.

    Args:
        elements: The elements t that occur in a sum of any query, shape (T,).
        operator: A, shape (R, m, T) with R = B, or 1 if all queries share it.
        values: b, shape (B, m).
        noise: s, shape (R, m).
        num_rows: How many rows each query has, shape (R,).
        summed: Which of the elements occur in each query's sums, shape (R, T).
        all_summed: Whether all of them occur in each query's sums.
    """

    elements: Tensor
    operator: Tensor
    values: Tensor
    noise: Tensor
    num_rows: Tensor
    summed: Tensor
    all_summed: bool

    def select(self, index: Tensor | slice) -> "Sums":
        """Those of some of the queries."""
        chosen = replace(self, values=self.values[index])
        if len(self.operator) == 1 < len(self.values):
            return chosen
        names = ("operator", "noise", "num_rows", "summed")
        return replace(chosen, **{name: getattr(self, name)[index] for name in names})

    def log_density(self, data: Tensor, eps: float) -> Tensor:
        """log p(b|t) of complete data (B, D), shape (B,): log p(t, b) − log p(t).

        Exact sums add −½ log |A Aᵀ| if t satisfies them, since a density of t given b is per volume
        of the subspace where they are satisfied, and −∞ if it does not.
        """
        own = data[:, self.elements].double()
        gaps = self.values - _times(self.operator, own)
        exact = self.noise == 0
        noise = torch.where(exact, 1.0, self.noise)
        present = self.operator.abs().sum(-1) > 0
        log_normal = -0.5 * (gaps / noise).square() - noise.log() - 0.9189385332046727
        noisy = torch.where(~exact & present, log_normal, 0.0).sum(-1)
        size = _times(self.operator.abs(), own.abs()) + self.values.abs()
        wrong = (exact & (gaps.abs() > _ROUNDING * eps * size)).any(-1)
        rows = torch.where((exact & present)[..., None], self.operator, 0.0)
        gram = rows @ rows.mT + (~(exact & present)).double().diag_embed()
        volume = torch.linalg.slogdet(gram).logabsdet
        return torch.where(wrong, -torch.inf, noisy - 0.5 * volume)


def independent_sums(evidence: Evidence) -> Sums:
    """The sums of flat evidence, (B, *data), and the noisy values of the elements in them.

    Raises:
        ValueError: Sums without noise contradict each other or values known exactly.
    """
    num, parts = len(evidence.values), evidence.sums
    values, exact = (part.reshape(num, -1) for part in (evidence.values, evidence.exact))
    noise = torch.zeros_like(values)
    if evidence.uncertain is not None:
        noise = evidence.uncertain.noise.reshape(num, -1)
    touched = torch.zeros_like(exact[0])
    for part in parts:
        touched = touched | (part.operator.reshape(-1, exact.shape[1]) != 0).any(0)
    touched = touched & ~exact.all(0)
    elements = touched.nonzero()[:, 0]
    noisy = elements[(noise[:, elements] > 0).any(0)]
    shared = _are_shared(parts, exact[:, elements], noise[:, noisy])
    pieces = [_rows_of(part, values, exact, elements, shared) for part in parts]
    if len(noisy):
        pieces.append(_noisy_rows(values, noise, elements, noisy, shared))
    operator, target, spread, size = (torch.cat(part, 1) for part in zip(*pieces, strict=True))
    missing = spread.isnan()
    operator = torch.where(missing[..., None], 0.0, operator)
    sums = Sums(
        elements,
        operator,
        torch.where(missing, 0.0, target),
        torch.where(missing, 1.0, spread),
        (~missing).sum(-1),
        (operator != 0).any(1),
        all_summed=False,
    )
    rounding = _ROUNDING * torch.finfo(evidence.values.dtype).eps * size.nan_to_num(0.0)
    sums = _without_dependent(sums, rounding)
    return replace(sums, all_summed=bool(sums.summed.all()))


def _are_shared(parts: Sequence[LinearEvidence], exact: Tensor, noise: Tensor) -> bool:
    """Whether all queries have the same operator and noise."""

    def same(tensor: Tensor) -> bool:
        return bool((tensor == tensor[:1]).all())

    return (
        same(exact)
        and same(noise)
        and all(part.is_shared for part in parts)
        and all(same(part.values.isnan()) and same(part.noise) for part in parts)
    )


def _rows_of(
    part: LinearEvidence, values: Tensor, exact: Tensor, elements: Tensor, shared: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A (R, m, T), b (B, m) and s (R, m), NaN for missing rows, and the size of b (B, m)."""
    operator = part.operator.double().flatten(-len(part.data_shape))
    operator = operator[None] if part.is_shared else operator
    known = torch.where(exact, values, 0.0).double()
    target = part.values.double() - _times(operator, known)
    size = part.values.double().abs() + _times(operator.abs(), known.abs())
    spread = torch.where(part.values.isnan(), torch.nan, part.noise.double())
    kept = operator[..., elements]
    if shared:
        kept, spread, exact = kept[:1], spread[:1], exact[:1]
    return torch.where(exact[:, elements][:, None], 0.0, kept), target, spread, size


def _noisy_rows(
    values: Tensor, noise: Tensor, elements: Tensor, noisy: Tensor, shared: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for noisy values of elements in sums, which are sums of one term: t_e = v + s η."""
    own = (elements == noisy[:, None]).double()
    spread = noise[:, noisy].double()
    spread = torch.where(spread > 0, spread, torch.nan)
    num = 1 if shared else len(values)
    target = values[:, noisy].double()
    return own.expand(num, -1, -1), target, spread[:num], target.abs()


def _without_dependent(sums: Sums, rounding: Tensor) -> Sums:
    """The sums without exact ones that follow from those before, by Gram–Schmidt, row by row.

    Args:
        sums: The sums.
        rounding: How far off each may be by itself, shape (B, m); the sums that it follows from
            add theirs.
    Raises:
        ValueError: A sum that follows from others has a value that differs from what they imply.
    """
    operator, target = sums.operator, sums.values
    exact = (sums.noise == 0).expand(len(operator), -1)
    if not exact.any() or _are_independent(torch.where(exact[..., None], operator, 0.0), exact):
        return sums
    basis, of_basis = torch.zeros_like(operator), torch.zeros_like(target)
    of_rounding = torch.zeros_like(target)
    dropped = torch.zeros_like(exact)
    for row in range(operator.shape[1]):
        rest, coefficients = operator[:, row], operator.new_zeros(exact.shape)
        for _ in range(2):  # the second pass removes the rounding error of the first
            along = (basis[:, :row] @ rest[..., None])[..., 0]
            rest = rest - (basis[:, :row].mT @ along[..., None])[..., 0]
            coefficients[:, :row] += along
        length = rest.norm(dim=-1)
        follows = exact[:, row] & (length <= _DEPENDENT * operator[:, row].norm(dim=-1))
        expected = (coefficients * of_basis).sum(-1)
        allowed = (coefficients.abs() * of_rounding).sum(-1) + rounding[:, row]
        wrong = follows & ((target[:, row] - expected).abs() > allowed)
        if wrong.any():
            _refuse(wrong, row, expected, target[:, row])
        new = (exact[:, row] & ~follows)[:, None]
        safe = torch.where(new, length[:, None], 1.0)
        basis[:, row] = torch.where(new, rest / safe, 0.0)
        of_basis[:, row] = torch.where(new[:, 0], (target[:, row] - expected) / safe[:, 0], 0.0)
        of_rounding[:, row] = torch.where(new[:, 0], allowed / safe[:, 0], 0.0)
        dropped[:, row] = follows
    if not dropped.any():
        return sums
    operator = torch.where(dropped[..., None], 0.0, operator)
    return replace(
        sums,
        operator=operator,
        values=torch.where(dropped, 0.0, target),
        noise=torch.where(dropped, 1.0, sums.noise),
        num_rows=sums.num_rows - dropped.sum(-1),
        summed=(operator != 0).any(1),
    )


def _are_independent(rows: Tensor, exact: Tensor) -> bool:
    """Whether every row is clearly linearly independent of those before it.

    For rows of length 1, the diagonal of the Cholesky factor of their Gram matrix is the length of
    each row's part that is orthogonal to those before. It has half the digits of Gram–Schmidt, so
    rows that are nearly dependent are left to that.

    Args:
        rows: Shape (R, m, T), 0 for sums with noise.
        exact: Which rows are without noise, (R, m).
    """
    length = rows.norm(dim=-1)
    if (exact & (length == 0)).any():
        return False
    unit = rows / torch.where(exact, length, 1.0)[..., None]
    factor, failed = torch.linalg.cholesky_ex(unit @ unit.mT + (~exact).to(rows).diag_embed())
    return not failed.any() and bool((factor.diagonal(dim1=-2, dim2=-1) > _CLEAR).all())


def check_reachable(sums: Sums, low: Tensor, high: Tensor) -> None:
    """Raise ValueError where sums without noise leave an element outside its bounds (B, T).

    The sums determine an element if some combination w of them contains it alone, Aᵀ w = e, with e
    its unit vector. Its value is then wᵀ b.
    """
    query, element = (low.isfinite() | high.isfinite()).nonzero(as_tuple=True)
    shared = len(sums.operator) == 1
    exact = (sums.noise == 0)[..., None]
    operator = torch.where(exact, sums.operator, 0.0)[query * (not shared)]
    unit = torch.nn.functional.one_hot(element, low.shape[1]).to(operator)[..., None]
    combination = torch.linalg.pinv(operator.mT) @ unit
    rest = (operator.mT @ combination - unit).norm(dim=(1, 2))
    value = (combination[..., 0] * sums.values[query]).sum(-1)
    size = (combination[..., 0].abs() * sums.values[query].abs()).sum(-1)
    rounding = _ROUNDING * torch.finfo(low.dtype).eps * size
    below, above = low[query, element] - rounding, high[query, element] + rounding
    wrong = (rest < _DETERMINED) & ((value < below) | (value > above))
    if wrong.any():
        first = int(wrong.nonzero()[0, 0])
        own = query[first], element[first]
        raise ValueError(
            "expected intervals that agree with sums without noise, got "
            f"{low[own].item():.6g} to {high[own].item():.6g} for an element of query "
            f"{int(query[first])} that the sums determine to be {value[first].item():.6g}"
        )


def _refuse(wrong: Tensor, row: int, expected: Tensor, values: Tensor) -> NoReturn:
    query = int(wrong.nonzero()[0, 0])
    raise ValueError(
        "expected sums without noise that agree with each other and with values known exactly, got "
        f"{values[query]:.6g} for row {row} of query {query}, where the others imply "
        f"{expected[query]:.6g}; correct it, or give the sums some noise"
    )


def _times(operator: Tensor, vectors: Tensor) -> Tensor:
    """A v: A (R, m, T), v (B, T) -> (B, m)."""
    if len(operator) == 1:
        return vectors @ operator[0].mT
    return (operator @ vectors[..., None])[..., 0]

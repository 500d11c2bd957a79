"""Known sums of elements with normal noise: p(b|z) for b = A t + s η, and t given b and z.

    p(b|z) = N(b; A μ(z), C),   C = A Σ(z) Aᵀ + diag s²,   Σ = diag σ²
    t|z, b = t₀ + Σ Aᵀ C⁻¹ (b − A t₀ − s η),   t₀ ~ p(t|z)

If σ does not depend on z, C is factorised once: with C = L Lᵀ, log p(b|z) takes one product of
L⁻¹ A with μ(z).

Source: Rue and Held (2005), section 2.3.3, conditioning by kriging, for draws. Differs in: nothing.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from crosscoding.target.bounded_sums import BoundedElements, BoundedLaw
from crosscoding.target.independent_sums import Sums

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Scales:
    """The standard deviations σ of T elements: fixed, or where the decoder outputs them.

    Args:
        fixed: σ, in double, shape (T,), NaN where it is decoded.
        outputs: The place of σ in the output, shape (R, T); arbitrary where σ is fixed.
        is_log_variance: Whether the number at that place is log σ² instead, shape (T,).
    """

    fixed: Tensor
    outputs: Tensor
    is_log_variance: Tensor

    @property
    def all_fixed(self) -> bool:
        """Whether no σ is decoded."""
        return not bool(self.fixed.isnan().any())

    def variances(self, output: Tensor) -> Tensor:
        """σ² of each element, in double: output (*sample, B, outputs) -> (*sample, B, T)."""
        if self.all_fixed:
            return self.fixed.square().expand(*output.shape[:-1], -1)
        decoded = self.fixed.isnan()
        own = torch.where(decoded, _at(output, self.outputs).double(), 0.0)
        log_variance = torch.where(self.is_log_variance, own, 0.0)
        scale = torch.where(self.is_log_variance | ~(own > 0), 1.0, own)
        invalid = decoded & ~self.is_log_variance & ~(own > 0)
        variance = torch.where(self.is_log_variance, log_variance.exp(), scale.square())
        variance = torch.where(invalid, torch.nan, variance)
        return torch.where(decoded, variance, self.fixed.nan_to_num(0.0).square())

    def slopes(self, output: Tensor) -> Tensor:
        """∂σ² / ∂(what the decoder outputs), 0 where σ is fixed: shape of `variances`."""
        own = _at(output, self.outputs).double()
        slope = torch.where(self.is_log_variance, own.exp(), 2 * own)
        return torch.where(self.fixed.isnan(), slope, 0.0)


@dataclass(frozen=True, eq=False)
class KnownSums:
    """Known sums for B queries.

    Args:
        sums: A, b and s of each query.
        outputs: The place of μ in the output, shape (R, T).
        scales: σ.
        whitened: L⁻¹ A in the model's dtype, shape (R, m, T), if σ is fixed; else None.
        half_log_det: ½ log |C|, shape (R,), if σ is fixed.
        root: L, in double, shape (R, m, m), if σ is fixed.
        target: L⁻¹ b, shape (B, m), if σ is fixed.
        bounded: Those of the elements that also have an interval; None without any.
    """

    sums: Sums
    outputs: Tensor
    scales: Scales
    whitened: Tensor | None = None
    half_log_det: Tensor | None = None
    root: Tensor | None = None
    target: Tensor | None = None
    bounded: BoundedElements | None = None

    @classmethod
    def of(cls, sums: Sums, outputs: Tensor, scales: Scales, like: Tensor) -> "KnownSums":
        """Known sums, prepared for many evaluations.

        Raises:
            ValueError: Exact sums are nearly dependent.
        """
        made = cls(sums, outputs, scales)
        if not scales.all_fixed:
            return made
        root = made._root(scales.fixed.square())
        both = torch.linalg.solve_triangular(root, sums.operator, upper=False)
        target = torch.linalg.solve_triangular(root, sums.values[..., None], upper=False)[..., 0]
        return replace(
            made,
            whitened=both.to(like),
            half_log_det=root.diagonal(dim1=-2, dim2=-1).log().sum(-1),
            root=root,
            target=target.to(like),
        )

    def select(self, index: Tensor | slice) -> "KnownSums":
        """Those of some of the queries."""
        bounded = self.bounded and self.bounded.select(index)
        chosen = replace(self, sums=self.sums.select(index), bounded=bounded)
        if self.target is not None:
            chosen = replace(chosen, target=self.target[index])
        if len(self.outputs) > 1:
            scales = replace(self.scales, outputs=self.scales.outputs[index])
            chosen = replace(chosen, outputs=self.outputs[index], scales=scales)
        if len(self.sums.operator) == 1 < len(self.sums.values) or self.whitened is None:
            return chosen
        assert self.half_log_det is not None
        assert self.root is not None
        return replace(
            chosen,
            whitened=self.whitened[index],
            half_log_det=self.half_log_det[index],
            root=self.root[index],
        )

    @property
    def numbers_in_box(self) -> int:
        """About how many numbers per query the probability of intervals takes in memory."""
        return 0 if self.bounded is None else self.bounded.numbers

    def moved(self, places: Tensor) -> "KnownSums":
        """The same for another output, in which places (R, outputs) has each number's place."""
        num = max(len(places), len(self.outputs))
        outputs, of_scales = (
            places.expand(num, -1).gather(1, part.expand(num, -1))
            for part in (self.outputs, self.scales.outputs)
        )
        scales = replace(self.scales, outputs=of_scales)
        return replace(self, outputs=outputs, scales=scales)

    # ---- log p(b|z) and its curvature ------------------------------------------------------------

    def log_prob(self, output: Tensor) -> Tensor:
        """log p(b|z) in nats: output (S, B or 1, outputs) -> (S, B)."""
        log_prob = self._log_prob(output)
        if self.bounded is None:
            return log_prob
        return log_prob + self._box(output).log_mass().to(log_prob)

    def _log_prob(self, output: Tensor) -> Tensor:
        constant = self.sums.num_rows.double() * _HALF_LOG_2PI
        means = self._means(output)
        if self.whitened is not None:
            assert self.target is not None
            assert self.half_log_det is not None
            gaps = self.target - _product(self.whitened, means)
            return -0.5 * gaps.square().sum(-1) - (self.half_log_det + constant).to(gaps)
        root = self._root(self.scales.variances(self._expanded(output)))
        gaps = self.sums.values - _product(self.sums.operator, means.double())
        white = torch.linalg.solve_triangular(root, gaps[..., None], upper=False)[..., 0]
        half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return (-0.5 * white.square().sum(-1) - half_log_det - constant).to(output.dtype)

    def fisher_product(self, output: Tensor, tangents: Tensor) -> Tensor:
        """F v: output (S, B, outputs), v (*more, S, B, outputs), in that shape.

        F = Aᵀ C⁻¹ A for the means, and ½ (aᵢᵀ C⁻¹ aⱼ)² for variances, times the slopes of both.
        """
        product = self._fisher_product(output, tangents)
        if self.bounded is None:
            return product
        along = self._means(tangents).double()
        moved = along - self._gain(output, _product(self.sums.operator, along))
        with torch.no_grad():
            information = self._box(output).information()
        chosen = (information @ self.bounded.chosen(moved)[..., None])[..., 0]
        back = torch.zeros_like(along).scatter_add(
            -1, self.bounded.columns.expand(chosen.shape), chosen
        )
        taken = _adjoint(
            self.sums.operator,
            self._solved(
                output,
                _product(self.sums.operator, self.scales.variances(self._expanded(output)) * back),
            ),
        )
        return self._added(product, self.outputs, back - taken)

    def _fisher_product(self, output: Tensor, tangents: Tensor) -> Tensor:
        result = torch.zeros_like(tangents)
        along = self._means(tangents)
        if self.whitened is not None:
            white = self.whitened.to(along.dtype)
            return self._added(result, self.outputs, _adjoint(white, _product(white, along)))
        root = self._root(self.scales.variances(self._expanded(output)))
        operator = self.sums.operator.expand(*root.shape[:-1], -1)
        white = torch.linalg.solve_triangular(root, operator, upper=False)
        product = (white.mT @ (white @ along.double()[..., None]))[..., 0]
        result = self._added(result, self.outputs, product)
        slopes = self.scales.slopes(self._expanded(output))
        along = slopes * _at(tangents, self.scales.outputs).double()
        gram = (white.mT @ white).square()
        product = 0.5 * slopes * (gram @ along[..., None])[..., 0]
        return self._added(result, self.scales.outputs, product)

    # ---- predictions -----------------------------------------------------------------------------

    def put_draws(self, data: Tensor, output: Tensor, noise: Tensor, uniforms: Tensor) -> Tensor:
        """Data (S, B, D), drawn from p(t|z), moved so that they agree with the sums.

        Args:
            data: The draws; only those of summed elements are moved.
            output: The decoder's output, shape (S, B, outputs).
            noise: η, standard normal, shape (S, 1, m).
            uniforms: Uniform numbers for elements with intervals, shape (S, 1, D).
        """
        elements = self.sums.elements
        free = data[..., elements].double()
        gaps = self.sums.values - _product(self.sums.operator, free)
        moved = free + self._gain(output, gaps - self.sums.noise * noise.double())
        if self.bounded is not None:
            box = self._box(output)
            own = self.bounded.chosen(uniforms[..., elements].expand(moved.shape))
            given = box.draw(own)
            moved = moved + box.shift(given) - box.shift(self.bounded.chosen(moved))
        # once more for exact sums, whose remaining gaps are rounding errors
        gaps = self.sums.values - _product(self.sums.operator, moved)
        moved = moved + self._gain(output, torch.where(self.sums.noise > 0, 0.0, gaps))
        return self._put(data, torch.where(self.sums.summed, moved, free))

    def put_means(self, data: Tensor, output: Tensor) -> Tensor:
        """Data (S, B, D) with E[t|z, b] of summed elements."""
        moved = self._means_given(output)
        if self.bounded is not None:
            moved = moved + self._box(output).mean_shift()
        return self._put(data, torch.where(self.sums.summed, moved, data[..., self.sums.elements]))

    def put_variances(self, data: Tensor, output: Tensor) -> Tensor:
        """Data (S, B, D) with Var[t|z, b] of summed elements."""
        variances = self.scales.variances(output)
        if self.root is not None:
            white = torch.linalg.solve_triangular(self.root, self.sums.operator, upper=False)
            taken = self.scales.fixed.pow(4) * white.square().sum(-2)
        else:
            root = self._root(variances)
            operator = self.sums.operator.expand(*root.shape[:-1], -1)
            white = torch.linalg.solve_triangular(root, operator, upper=False)
            taken = variances.square() * white.square().sum(-2)
        left = variances - taken
        if self.bounded is not None:
            left = left + self._box(output).variance_change()
        left = left.clamp_min(0)
        return self._put(data, torch.where(self.sums.summed, left, data[..., self.sums.elements]))

    def _gain(self, output: Tensor, gaps: Tensor) -> Tensor:
        """Σ Aᵀ C⁻¹ gaps, (S, B, T), in double."""
        variances = self.scales.variances(self._expanded(output))
        return variances * _adjoint(self.sums.operator, self._solved(output, gaps))

    def _solved(self, output: Tensor, gaps: Tensor) -> Tensor:
        """C⁻¹ gaps, (*more, S, B, m)."""
        root = self.root
        if root is None:
            root = self._root(self.scales.variances(self._expanded(output)))
        return _solved(root, gaps)

    def _means_given(self, output: Tensor) -> Tensor:
        """E[t|z, b] of summed elements, in double, (S, B, T)."""
        means = self._means(output).double()
        gaps = self.sums.values - _product(self.sums.operator, means)
        return means + self._gain(output, gaps)

    def _box(self, output: Tensor) -> BoundedLaw:
        """The law of elements with intervals, given the sums."""
        assert self.bounded is not None
        variances = self.scales.variances(self._expanded(output))
        root = self._root(self.scales.fixed.square() if self.root is not None else variances)
        operator = self.sums.operator.expand(*root.shape[:-1], -1)
        white = torch.linalg.solve_triangular(root, operator, upper=False)
        own = self.scales.fixed.square()[None] if self.root is not None else variances
        return self.bounded.law(self._means_given(output), white * own[..., None, :], own)

    def _put(self, data: Tensor, own: Tensor) -> Tensor:
        data = data.clone()
        data[..., self.sums.elements] = own.to(data.dtype)
        return data

    # ---- parts -----------------------------------------------------------------------------------

    def _means(self, output: Tensor) -> Tensor:
        """μ, or a tangent of it, of summed elements and 0 of others, (*sample, B or 1, T)."""
        means = _at(output, self.outputs)
        return means if self.sums.all_summed else torch.where(self.sums.summed, means, 0.0)

    def _expanded(self, output: Tensor) -> Tensor:
        return output.expand(*output.shape[:-2], len(self.sums.values), output.shape[-1])

    def _root(self, variances: Tensor) -> Tensor:
        """L of C, in double, (*sample, R, m, m), from σ² (*sample, R, T) or (T,)."""
        operator, noise = self.sums.operator, self.sums.noise
        operator = torch.where(self.sums.summed[:, None], operator, 0.0)
        variances = torch.where(self.sums.summed, variances, 0.0)
        covariance = (operator * variances[..., None, :]) @ operator.mT
        root, failed = torch.linalg.cholesky_ex(covariance + noise.square().diag_embed())
        if failed.any() and self.scales.all_fixed:
            raise ValueError(
                "expected sums without noise that are clearly independent of each other, got some "
                "that nearly follow from others; leave these out"
            )
        return root

    def _added(self, result: Tensor, outputs: Tensor, product: Tensor) -> Tensor:
        product = torch.where(self.sums.summed, product, 0.0).to(result.dtype)
        index = outputs.expand(product.shape[-2], -1).expand(product.shape)
        return result.scatter_add(-1, index, product)


def _at(output: Tensor, places: Tensor) -> Tensor:
    """Numbers of the output (*sample, B or 1, outputs) at places (R, T): (*sample, B, T)."""
    if len(places) == 1:
        return output.index_select(-1, places[0])
    sample = output.shape[:-2]
    output = output.expand(*sample, len(places), output.shape[-1])
    return output.gather(-1, places.expand(*sample, *places.shape))


def _product(operator: Tensor, vectors: Tensor) -> Tensor:
    """A v: A (R, m, T), v (*sample, B or 1, T) -> (*sample, B, m)."""
    if len(operator) == 1:
        return vectors @ operator[0].mT
    if vectors.shape[-2] == 1:
        return torch.einsum("bmt,...t->...bm", operator, vectors[..., 0, :])
    return torch.einsum("bmt,...bt->...bm", operator, vectors)


def _adjoint(operator: Tensor, vectors: Tensor) -> Tensor:
    """Aᵀ v: A (R, m, T), v (*sample, B, m) -> (*sample, B, T)."""
    if len(operator) == 1:
        return vectors @ operator[0]
    return torch.einsum("bmt,...bm->...bt", operator, vectors)


def _solved(root: Tensor, vectors: Tensor) -> Tensor:
    """C⁻¹ v for C = L Lᵀ, L (*sample or none, R, m, m), v (*more, *sample, B, m)."""
    if root.ndim > 3:
        root = root.expand(*vectors.shape[:-1], *root.shape[-2:])
        return torch.cholesky_solve(vectors[..., None], root)[..., 0]
    if len(root) == 1:
        return torch.cholesky_solve(vectors.flatten(0, -2).mT, root[0]).mT.reshape(vectors.shape)
    columns = vectors.flatten(0, -3).permute(1, 2, 0)
    return torch.cholesky_solve(columns, root).permute(2, 0, 1).reshape(vectors.shape)

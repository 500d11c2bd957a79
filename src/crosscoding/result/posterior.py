"""`Posterior`: the answer to a batch of queries, and everything that can be asked of it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from crosscoding.arrays import as_tensor
from crosscoding.isolation import isolated_class
from crosscoding.model.matching import check_dtype
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from
from crosscoding.result.answer_figures import AnswerFigures
from crosscoding.result.arviz import to_arviz
from crosscoding.result.element_answers import ElementAnswers
from crosscoding.result.files import SavedPosterior
from crosscoding.result.findings import Findings
from crosscoding.result.looks import Looks
from crosscoding.result.marginals import Marginals
from crosscoding.target.base import Target
from crosscoding.target.vae_target import VAETarget

if TYPE_CHECKING:
    import pandas as pd


@isolated_class
class Posterior(ElementAnswers, AnswerFigures, Looks):
    """p(z|x) and p(y|x) for each query of a batch, as approximated by a method.

    `condition` makes it; do not construct it yourself. It draws from its own stream of random
    numbers, which starts at the seed given to `condition`, unless a call passes another seed.

    Attributes:
        target: The model with its evidence; None if the posterior was loaded without its model.
        method: Name of the method that answered.
        batch_shape: Shape of the batch of queries; () for one query.
        seconds: Wall-clock time of the method.
    """

    def __init__(
        self,
        findings: Findings,
        *,
        target: Target | None,
        batch_shape: torch.Size,
        method: str,
        generator: Generator,
        seconds: float = 0.0,
        in_noise: bool | None = None,
    ) -> None:
        self._findings = findings
        self._generator = generator
        self._flat_target = None if target is None else target.flatten()
        if in_noise is None:
            in_noise = isinstance(target, VAETarget) and target.vae.prior is not target.model.prior
        self._in_noise = in_noise  # whether the stored draws are noise that a prior maps to z
        self.target = target
        self.device = findings.draws.device
        self.batch_shape = batch_shape
        self.method = method
        self.seconds = seconds

    # ---- z -------------------------------------------------------------------------------------

    @property
    def draws(self) -> Tensor:
        """Stored latent draws, shape (S, *batch, latent)."""
        return self._unflatten(self._latents(self._findings.draws), 1)

    @property
    def log_weights(self) -> Tensor | None:
        """Normalised log-weights of the stored draws, shape (S, *batch); None: all equal."""
        weights = self._findings.log_weights
        return None if weights is None else self._unflatten(weights, 1)

    def sample(self, num: int, *, seed: int | Generator | None = None) -> Tensor:
        """Latent draws from the approximation of p(z|x).

        A fitted cross-coder gives new draws. Weighted draws, such as a grid's, are resampled by
        weight; other stored draws, such as those of chains, repeat only once all have been used.

        Args:
            num: Number of draws, ≥ 0.
            seed: Seed of these draws alone; by default the posterior's own stream continues.
        Returns:
            Shape (num, *batch, latent).
        """
        return self._unflatten(self._latents(self._sample(num, self._stream(seed))), 1)

    def log_prob(self, z: Tensor | np.ndarray) -> Tensor:
        """log q(z|x) in nats, normalised.

        Args:
            z: Latent points, shape (*sample, *batch, latent), of the draws' dtype.
        Returns:
            Shape (*sample, *batch).
        Raises:
            ValueError: z is of another shape or dtype.
            NotImplementedError: The method gives draws only, or its map need not be one-to-one.
        """
        findings, z = self._findings, as_tensor(z, "z")
        dim, num_batch_dims = findings.draws.shape[-1], len(self.batch_shape)
        batch = z.shape[max(z.ndim - 1 - num_batch_dims, 0) : -1]
        if z.ndim < 1 + num_batch_dims or z.shape[-1] != dim or batch != self.batch_shape:
            wanted = ", ".join(["*sample", *map(str, self.batch_shape), str(dim)])
            raise ValueError(f"expected z of shape ({wanted}), got {tuple(z.shape)}")
        check_dtype(z, "z", findings.draws.dtype)
        flat = z.reshape(*z.shape[: z.ndim - 1 - num_batch_dims], len(findings.ess), dim)
        outside, ladj = torch.zeros_like(flat[..., 0], dtype=torch.bool), 0.0
        if self._in_noise:
            flat, ladj = self._model().noise_and_ladj(flat)
            outside = ~flat.isfinite().all(-1)  # the prior never gives such a z
            flat = torch.where(outside.unsqueeze(-1), 0.0, flat)
        if findings.fitted is not None:
            result = findings.fitted.log_prob(flat)
        elif findings.exact_density:
            if self._flat_target is None:
                raise NotImplementedError(
                    "expected the model, as log_prob is computed from its density; pass it: "
                    "Posterior.load(path, vae=...)"
                )
            with torch.no_grad():
                result = self._flat_target.log_joint(flat) - findings.log_evidence
        else:
            raise NotImplementedError(
                f"{self.method} gives draws but no density; use Variational or Grid for log_prob"
            )
        return torch.where(outside, -math.inf, result + ladj).reshape(z.shape[:-1])

    # ---- the datum -----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(self, num: int, *, seed: int | Generator | None = None) -> Tensor:
        """Draws of the complete datum t = (x, y): y from p(y|z), and x exactly as given.

        With the same seed, the underlying z are those of `sample`.

        Args:
            num: Number of draws, ≥ 0.
            seed: Seed of these draws alone; by default the posterior's own stream continues.
        Returns:
            Shape (num, *batch, *data).
        Raises:
            NonFiniteError: For an unobserved element the decoder outputs NaN, infinity, or other
                parameters for which p(t|z) does not exist. All methods that predict raise this.
        """
        predictions, generator = self._predictions(), self._stream(seed)
        return predictions.draws(self._sample(num, generator), generator)

    @torch.no_grad()
    def predict_mean(self, num: int, *, seed: int | Generator | None = None) -> Tensor:
        """The decoder's mean E[t|z] at `num` draws of z, x exactly as given: (num, *batch, *data).

        The paper's figures show these pictures. They vary with z, but are not draws of y.
        """
        return self._predictions().means_at(self._sample(num, self._stream(seed)))

    @torch.no_grad()
    def mean(self) -> Tensor:
        """E[t|x] over the stored draws, x exactly as given, shape (*batch, *data)."""
        return self._predictions().mean()

    @torch.no_grad()
    def std(self) -> Tensor:
        """Standard deviation of each element given x, 0 where observed, shape (*batch, *data)."""
        return self._predictions().std()

    @torch.no_grad()
    def query_log_prob(self, truth: "Tensor | np.ndarray | pd.DataFrame") -> Tensor:
        """log p(y|x) = log E_{q(z|x)}[p(y|z)] of the unobserved elements of truth, in nats.

        This is the paper's estimate, an average over the stored draws. Where few of them predict
        truth (see `query_ess`), it is too low. `crosscoding.query_log_prob` avoids this by
        conditioning again, and also gives a standard error.

        Args:
            truth: Complete data, shape (*batch, *data), or a DataFrame if the model has a table.
                Its observed elements are ignored, even where they contradict the evidence.
        Returns:
            Shape (*batch,); 0 where everything was observed.
        Raises:
            ValueError: truth is of another shape, dtype or device, or outside the support.
            NonFiniteError: An unobserved element of truth is NaN or infinite.
        """
        return self._predictions().log_prob(truth)

    @torch.no_grad()
    def _averaged_query_log_prob(
        self, truth: "Tensor | np.ndarray | pd.DataFrame"
    ) -> tuple[Tensor, Tensor]:
        """`query_log_prob` and its standard error in nats, both (*batch,); raises what that raises.

        The error is infinite where too few draws contribute for it to mean anything.
        """
        return self._predictions().log_prob_and_error(truth)

    @torch.no_grad()
    def query_ess(self, truth: "Tensor | np.ndarray | pd.DataFrame") -> Tensor:
        """Effective number of draws in `query_log_prob`, (*batch,); raises what that raises."""
        return self._predictions().ess(truth)

    # ---- exporting and saving --------------------------------------------------------------------

    def to_arviz(self) -> Any:
        """The stored draws for ArviZ: InferenceData (ArviZ 0.x) or a DataTree (1.x).

        Groups: `posterior` has z, (chain, draw, *batch, latent); `sample_stats` has log_weights if
        the draws have weights, which ArviZ ignores; `observed_data` has the evidence, NaN where
        unobserved, and the mask, if there is a model.

        Raises:
            ImportError: ArviZ is not installed: pip install 'crosscoding[arviz]'.
        """
        evidence = self.target.evidence if isinstance(self.target, VAETarget) else None
        attributes = {"method": self.method, "seconds": self.seconds}
        findings = replace(self._findings, draws=self._latents(self._findings.draws))
        return to_arviz(findings, evidence, self.batch_shape, attributes)

    def save(self, path: str | Path) -> None:
        """Write the posterior to a folder, as safetensors and JSON, completely or not at all.

        The decoder is saved too if it is a stack of common layers. Otherwise there is a warning,
        and the model has to be passed to `load`.
        """
        parts = SavedPosterior(
            findings=self._findings,
            target=self.target,
            batch_shape=self.batch_shape,
            method=self.method,
            generator=self._generator,
            seconds=self.seconds,
            in_noise=self._in_noise,
        )
        parts.write(Path(path))

    @staticmethod
    def load(path: str | Path, *, vae: VAE | None = None) -> "Posterior":
        """Read a posterior that `save` wrote.

        Args:
            path: The folder.
            vae: The model, needed for `predict`, `mean` and `query_log_prob` if it was not saved
                with the posterior.
        Raises:
            ModelFormatError: The folder holds no posterior, is damaged, or belongs to another model
                than `vae`.
        """
        return Posterior(**vars(SavedPosterior.read(Path(path), vae)))

    # ---- parts ---------------------------------------------------------------------------------

    def _of(self, queries: Sequence[int]) -> "Posterior":
        """The answers to some queries of the flattened batch, with a random stream of their own."""
        index = torch.tensor(list(queries), dtype=torch.long, device=self.device)
        return Posterior(
            self._findings.select(index),
            target=None if self._flat_target is None else self._flat_target.select(index),
            batch_shape=index.shape,
            method=self.method,
            generator=Generator().manual_seed(0),
            seconds=self.seconds,
            in_noise=self._in_noise,
        )

    def _unflatten(self, tensor: Tensor, num_sample_dims: int = 0) -> Tensor:
        sample, rest = tensor.shape[:num_sample_dims], tensor.shape[num_sample_dims + 1 :]
        return tensor.reshape((*sample, *self.batch_shape, *rest))

    def _latents(self, z: Tensor) -> Tensor:
        """Stored or new draws, (S, B, latent), in the model's own space."""
        return self._model().latents(z) if self._in_noise else z

    def _model(self) -> Target:
        if self._flat_target is None:
            raise ValueError(
                "expected the model, whose prior maps the stored draws to z; pass it: "
                "Posterior.load(path, vae=...)"
            )
        return self._flat_target

    def _stream(self, seed: int | Generator | None) -> Generator:
        return self._generator if seed is None else generator_from(seed)

    @torch.no_grad()
    def _sample(self, num: int, generator: Generator) -> Tensor:
        if isinstance(num, bool) or not isinstance(num, int):
            raise TypeError(f"expected the number of draws to be an int, got {type(num).__name__}")
        if num < 0:
            raise ValueError(f"expected a number of draws >= 0, got {num}")
        return self._findings.sample(num, generator=generator)

    def _predictions(self) -> Marginals:
        if isinstance(self.target, VAETarget):
            return Marginals(self.target, self._findings)
        if self.target is None:
            raise ValueError(
                "expected a posterior with a decoder, got one that was loaded without its model; "
                "pass it: Posterior.load(path, vae=...)"
            )
        raise ValueError(
            "expected a posterior with a decoder, got that of a bare density, which has z but no "
            "data; use sample(num), or average over the draws with their log_weights: "
            "posterior.sample(1000).mean(0) is the mean of z"
        )

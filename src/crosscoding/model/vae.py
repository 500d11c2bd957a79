"""A trained VAE as inference sees it: a prior, a frozen decoder and a likelihood."""

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.columns import Table
from crosscoding.covariates import Covariates, mapped
from crosscoding.isolation import FORWARD_MODE, isolated
from crosscoding.likelihoods import Likelihood
from crosscoding.model.amortised import Amortised, Proposing
from crosscoding.model.bound import (
    WithoutCovariates,
    bound_for,
    first_row,
    for_first,
    kept_examples,
    takes_covariates,
)
from crosscoding.model.check_report import CheckReport
from crosscoding.model.cost import Cost, check_growth, cost_of
from crosscoding.model.decoder import decoder_output, empty_like, lost_elements, try_decoder
from crosscoding.model.encoder import encode, encoder_output, tried_encoder
from crosscoding.model.files import Savable, some_outputs
from crosscoding.model.last_layer import find_head
from crosscoding.model.matching import check_matches
from crosscoding.model.memory_layout import set_layout
from crosscoding.model.model_print import ModelPrint
from crosscoding.model.parts import Model
from crosscoding.model.rows import Rows
from crosscoding.model.tabular import checked_table, of_frame
from crosscoding.model.trial import frozen_copy
from crosscoding.model.tried_prior import prior_probes, tried_prior
from crosscoding.model.undefined_elements import element_name
from crosscoding.model.vae_description import Shown
from crosscoding.priors import Normal, Prior

if TYPE_CHECKING:
    import pandas as pd


class VAE(Savable, Proposing, Rows, Shown):
    """A trained generative model p(z) p(t|z): z from the prior, then t from the decoder.

    The decoder is copied, put in eval mode, and its weights are frozen; the module you pass is not
    changed. The copy is then tried on a few points, and refused if its output for one z depends on
    the other z in the batch or changes from call to call: p(t|z) would not be a distribution.

    Args:
        decoder: Module that maps z (B, latent) to the likelihood's parameters, shape (B, *data),
            or (B, *data, P) or a tuple of P tensors where an element has P parameters.
        latent_dim: Size of z, ≥ 1.
        likelihood: What the decoder's output means, for example `likelihoods.Bernoulli()`. For
            `likelihoods.Mixed` the parameters are side by side, column after column, or a tuple of
            one tensor per part.
        encoder: The encoder that the decoder was trained with, if you have it: a module that maps
            data (B, *data) to mean and log-variance of q(z|t), side by side in one tensor
            (B, 2 latent) or as a tuple of two (B, latent). It is copied and tried like the decoder.
            Answers never depend on it; it may only propose where to look.
        prior: p(z), one of `priors`, if it is not N(0, I). It is copied and tried too. Methods work
            with the noise that it maps to z; `decode` and all answers use z itself. If it is
            discrete, the decoder takes zeros and ones, or one-hot rows (`priors.Categorical`).
        given: Examples of covariates, if the decoder is called as `decoder(z, given)`: a tensor of
            shape (N, *covariates), or a dict or tuple of tensors, N ≥ 1. At most 64 distinct ones
            are kept. Evidence then carries covariates of its own. Points are decoded beforehand
            for each example that is kept, so give all labels if there are few.
        table: A `tables.Table` with a column for each element, if data are rows of a table.
            Everything that takes evidence then takes DataFrames.

    Attributes:
        decoder: The frozen copy.
        encoder: The frozen copy of the encoder, or None.
        prior: The frozen copy of the prior.
        amortised: The network that proposes z for evidence, or None; `with_amortised` sets it.
        examples: Distinct examples of covariates, or None if the decoder takes none.
        table: The table, or None.
        data_shape: Shape of one datum.
        head: The decoder's last linear layer, or None if none was found in its code.
        dtype: The decoder's floating-point type, and that of all answers.
        device: The decoder's device, and that of all answers.
        kept: Cached results computed from the decoder, by name.

    Raises:
        TypeError: decoder or encoder is not a module, likelihood is not a likelihood, prior is not
            a prior, given is not made of tensors, or latent_dim is not an int.
        ValueError: The decoder does not fit latent_dim, given or the likelihood, or gives an
            element no p(t|z) at any draw from the prior; encoder or prior do not fit; the prior is
            not one-to-one, or contradicts its own density; or one of them mixes the rows of a
            batch, is not deterministic, or updates itself.
        NonFiniteError: Encoder or prior output NaN or infinity; or the decoder does, for all
            elements at a draw from the prior or for one element at all draws.

    Warns:
        UserWarning: Some elements have no p(t|z) at draws from the prior, as the decoder outputs
            NaN or numbers that the likelihood does not take; or it outputs numbers that look like
            probabilities where logits are expected.

    Example:
        >>> from crosscoding.likelihoods import Gaussian
        >>> vae = VAE(nn.Linear(2, 5), latent_dim=2, likelihood=Gaussian(0.1))
        >>> vae.data_shape
        torch.Size([5])
    """

    checker: ClassVar[Callable[..., CheckReport]]
    """What `check` calls. Set by `crosscoding.checks`, which is a layer above (decision 0006)."""

    @isolated
    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: Likelihood,
        encoder: nn.Module | None = None,
        prior: Prior | None = None,
        *,
        given: Covariates = None,
        table: Table | None = None,
    ) -> None:
        self.decoder = frozen_copy(decoder, "decoder")
        _check_types(latent_dim, likelihood)
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.kept: dict[str, Any] = {}
        like = empty_like(self.decoder)
        self.dtype, self.device = like.dtype, like.device
        self.examples = kept_examples(given, self.device)
        self.given: Covariates = None
        self.prior = tried_prior(prior, latent_dim, like, first_row(self.examples))
        if self.prior.takes_given and not takes_covariates(self.decoder):
            self.decoder = WithoutCovariates(self.decoder)
        tried = try_decoder(self.decoder, self.prior, likelihood, like, self.examples)
        self.data_shape, self._params_shape = tried.data_shape, tried.output.shape[1:]
        self._flat_likelihood = tried.flat_likelihood
        self.table = checked_table(table, self.data_shape)
        for doubt in tried.doubts:
            warnings.warn(doubt, UserWarning, stacklevel=3)
        probes, by_rows = tried.probes, likelihood.by_rows
        seen = self.prior.decoder_input(probes)
        self.head = find_head(self.decoder, seen, tried.output, *tried.given) if by_rows else None
        self.encoder: nn.Module | None = None
        if encoder is not None:
            self._set_encoder(encoder)
        # torch takes long to load its operation counter and forward mode: not in a time budget
        _ = self.cost
        with FORWARD_MODE:
            torch.func.jvp(torch.neg, (probes,), (probes,))

    @isolated
    def __repr__(self) -> str:
        name = type(self.own_decoder).__name__
        shape, likelihood = tuple(self.data_shape), self.likelihood
        prior = "" if isinstance(self.prior, Normal) else f", prior={type(self.prior).__name__}"
        return f"VAE({name}, latent_dim={self.latent_dim}, data_shape={shape}, {likelihood}{prior})"

    @property
    def flat_likelihood(self) -> Likelihood:
        """The likelihood for flattened data, whose parameters `decode_flat` gives."""
        return self._flat_likelihood

    @property
    def data_size(self) -> int:
        """Number of elements of one datum."""
        return self.data_shape.numel()

    @property
    def params_size(self) -> int:
        """Number of parameters that the decoder outputs for one datum."""
        return self._params_shape.numel()

    @property
    def operations(self) -> float:
        """Multiply-adds needed to decode one z."""
        return max(self.cost.operations, float(self.data_size))

    @property
    @isolated
    def cost(self) -> Cost:
        """The cost of decoding one z, counted at the first call."""
        if "cost" not in self.kept:
            z = torch.zeros(1, self.latent_dim, dtype=self.dtype, device=self.device)
            self.kept["cost"] = cost_of(for_first(self)._run, z)
        return self.kept["cost"]

    @property
    def row_values(self) -> int:
        """Numbers per z by which pieces are sized: a third of what decoding holds in memory.

        It is at least the size of the output. As torch frees a layer's output once the next layer
        has used it, at most two of the largest are in memory, besides the decoder's own output.
        """
        return max(self.params_size, (self.params_size + 2 * self.cost.largest) // 3)

    @isolated
    def to(self, device: torch.device | str) -> "VAE":
        """The same model on another device; itself if it is already there."""
        wanted = torch.device(device)
        if wanted.type == self.device.type and wanted.index in (None, self.device.index):
            return self
        tensors, description = self.likelihood.to_parts()
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        likelihood = Likelihood.from_parts((moved, description))
        decoder = frozen_copy(self.own_decoder, "decoder").to(device)
        set_layout(decoder, torch.contiguous_format)  # the usual one, until it is tried there
        encoder = self.encoder and frozen_copy(self.encoder, "encoder").to(device)
        prior = copy.deepcopy(self.prior).to(device)
        more = {"given": mapped(lambda t: t.to(device), self.examples), "table": self.table}
        there = VAE(decoder, self.latent_dim, likelihood, encoder, prior, **more)
        return there.with_amortised(self.amortised and self.amortised.to(wanted))

    @isolated
    def decode(self, z: Tensor, given: Covariates = None) -> Tensor:
        """Parameters of p(t|z).

        Args:
            z: Latent points, shape (*sample, latent).
            given: Covariates, if the decoder takes any: batch dimensions that broadcast to
                (*sample,), then those of an example.
        Returns:
            Shape (*sample, *data, *param_shape), as the decoder has it.
        Raises:
            ValueError: z or given does not fit the model.
        """
        if z.ndim < 1 or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"expected z of shape (*sample, {self.latent_dim}), got {tuple(z.shape)}"
            )
        vae = bound_for(self, given, z.shape[:-1])
        return vae.decode_flat(z).reshape(*z.shape[:-1], *self._params_shape)

    @isolated
    def decode_flat(self, z: Tensor) -> Tensor:
        """Parameters of p(t|z) for flattened data, (*sample, E, *param_shape)."""
        shape = (*z.shape[:-1], *self.likelihood.flat_shape(self._params_shape))
        if z.numel() == 0:
            return z.new_zeros(shape)
        points = z.reshape(-1, self.latent_dim).clone()  # a decoder may overwrite its input
        return self._run(points).reshape(shape)

    def element_name(self, element: int) -> str:
        """An element of a flattened datum for messages: its column, or its index in the data."""
        if self.table is not None:
            return self.table.columns[element].where
        return element_name(self.data_shape, element)

    @isolated
    def encode(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z|t), the encoder's guess at z.

        The encoder takes complete data only. Use its guess to propose z, not as an answer.

        Args:
            data: t, shape (*batch, *data).
        Returns:
            Mean and standard deviation, both of shape (*batch, latent).
        Raises:
            ValueError: The model has no encoder, or the data do not fit the model.
            NonFiniteError: The encoder outputs NaN or infinity.

        Example:
            >>> from crosscoding import zoo
            >>> mean, std = zoo.load("mnist-2d").encode(zoo.digits()[0])
            >>> mean.shape
            torch.Size([40, 2])
        """
        if self.encoder is None:
            raise ValueError("expected a model with an encoder, VAE(..., encoder=...), got none")
        check_matches(self, data, "data", None)
        batch = data.shape[: data.ndim - len(self.data_shape)]
        if batch.numel() == 0:
            return data.new_zeros(*batch, self.latent_dim), data.new_ones(*batch, self.latent_dim)
        mean, std = encode(self.encoder, data.reshape(-1, *self.data_shape))
        return mean.reshape(*batch, -1), std.reshape(*batch, -1)

    def lost(self, output: Tensor) -> Tensor:
        """Which elements have no p(t|z), as their parameters are NaN, say: boolean, (N, E).

        Args:
            output: The decoder's output, shape (N, *data, *param_shape).
        """
        return lost_elements(self.likelihood, self._flat_likelihood, output)

    @isolated
    def check(
        self,
        data: "Tensor | np.ndarray | pd.DataFrame | None" = None,
        *,
        given: Covariates = None,
        seed: int | torch.Generator | None = 0,
    ) -> CheckReport:
        """Check the model for common mistakes before you use it; takes a few seconds.

        It checks the decoder (does its output fit the likelihood, does one z always give the same
        output, batch norm, derivatives, NaN far out, unused latent dimensions) and, if you pass
        data, compares them with the model (support, units, counts, log p against that of each
        column alone, the scale, and whether they lie where the prior does). It also reports what
        decoding costs and which methods suit. The checks that need derivatives or Gaussian fits
        are left out for discrete latents: far out, gradients, latent, bank, explanation, scale and
        prior.

        Args:
            data: Complete data like those the model was trained on, (N, *data), a tensor or NumPy
                array of the model's dtype, or a DataFrame without gaps. A few hundred are plenty;
                of more than 2,000, a random subset is used.
            given: Covariates of the data, a row for each or one for all, if the decoder takes any.
                Without data, the model's own examples are used.
            seed: Determines the random points and, if there are too many data, the subset.
        Returns:
            A report: `print` shows it, `ok` is True if it has no error, `findings` holds one result
            per check, and `as_dict()` is ready for JSON.

        Raises:
            TypeError: data is not a tensor, an array, or a DataFrame for a model with a table.
            ValueError: The data do not fit the model, or a cell of a DataFrame is missing; or
                covariates are missing, superfluous, or do not fit the data.

        Example:
            >>> import crosscoding as cc
            >>> cc.zoo.load("mnist-2d").check(cc.zoo.digits()[0])["units"].status
            'ok'
        """
        return VAE.checker(self, of_frame(self, data), given=given, seed=seed)

    @classmethod
    def _made_of(cls, model: Model) -> "VAE":
        parts = model.decoder, model.latent_dim, model.likelihood
        vae = cls(*parts, prior=model.prior, given=model.examples, table=model.table)
        if model.encoder is not None:
            check_growth(model.encoder, vae.data_shape)
            vae._set_encoder(model.encoder)
        if model.network is not None and model.crosscoder is not None:
            made = Amortised.of(vae, model.network, model.crosscoder)
            vae = vae.with_amortised(made.with_record(model.record))
        return vae

    @torch.no_grad()
    def own_print(self) -> ModelPrint:
        """The model's fingerprint: its likelihood, and outputs at draws of its prior."""
        like, vae = torch.empty(0, dtype=self.dtype, device=self.device), for_first(self)
        outputs = vae._run(prior_probes(self.prior, like, given=vae.given))
        return ModelPrint(some_outputs(outputs), self.likelihood)

    @torch.no_grad()
    def _model(self, *, whole: bool) -> Model:
        encoder, amortised = (self.encoder, self.amortised) if whole else (None, None)
        encodings = None
        if encoder is not None:
            encodings = some_outputs(encoder_output(encoder, self.data_for_trial()))
        return Model(
            self.own_decoder,
            self.latent_dim,
            self.likelihood,
            encoder,
            None if isinstance(self.prior, Normal) else self.prior,
            self.examples,
            self.table,
            outputs=self.own_print().outputs,
            encoder_outputs=encodings,
            network=amortised and amortised.network,
            crosscoder=amortised and amortised.crosscoder,
            record=amortised and amortised.record,
        )

    def _set_encoder(self, encoder: nn.Module) -> None:
        if self.examples is not None:
            raise ValueError(
                "expected no encoder for a decoder that takes covariates; leave it out, as no "
                "answer depends on it"
            )
        if self.prior.noise_dim is None:
            raise ValueError(
                "expected no encoder for discrete latents, as its mean and variance are of "
                "continuous ones; leave it out, as no answer depends on it"
            )
        self.encoder = tried_encoder(encoder, self.data_for_trial(), self.latent_dim)

    def _run(self, z: Tensor) -> Tensor:
        return decoder_output(self.decoder, self.likelihood, self.prior.decoder_input(z))


def _check_types(latent_dim: object, likelihood: object) -> None:
    """Raise TypeError or ValueError unless these are a size and a likelihood."""
    if isinstance(latent_dim, bool) or not isinstance(latent_dim, int):
        raise TypeError(f"expected latent_dim to be an int, got {type(latent_dim).__name__}")
    if latent_dim < 1:
        raise ValueError(f"expected latent_dim >= 1, got {latent_dim}")
    if not isinstance(likelihood, Likelihood):
        raise TypeError(
            "expected likelihood to be one of crosscoding.likelihoods, such as Bernoulli(), "
            f"got {likelihood!r}"
        )

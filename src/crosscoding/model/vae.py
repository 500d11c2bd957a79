"""A trained VAE as inference sees it: the prior N(0, I), a frozen decoder and a likelihood."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.errors import ModelFormatError, NonFiniteError
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Likelihood
from crosscoding.model.check_report import CheckReport
from crosscoding.model.cost import Cost, check_growth, cost_of
from crosscoding.model.decoder import (
    NUM_PROBES,
    decoder_output,
    empty_like,
    lost_elements,
    prior_probes,
    try_decoder,
)
from crosscoding.model.encoder import encode, encoder_output, tried_encoder
from crosscoding.model.files import check_recognised, some_outputs, write_model
from crosscoding.model.last_layer import find_head
from crosscoding.model.matching import check_matches
from crosscoding.model.parts import Model
from crosscoding.model.trial import frozen_copy
from crosscoding.model.undefined_elements import element_name, nothing_to_predict
from crosscoding.persistence.folder import Contents
from crosscoding.persistence.layers import describe
from crosscoding.random import generator_from, normal


class VAE:
    """A generative model p(z) p(t|z) that is already trained: z ~ N(0, I), then t from the decoder.

    The decoder is copied, put in eval mode and cut off from gradients to its weights; the module
    that was passed is left as it was. It is then tried on a few points, and refused if what it puts
    out for one z depends on the other z in the batch or changes from call to call: p(t|z) would not
    be a distribution.

    Args:
        decoder: Module that maps z (B, latent) to the likelihood's parameters, shape (B, *data),
            or (B, *data, P) or a tuple of P tensors where an element has P parameters.
        latent_dim: Size of z, ≥ 1.
        likelihood: What the decoder's output means, for example `likelihoods.Bernoulli()`. For
            `likelihoods.Mixed` the parameters lie side by side, column after column, or in a tuple
            of one tensor for each part.
        encoder: The encoder that the decoder was trained with, if it is at hand: a module that maps
            data (B, *data) to mean and log-variance of q(z|t), side by side in one tensor
            (B, 2 latent) or as a tuple of two (B, latent). It is copied and tried as the decoder
            is. Answers never rest on it; it may propose where to look.

    Attributes:
        decoder: The frozen copy.
        encoder: That of the encoder, or None.
        data_shape: Shape of one datum.
        head: The decoder's last linear layer, or None where its code does not show one.
        dtype: The decoder's floating-point type, which all answers have.
        device: Where the decoder lies, and all answers.
        kept: What was worked out from the decoder and is worth keeping, by name.

    Raises:
        TypeError: decoder or encoder is no module, likelihood no likelihood, latent_dim no int.
        ValueError: The decoder does not fit latent_dim or the likelihood, or the encoder the two;
            or one of them mixes the rows of a batch, is not deterministic, or trains itself.
        NonFiniteError: One of them outputs NaN or infinity: the decoder for all elements at a draw
            from the prior, or for one element at all draws.

    Warns:
        UserWarning: The decoder outputs NaN or infinity for some elements at draws from the prior;
            or, where logits are expected, what look like probabilities.

    Example:
        >>> from crosscoding.likelihoods import Gaussian
        >>> vae = VAE(nn.Linear(2, 5), latent_dim=2, likelihood=Gaussian(0.1))
        >>> vae.data_shape
        torch.Size([5])
    """

    checker: ClassVar[Callable[..., CheckReport]]
    """What `check` calls; put here by `crosscoding.checks`, a room above (docs/decisions/0006)."""

    @isolated
    def __init__(
        self,
        decoder: nn.Module,
        latent_dim: int,
        likelihood: Likelihood,
        encoder: nn.Module | None = None,
    ) -> None:
        self.decoder = frozen_copy(decoder, "decoder")
        if isinstance(latent_dim, bool) or not isinstance(latent_dim, int):
            raise TypeError(f"expected latent_dim to be an int, got {type(latent_dim).__name__}")
        if latent_dim < 1:
            raise ValueError(f"expected latent_dim >= 1, got {latent_dim}")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(
                "expected likelihood to be one of crosscoding.likelihoods, such as Bernoulli(), "
                f"got {likelihood!r}"
            )
        self.latent_dim = latent_dim
        self.likelihood = likelihood
        self.kept: dict[str, Any] = {}
        like = empty_like(self.decoder)
        self.dtype, self.device = like.dtype, like.device
        tried = try_decoder(self.decoder, latent_dim, likelihood, like)
        self.data_shape, self._params_shape = tried.data_shape, tried.output.shape[1:]
        self._flat_likelihood = tried.flat_likelihood
        for doubt in tried.doubts:
            warnings.warn(doubt, UserWarning, stacklevel=3)
        probes, by_rows = tried.probes, likelihood.by_rows
        self.head = find_head(self.decoder, probes, tried.output) if by_rows else None
        self.encoder: nn.Module | None = None
        if encoder is not None:
            self._set_encoder(encoder)
        # What counts and what differentiates forwards take torch a while to load: not while a
        # budget of time runs.
        _ = self.cost
        torch.func.jvp(torch.neg, (probes,), (probes,))

    @isolated
    def __repr__(self) -> str:
        name = type(self.decoder).__name__
        shape, likelihood = tuple(self.data_shape), self.likelihood
        return f"VAE({name}, latent_dim={self.latent_dim}, data_shape={shape}, {likelihood})"

    @property
    def flat_likelihood(self) -> Likelihood:
        """The likelihood for data whose elements lie in one dimension, as `decode_flat` gives."""
        return self._flat_likelihood

    @property
    def data_size(self) -> int:
        """Number of elements of one datum."""
        return self.data_shape.numel()

    @property
    def params_size(self) -> int:
        """How many numbers the decoder outputs for one datum."""
        return self._params_shape.numel()

    @property
    def operations(self) -> float:
        """Multiply-adds that decoding one z takes, counted in its products and convolutions."""
        return max(self.cost.operations, float(self.data_size))

    @property
    @isolated
    def cost(self) -> Cost:
        """What decoding one z takes, counted at the first call."""
        if "cost" not in self.kept:
            z = torch.zeros(1, self.latent_dim, dtype=self.dtype, device=self.device)
            self.kept["cost"] = cost_of(self._run, z)
        return self.kept["cost"]

    @property
    def row_values(self) -> int:
        """A third of the numbers in memory while one z is decoded, about; its output at least.

        A layer's output is let go once the next has it. Where two steps meet that output as much
        as the largest, there are two of those, beside the outputs of other z.
        """
        return max(self.params_size, (self.params_size + 2 * self.cost.largest) // 3)

    @isolated
    def to(self, device: torch.device | str) -> "VAE":
        """The same model on another device; this one where it is there already."""
        wanted = torch.device(device)
        if wanted.type == self.device.type and wanted.index in (None, self.device.index):
            return self
        tensors, description = self.likelihood.to_parts()
        moved = {name: tensor.to(device) for name, tensor in tensors.items()}
        likelihood = Likelihood.from_parts((moved, description))
        decoder = frozen_copy(self.decoder, "decoder").to(device)
        encoder = self.encoder and frozen_copy(self.encoder, "encoder").to(device)
        return VAE(decoder, self.latent_dim, likelihood, encoder)

    @isolated
    def decode(self, z: Tensor) -> Tensor:
        """Parameters of p(t|z).

        Args:
            z: Latent points, shape (*sample, latent).
        Returns:
            Shape (*sample, *data, *param_shape), as the decoder has it.
        """
        if z.ndim < 1 or z.shape[-1] != self.latent_dim:
            raise ValueError(
                f"expected z of shape (*sample, {self.latent_dim}), got {tuple(z.shape)}"
            )
        return self.decode_flat(z).reshape(*z.shape[:-1], *self._params_shape)

    @isolated
    def decode_flat(self, z: Tensor) -> Tensor:
        """Parameters of p(t|z), a datum's elements in one dimension: (*sample, E, *param_shape)."""
        shape = (*z.shape[:-1], *self.likelihood.flat_shape(self._params_shape))
        if z.numel() == 0:
            return z.new_zeros(shape)
        points = z.reshape(-1, self.latent_dim).clone()  # as a decoder may write over its input
        return self._run(points).reshape(shape)

    def element_name(self, element: int) -> str:
        """An element of a datum laid out flat, by its index in the data's shape, for messages."""
        return element_name(self.data_shape, element)

    @isolated
    def encode(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of q(z|t), where the encoder thinks that z is.

        It takes complete data only, and it is a guess: to propose z from, not an answer.

        Args:
            data: t, shape (*batch, *data).
        Returns:
            Both of shape (*batch, latent).
        Raises:
            ValueError: The model has no encoder, or data do not match it.
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

    @isolated
    def sample_prior(self, num: int, *, seed: int | torch.Generator | None = None) -> Tensor:
        """Draws of complete data from the model, without any evidence, shape (num, *data).

        Raises:
            NonFiniteError: An element has no p(t|z) at a draw of z.
        """
        if num < 0:
            raise ValueError(f"expected a number of draws >= 0, got {num}")
        z, params, draws = self._drawn(num, generator_from(seed))
        wrong = ~(self._flat_likelihood.valid(params) & draws.isfinite())
        if wrong.any():
            words = nothing_to_predict(self._flat_likelihood, self.element_name, z, params, wrong)
            raise NonFiniteError(words)
        return draws.reshape(num, *self.data_shape)

    @torch.no_grad()
    def _drawn(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws of z, what the decoder outputs for them, and draws of data, laid out flat."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        z = normal((num, self.latent_dim), generator=generator, like=like)
        params, likelihood = self.decode_flat(z), self._flat_likelihood
        noise = likelihood.noise((num, self.data_size), generator=generator, like=like)
        return z, params, likelihood.draw(params, noise)

    def lost(self, output: Tensor) -> Tensor:
        """Which elements are NaN, or infinite where that means nothing, boolean, (N, E).

        Args:
            output: The decoder's, shape (N, *data, *param_shape).
        """
        return lost_elements(self.likelihood, self._flat_likelihood, output)

    @isolated
    def check(
        self,
        data: Tensor | np.ndarray | None = None,
        *,
        seed: int | torch.Generator | None = 0,
    ) -> CheckReport:
        """What speaks for and against the model, before it is used; takes some seconds.

        Of the decoder: what it outputs, against the likelihood; that one z always gives one
        output; batch norm; derivatives; NaN far out; which latent dimensions it uses. Of data:
        their support, units and counts, log p of a few against that of their columns, the scale,
        and whether they lie where the prior does. What decoding costs, and which methods suit.

        Args:
            data: Complete data like those the model was trained on, (N, *data), a tensor or an array
                of NumPy of the model's dtype; some hundred are plenty, and of more than 2,000 some
                are taken.
            seed: Decides which points are looked at.
        Returns:
            A report: `print` shows it, `ok` tells whether there is no error, `findings` are its
            lines and `as_dict()` is for JSON.

        Raises:
            TypeError: data is no tensor or array.
            ValueError: data do not fit the model.

        Example:
            >>> import crosscoding as cc
            >>> cc.zoo.load("mnist-2d").check(cc.zoo.digits()[0])["units"].status
            'ok'
        """
        return VAE.checker(self, data, seed=seed)

    @isolated
    def save(
        self,
        folder: str | Path,
        *,
        decoder_arguments: Mapping[str, Any] | None = None,
        encoder_arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the model to a folder, as safetensors and JSON; whole or not at all.

        A network that is a stack of common layers (`nn.Sequential`) is written as data. Of one of a
        class of your own the weights are written: to load it, make it again and pass it. If you
        give the arguments of its constructor, they go along with the name of its class,
        "module:Class", and it can also be imported. What is written is read again first.

            vae.save("faces")                                       # nn.Sequential(...)
            load_vae("faces")

            vae.save("faces")                                       # class Decoder of your own
            load_vae("faces", decoder=Decoder(hidden=64))

            vae.save("faces", decoder_arguments={"hidden": 64})
            load_vae("faces", allow_code=True)                      # imports Decoder, as you allow

        Args:
            folder: Where to; new, or a saved model's, which is replaced.
            decoder_arguments: Makes the decoder anew, for one of a class that can be imported.
            encoder_arguments: The same for the encoder.
        Raises:
            TypeError: The arguments are not what JSON can hold.
            ValueError: The arguments do not make the network; or the folder cannot be written.

        Warns:
            UserWarning: A network is of a class of your own, and no arguments are given.

        Example:
            >>> from tempfile import mkdtemp
            >>> from crosscoding import VAE, load_vae
            >>> from crosscoding.likelihoods import Bernoulli
            >>> decoder = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 784))
            >>> folder = Path(mkdtemp()) / "digits"
            >>> VAE(decoder, latent_dim=2, likelihood=Bernoulli()).save(folder)
            >>> load_vae(folder)
            VAE(Sequential, latent_dim=2, data_shape=(784,), Bernoulli(logits=True))
        """
        arguments = {"decoder": decoder_arguments, "encoder": encoder_arguments}
        advice = write_model(Path(folder), self._model(self.encoder), arguments, VAE._of)
        if advice:
            warnings.warn(advice, UserWarning, stacklevel=3)

    @isolated
    def to_parts(self) -> Contents | None:
        """The model as tensors and JSON, or None if its decoder is no stack of common layers.

        Its encoder is left out, as no answer rests on it.
        """
        return None if describe(self.decoder) is None else self._model(None).to_parts({})

    @classmethod
    @isolated
    def from_parts(cls, parts: Contents) -> "VAE":
        """The model that `to_parts` described.

        Raises:
            ModelFormatError: The description is not one, or the weights are not its own.
        """
        return cls._of(Model.from_parts(parts, {}))

    @classmethod
    def _of(cls, model: Model) -> "VAE":
        """The VAE of a model that was read; errors say what is wrong with what was read."""
        check_growth(model.decoder, (model.latent_dim,))
        try:
            vae = cls(model.decoder, model.latent_dim, model.likelihood)
            if model.encoder is not None:
                check_growth(model.encoder, vae.data_shape)
                vae._set_encoder(model.encoder)
        except (ModelFormatError, NonFiniteError):
            raise
        except (TypeError, ValueError) as error:
            raise ModelFormatError(f"the model's parts do not fit: {error}") from error
        check_recognised(vae._model(vae.encoder), model)
        return vae

    @torch.no_grad()
    def _model(self, encoder: nn.Module | None) -> Model:
        """What this VAE is made of, with some outputs of its networks to recognise them by."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        outputs, encodings = self._run(prior_probes(self.latent_dim, like)), None
        if encoder is not None:
            encodings = some_outputs(encoder_output(encoder, self._data_for_encoder()))
        return Model(
            self.decoder,
            self.latent_dim,
            self.likelihood,
            encoder,
            outputs=some_outputs(outputs),
            encoder_outputs=encodings,
        )

    def _set_encoder(self, encoder: nn.Module) -> None:
        self.encoder = tried_encoder(encoder, self._data_for_encoder(), self.latent_dim)

    def _data_for_encoder(self) -> Tensor:
        """Draws from the model, always the same, with 0 for what cannot be drawn."""
        draws = self._drawn(NUM_PROBES, generator_from(0))[2]
        return torch.where(draws.isfinite(), draws, 0.0).reshape(-1, *self.data_shape)

    def _run(self, z: Tensor) -> Tensor:
        return decoder_output(self.decoder, self.likelihood, z)


@isolated
def load_vae(
    folder: str | Path,
    *,
    decoder: nn.Module | None = None,
    encoder: nn.Module | None = None,
    allow_code: bool = False,
) -> VAE:
    """The model that `VAE.save` wrote to a folder, or `crosscoding train`; on the CPU.

    Nothing that a folder holds is run, and all of it is checked before it is used. Where it names a
    class of somebody's own instead of layers, pass the network, which is given the weights that
    were saved; or let the class be imported by its name.

    Args:
        folder: The folder.
        decoder: A decoder to load the weights into a copy of; what weights it has does not matter.
        encoder: The same for an encoder.
        allow_code: Whether classes that the folder names may be imported and called, which runs
            their code: for folders whose author you trust.
    Raises:
        ModelFormatError: The folder holds no model, a damaged one, or one that does not fit its own
            description; the first tensor that differs is named.
        ValueError: A class would have to be imported, and allow_code is False.
        NonFiniteError: The decoder outputs NaN or infinity.

    Example:
        >>> from tempfile import mkdtemp
        >>> from crosscoding.likelihoods import Gaussian
        >>> folder = Path(mkdtemp()) / "line"
        >>> VAE(nn.Linear(2, 5), 2, Gaussian(0.1)).save(folder)
        >>> load_vae(folder).likelihood
        Gaussian(scale=0.1)
    """
    model = Model.read(
        Path(folder), {"decoder": decoder, "encoder": encoder}, allow_code=allow_code
    )
    return VAE._of(model)

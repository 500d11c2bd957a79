"""A trained VAE as inference sees it: the prior N(0, I), a frozen decoder and a likelihood."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from crosscoding.errors import NonFiniteError
from crosscoding.evidence import as_tensor
from crosscoding.isolation import isolated
from crosscoding.likelihoods import Likelihood
from crosscoding.likelihoods.decoder_output import doubt_of, joined, on_half_as_many, wrong_output
from crosscoding.model.check_report import CheckReport
from crosscoding.model.cost import Cost, cost_of
from crosscoding.model.encoder import encode, encoder_output, tried_encoder
from crosscoding.model.files import Savable
from crosscoding.model.last_layer import find_head
from crosscoding.model.parts import Model
from crosscoding.model.plain_copy import tensors_of
from crosscoding.model.trial import OutputError, Trial, check_derivatives, frozen_copy
from crosscoding.model.undefined_elements import nothing_to_predict, sometimes_lost
from crosscoding.random import generator_from, normal

_NUM_PROBES = 5
_MORE_PROBES = 64  # at all of which an element that is lost at those is lost if it exists nowhere
_FAR = 4  # times as far out, and all on one side, lie the points that stand beside the probes
_HINT = "check latent_dim, or wrap one that takes more than z in a module that gives it the rest"


class VAE(Savable):
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
        floats = (t for t in tensors_of(self.decoder) if t.is_floating_point())
        like = next(floats, torch.empty(0, dtype=torch.float32))
        self.dtype, self.device = like.dtype, like.device
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"expected a decoder in float32 or float64, got {self.dtype}: log-probabilities "
                "need the digits; convert it with decoder.float()"
            )
        probes = self._probes()
        try:
            trial = Trial(self.decoder, self._output, probes, _FAR * probes.abs(), "decoder", _HINT)
        except OutputError as error:
            raise ValueError(str(error)) from None
        self.data_shape = self._data_shape_of(trial.output)
        self._params_shape = trial.output.shape[1:]
        trial.check(self.dtype)
        check_derivatives(self._run, torch.cat([probes[:1], _FAR * probes[1:2]]), "decoder")
        self._flat_likelihood = likelihood.for_data(self.data_shape, like)
        misread = doubt_of(likelihood, self._run, probes, trial.output)
        for doubt in filter(None, [self._doubt_of_lost(trial), misread]):
            warnings.warn(doubt, UserWarning, stacklevel=3)
        by_rows = likelihood.by_rows
        self.head = find_head(self.decoder, probes, trial.output) if by_rows else None
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
        index = [int(i) for i in np.unravel_index(element, tuple(self.data_shape))]
        return f"element {index[0] if len(index) == 1 else tuple(index)}"

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
        # 1 is a parameter that every likelihood takes
        usable = torch.where(self.likelihood.allowed(output), 1.0, output)
        shape = self.likelihood.flat_shape(self._params_shape)
        return ~self._flat_likelihood.valid(usable.reshape(len(output), *shape))

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

    def _probes(self, num: int = _NUM_PROBES) -> Tensor:
        """The draws from the prior that a decoder is tried on, (N, latent): always the same."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        return normal((num, self.latent_dim), generator=generator_from(0), like=like)

    @torch.no_grad()
    def _outputs(self) -> Tensor:
        return self._run(self._probes())

    @torch.no_grad()
    def _encodings(self) -> Tensor | None:
        if self.encoder is None:
            return None
        return encoder_output(self.encoder, self._data_for_encoder())

    def _set_encoder(self, encoder: nn.Module) -> None:
        self.encoder = tried_encoder(encoder, self._data_for_encoder(), self.latent_dim)

    def _data_for_encoder(self) -> Tensor:
        """Draws from the model, always the same, with 0 for what cannot be drawn."""
        draws = self._drawn(_NUM_PROBES, generator_from(0))[2]
        return torch.where(draws.isfinite(), draws, 0.0).reshape(-1, *self.data_shape)

    def _run(self, z: Tensor) -> Tensor:
        return self._output(self.decoder, z)

    def _output(self, decoder: nn.Module, z: Tensor) -> Tensor:
        output = decoder(z)
        try:
            return joined(self.likelihood, output)
        except ValueError as error:
            raise OutputError(str(error)) from error

    def _doubt_of_lost(self, trial: Trial) -> str:
        """Which elements are NaN or infinite at some of the probes; nothing if none is.

        Raises:
            ValueError: What is finite cannot be the likelihood's parameters.
            NonFiniteError: All elements are at some probe, or one is at all draws from the prior.
        """
        output, likelihood = trial.output, self.likelihood
        allowed = likelihood.allowed(output)
        likelihood.check_params(output[allowed.flatten(1).all(1)])
        lost = self.lost(output)
        nowhere = lost.all(0)
        if nowhere.any():
            nowhere = nowhere & self.lost(self._run(self._probes(_MORE_PROBES))).all(0)
        if nowhere.any() or lost.all(1).any():
            trial.check_finite(allowed)
        if not lost.any():
            return ""
        params = output.reshape(len(output), *likelihood.flat_shape(self._params_shape))
        return sometimes_lost(self._flat_likelihood, self.element_name, params, lost)

    def _data_shape_of(self, output: Tensor) -> torch.Size:
        data_shape = self.likelihood.data_shape(output.shape[1:])
        if output.shape[:1] != (_NUM_PROBES,) or data_shape is None or output.numel() == 0:
            raise ValueError(wrong_output(self.likelihood, _NUM_PROBES, output.shape))
        return data_shape


def whole_data(vae: VAE, data: Tensor | np.ndarray) -> Tensor:
    """The data as a tensor (N, *data), N ≥ 1.

    Raises:
        TypeError, ValueError: They are no complete data of this VAE.
    """
    data = as_tensor(data, "data")
    check_matches(vae, data, "data", None)
    if data.ndim != 1 + len(vae.data_shape) or not len(data):
        wanted = ", ".join(["N", *map(str, vae.data_shape)])
        raise ValueError(f"expected data of shape ({wanted}) with N >= 1, got {tuple(data.shape)}")
    return data


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


def check_matches(vae: VAE, values: Tensor, name: str, batch_shape: Sequence[int] | None) -> None:
    """Raise ValueError unless values are data of this VAE, (*batch, *data), of its dtype, there."""
    num_data_dims = len(vae.data_shape)
    batch = values.shape[: max(values.ndim - num_data_dims, 0)]
    wanted = "*batch" if batch_shape is None else ", ".join(map(str, batch_shape))
    shape = "(" + ", ".join(filter(None, [wanted, *map(str, vae.data_shape)])) + ")"
    if values.ndim < num_data_dims or values.shape[len(batch) :] != vae.data_shape:
        advice = on_half_as_many(vae.likelihood, vae.data_shape, values.shape)
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(values.shape)}{advice}")
    if batch_shape is not None and batch != tuple(batch_shape):
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(values.shape)}")
    check_dtype(values, name, vae.dtype)
    if values.device != vae.device:
        raise ValueError(
            f"expected {name} on the model's device {vae.device}, got {values.device}; "
            f"move with .to({str(vae.device)!r})"
        )


def check_dtype(values: Tensor, name: str, dtype: torch.dtype) -> None:
    """Raise ValueError unless values have the model's dtype."""
    if values.dtype != dtype:
        of_numpy = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"expected {name} of the model's dtype {dtype}, got {values.dtype}; convert with "
            f'.to({dtype}), or an array of NumPy with .astype("{of_numpy}")'
        )

"""A trained VAE as inference sees it: the prior N(0, I), a frozen decoder and a likelihood."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from crosscoding.architecture import build, describe, load_weights, weights
from crosscoding.cost import Cost, cost_of
from crosscoding.errors import ModelFormatError, NonFiniteError
from crosscoding.frozen import Trial, frozen_copy
from crosscoding.heads import find_head
from crosscoding.likelihoods import Likelihood
from crosscoding.random import generator_from, normal
from crosscoding.storage import Parts, prefixed, under

_NUM_PROBES = 5
_LAYERS_PER_ROW = 16  # of a decoder of so many layers, all alike, one is in memory


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
            `likelihoods.Mixed` the parameters lie side by side, column after column.

    Attributes:
        decoder: The frozen copy.
        data_shape: Shape of one datum.
        head: The decoder's last linear layer, or None where its code does not show one.
        dtype: The decoder's floating-point type, which all answers have.
        device: Where the decoder lies, and all answers.
        kept: What was worked out from the decoder and is worth keeping, by name.

    Raises:
        TypeError: decoder is no module, likelihood no likelihood, latent_dim no int.
        ValueError: The decoder does not fit latent_dim or the likelihood, mixes the points of a
            batch, is not deterministic, or trains itself.
        NonFiniteError: The decoder puts out NaN or infinity at a draw from the prior.

    Example:
        >>> from crosscoding.likelihoods import Gaussian
        >>> vae = VAE(nn.Linear(2, 5), latent_dim=2, likelihood=Gaussian(0.1))
        >>> vae.data_shape
        torch.Size([5])
    """

    def __init__(self, decoder: nn.Module, latent_dim: int, likelihood: Likelihood) -> None:
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
        tensors = [*self.decoder.parameters(), *self.decoder.buffers()]
        like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
        self.dtype, self.device = like.dtype, like.device
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"expected a decoder in float32 or float64, got {self.dtype}: log-probabilities "
                "need the digits; convert it with decoder.float()"
            )
        probes = normal((_NUM_PROBES, latent_dim), generator=generator_from(0), like=like)
        trial = Trial(self.decoder, self._run, probes, "decoder", "check latent_dim")
        self.data_shape = self._data_shape_of(trial.output)
        trial.check(self.dtype)
        likelihood.check_params(trial.output)
        self._params_shape = trial.output.shape[1:]
        self._flat_likelihood = likelihood.for_data(self.data_shape, like)
        self.head = None
        if likelihood.by_rows:
            self.head = find_head(self.decoder, probes, trial.output)

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
        """How many numbers the decoder puts out for one datum."""
        return self._params_shape.numel()

    @property
    def operations(self) -> float:
        """Multiply-adds that decoding one z takes, counted in its products and convolutions."""
        return max(self.cost.operations, float(self.data_size))

    @property
    def cost(self) -> Cost:
        """What decoding one z takes, counted at the first call."""
        if "cost" not in self.kept:
            z = torch.zeros(1, self.latent_dim, dtype=self.dtype, device=self.device)
            self.kept["cost"] = cost_of(self._run, z)
        return self.kept["cost"]

    @property
    def row_values(self) -> int:
        """Numbers to allow for in memory where one z is decoded: its output, or more of it if wide.

        A layer's output is let go once the next has it: of all layers together a share is there.
        """
        return max(self.params_size, self.cost.values // _LAYERS_PER_ROW)

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

    def decode_flat(self, z: Tensor) -> Tensor:
        """Parameters of p(t|z), a datum's elements in one dimension: (*sample, E, *param_shape)."""
        shape = (*z.shape[:-1], *self.likelihood.flat_shape(self._params_shape))
        if z.numel() == 0:
            return z.new_zeros(shape)
        return self._run(z.reshape(-1, self.latent_dim)).reshape(shape)

    def sample_prior(self, num: int, *, seed: int | torch.Generator | None = None) -> Tensor:
        """Draws of whole data from the model, without any evidence, shape (num, *data)."""
        if num < 0:
            raise ValueError(f"expected a number of draws >= 0, got {num}")
        generator = generator_from(seed)
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        with torch.no_grad():
            params = self.decode_flat(
                normal((num, self.latent_dim), generator=generator, like=like)
            )
            likelihood = self._flat_likelihood
            noise = likelihood.noise((num, self.data_size), generator=generator, like=like)
            draws = likelihood.draw(params, noise)
        return draws.reshape(num, *self.data_shape)

    def to_parts(self) -> Parts | None:
        """The model as tensors and JSON, or None if its decoder is no stack of common layers."""
        architecture = describe(self.decoder)
        if architecture is None:
            return None
        settings, likelihood = self.likelihood.to_parts()
        tensors = prefixed(weights(self.decoder), "decoder")
        return tensors | prefixed(settings, "likelihood"), {
            "architecture": architecture,
            "latent_dim": self.latent_dim,
            "likelihood": likelihood,
        }

    @classmethod
    def from_parts(cls, parts: Parts) -> "VAE":
        """The model that `to_parts` described.

        Raises:
            ModelFormatError: The description is not one, or the weights are not its own.
        """
        tensors, description = parts
        try:
            architecture, latent_dim = description["architecture"], description["latent_dim"]
            likelihood = Likelihood.from_parts(
                (under(tensors, "likelihood"), description["likelihood"])
            )
        except (KeyError, TypeError) as error:
            raise ModelFormatError(f"the model's description is incomplete: {error!r}") from error
        decoder = build(architecture)
        load_weights(decoder, under(tensors, "decoder"))
        try:
            return cls(decoder, latent_dim, likelihood)
        except NonFiniteError:
            raise
        except (TypeError, ValueError) as error:
            raise ModelFormatError(f"the model's parts do not fit: {error}") from error

    def _run(self, z: Tensor) -> Tensor:
        output = self.decoder(z)
        if isinstance(output, (tuple, list)):
            output = self.likelihood.join(output)
        if not isinstance(output, Tensor):
            raise TypeError(f"expected a tensor from the decoder, got {type(output).__name__}")
        return output

    def _data_shape_of(self, output: Tensor) -> torch.Size:
        data_shape = self.likelihood.data_shape(output.shape[1:])
        if output.shape[:1] != (_NUM_PROBES,) or data_shape is None or output.numel() == 0:
            raise ValueError(
                f"expected decoder output of shape ({_NUM_PROBES}, "
                f"{self.likelihood.output_shape()}) for {_NUM_PROBES} points, "
                f"got {tuple(output.shape)}"
            )
        return data_shape


def check_matches(vae: VAE, values: Tensor, name: str, batch_shape: Sequence[int] | None) -> None:
    """Raise ValueError unless values are data of this VAE, (*batch, *data), of its dtype, there."""
    num_data_dims = len(vae.data_shape)
    batch = values.shape[: max(values.ndim - num_data_dims, 0)]
    wanted = "*batch" if batch_shape is None else ", ".join(map(str, batch_shape))
    shape = "(" + ", ".join(filter(None, [wanted, *map(str, vae.data_shape)])) + ")"
    if values.ndim < num_data_dims or values.shape[len(batch) :] != vae.data_shape:
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(values.shape)}")
    if batch_shape is not None and batch != tuple(batch_shape):
        raise ValueError(f"expected {name} of shape {shape}, got {tuple(values.shape)}")
    if values.dtype != vae.dtype:
        raise ValueError(
            f"expected {name} of the model's dtype {vae.dtype}, got {values.dtype}; "
            f"convert with .to({vae.dtype})"
        )
    if values.device != vae.device:
        raise ValueError(
            f"expected {name} on the model's device {vae.device}, got {values.device}; "
            f"move with .to({str(vae.device)!r})"
        )

"""The bank: points of the latent space that were decoded once, kept for every query to come.

Given the kept outputs, log p(x|z) of all queries at all points is one or two matrix products and
runs no decoder: for Bernoulli elements, (x·m) @ logitsᵀ − m @ softplus(logits)ᵀ. A likelihood that
has no such form is worked out element by element, in chunks, from the same outputs.
"""

from pathlib import Path

import torch
from torch import Generator, Tensor

from crosscoding.errors import ModelFormatError
from crosscoding.random import quasi_normal
from crosscoding.storage import read_folder, write_folder
from crosscoding.vae import VAE

_MAX_BYTES = 256 * 2**20
_MAX_POINTS = 16_384
_MAX_OPERATIONS = 2e10  # to build it, multiply-adds: about a second
_CHUNK_BYTES = 64 * 2**20


class Bank:
    """Decoded points, and the log-likelihood of any evidence at them.

    Args:
        vae: The model.
        points: z, shape (N, latent).

    Attributes:
        points: As given.
        num_bytes: Size of what is kept.

    Example:
        >>> import crosscoding as cc
        >>> bank = cc.Bank.of(cc.zoo.load("mnist-2d"))
        >>> digits = cc.zoo.digits()[0].flatten(1)
        >>> bank.log_likelihood(digits[:3], digits[:3] > 0).shape
        torch.Size([16384, 3])
    """

    def __init__(self, vae: VAE, points: Tensor) -> None:
        self.points = points
        self._likelihood = vae.flat_likelihood
        row_bytes = max(vae.params_size * points.element_size(), 1)
        with torch.no_grad():
            pieces = [
                self._likelihood.to_keep(vae.decode_flat(piece))
                for piece in points.split(max(_CHUNK_BYTES // row_bytes, 1))
            ]
        self._kept = tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))
        self.num_bytes = sum(tensor.nbytes for tensor in (points, *self._kept))

    @classmethod
    def of(cls, vae: VAE, *, max_bytes: int = _MAX_BYTES) -> "Bank":
        """The bank of a model: quasi-random draws of its prior, decoded at the first call.

        Args:
            vae: The model, which keeps the bank.
            max_bytes: Most memory it may take, > 0; a kept bank above that is made anew.
        """
        kept = vae.kept.get("bank")
        if isinstance(kept, Bank) and kept.num_bytes <= max_bytes:
            return kept
        like = torch.empty(0, dtype=vae.dtype, device=vae.device)
        params_shape = vae.decode_flat(like.new_zeros(0, vae.latent_dim)).shape[1:]
        kept_of_one = vae.flat_likelihood.to_keep(like.new_zeros(1, *params_shape))
        row_bytes = max(2 * vae.data_size * like.element_size(), sum(t.nbytes for t in kept_of_one))
        row_bytes += vae.latent_dim * like.element_size()
        allowed = (max_bytes // row_bytes, int(_MAX_OPERATIONS / vae.operations))
        num = max(min(_MAX_POINTS, *allowed), 16)
        generator = Generator().manual_seed(0)
        bank = cls(vae, quasi_normal(num, vae.latent_dim, generator=generator, like=like))
        vae.kept["bank"] = bank
        return bank

    def log_likelihood(self, values: Tensor, mask: Tensor) -> Tensor:
        """log p(x|z) of every query at every point, in nats.

        Args:
            values: x, shape (B, data_size), finite everywhere.
            mask: What is observed of it, shape (B, data_size).
        Returns:
            Shape (N, B).
        """
        return self._likelihood.pairwise_log_prob(self._kept, values, mask)

    def save(self, path: str | Path) -> None:
        """Write the bank to a folder, whole or not at all."""
        kept = {f"kept.{index}": tensor for index, tensor in enumerate(self._kept)}
        write_folder(Path(path), "bank", ({"points": self.points, **kept}, {}))

    @classmethod
    def load(cls, path: str | Path, *, vae: VAE) -> "Bank":
        """Read the bank that `save` wrote, and let the model keep it.

        Raises:
            ModelFormatError: The folder holds no bank, or the bank of another model.
        """
        tensors, _ = read_folder(Path(path), "bank")
        points = tensors.pop("points", torch.empty(0))
        kept = tuple(tensors[name] for name in sorted(tensors, key=lambda n: (len(n), n)))
        if points.ndim != 2 or points.shape[1] != vae.latent_dim or points.dtype != vae.dtype:
            raise ModelFormatError(f"expected a bank of latent {vae.latent_dim} in {path}")
        if not len(points) or any(part.shape[:1] != points.shape[:1] for part in kept):
            raise ModelFormatError(f"expected what was decoded at each of its points in {path}")
        some = cls(vae, points[:: max(len(points) // 4, 1)][:4])
        expected = [part[:: max(len(points) // 4, 1)][:4] for part in kept]
        if len(expected) != len(some._kept) or not all(
            a.shape == b.shape and torch.allclose(a, b, 1e-3, 1e-4)
            for a, b in zip(expected, some._kept, strict=True)
        ):
            raise ModelFormatError(f"expected the bank of this model in {path}, got another's")
        some.points, some._kept = points, kept
        some.num_bytes = sum(tensor.nbytes for tensor in (points, *kept))
        vae.kept["bank"] = some
        return some

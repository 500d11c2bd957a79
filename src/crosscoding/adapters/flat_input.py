"""Turns decoders with inputs of other shapes into decoders of z (B, latent) for any B."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Output = Tensor | tuple[Tensor, ...]


def with_flat_input(
    decoder: nn.Module, shape: Sequence[int | None], instead: str
) -> tuple[nn.Module, int]:
    """Turn a decoder of inputs (B, *latent) into one of z (B, latent); also returns the size of z.

    Args:
        decoder: A module that outputs a tensor or a sequence of tensors.
        shape: Shape of its input, None for a dynamic size, which only the first may be. A decoder
            of exactly one z, as exported without a dynamic batch, is mapped over the batch.
        instead: How to export a decoder for any batch size, for the message.

    Raises:
        ValueError: The batch has another fixed size, or the size of a latent dimension is unknown.
    """
    batch, *latent = shape or [0]
    sizes = [size for size in latent if size]
    if not latent or len(sizes) < len(latent):
        raise ValueError(f"expected an input of shape (batch, *latent), got {_in_words(shape)}")
    if batch not in (None, 1):
        raise ValueError(
            f"expected a decoder for any batch size, or for 1, got an input of shape "
            f"{_in_words(shape)}; {instead}"
        )
    mapped = decoder if batch is None else _OneByOne(decoder)
    flat = mapped if len(sizes) == 1 else nn.Sequential(nn.Unflatten(1, tuple(sizes)), mapped)
    return flat, math.prod(sizes)


class _OneByOne(nn.Module):
    """A decoder of exactly one z, applied to a batch by vmap: in one pass, without a loop."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Output:
        return torch.func.vmap(self._one)(z)

    def _one(self, z: Tensor) -> Output:
        output = self.decoder(z[None])
        return output[0] if isinstance(output, Tensor) else tuple(part[0] for part in output)


def _in_words(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"

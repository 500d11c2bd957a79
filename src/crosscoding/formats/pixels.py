"""Converts between a model's data and the pixels of picture files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from crosscoding.likelihoods import Bernoulli, Gaussian
from crosscoding.model.vae import VAE
from crosscoding.plots import Picture, colour, mark_evidence
from crosscoding.zoo.pictures import read_pixels

_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Pixels:
    """How pixels from 0 to 255 are rescaled to a model's data.

    Args:
        shape: Shape of the data, (height, width) or (channels, height, width).
        low, high: The values of pixels 0 and 255.
        binary: Whether data are black and white: pixels above 127 become high, all others low.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    binary: bool

    @staticmethod
    def suit(vae: VAE) -> bool:
        """Whether a model's data can be shown as grey or colour pictures."""
        shape = vae.data_shape
        picture = len(shape) == 2 or (len(shape) == 3 and shape[0] in _CHANNELS)
        return picture and isinstance(vae.likelihood, (Bernoulli, Gaussian))

    @classmethod
    def of(cls, vae: VAE) -> "Pixels":
        """Zeros and ones for a Bernoulli likelihood, otherwise [−1, 1], as in the paper."""
        if isinstance(vae.likelihood, Bernoulli):
            return cls(tuple(vae.data_shape), 0.0, 1.0, binary=True)
        return cls(tuple(vae.data_shape), -1.0, 1.0, binary=False)

    def read(self, path: Path) -> Tensor:
        """Read a picture file as a datum, float32, in the data's shape.

        Raises:
            ValueError: There is no such file, it is not a picture, or its size is wrong.
        """
        pixels = read_picture(path, (1, *self.shape)[-3:], binary=self.binary)
        return self.scaled(pixels.reshape(self.shape))

    def scaled(self, pixels: Tensor) -> Tensor:
        """Pixels from 0 to 255 as the model's data, float32."""
        share = (pixels > 127).float() if self.binary else pixels.float() / 255
        return self.low + (self.high - self.low) * share

    def picture(self, datum: Tensor) -> Picture:
        """A datum as a picture."""
        return colour(datum.numpy(), self.low, self.high)

    def evidence(self, datum: Tensor, mask: Tensor, *, hide: bool = False) -> Picture:
        """A datum as a picture with its observed pixels marked, all others grey if `hide`.

        Marked pixels are blue and orange for black and white data; in others they keep their
        colours.
        """
        seen = mask.reshape(-1, *mask.shape[-2:]).any(0).numpy()
        return mark_evidence(self.picture(datum), seen, hide=hide, tint=self.binary)

    def spread(self, deviation: Tensor) -> Picture:
        """Standard deviations as a picture; white is half the range of the data."""
        return colour(deviation.numpy(), high=0.5 * (self.high - self.low))


def read_picture(path: Path, shape: Sequence[int], *, binary: bool) -> Tensor:
    """Read a picture's pixels, 0 to 255, shape (channels, height, width) with 1 or 3 channels.

    Args:
        path: The file.
        shape: The expected shape.
        binary: Whether it only matters which pixels are above 127.

    Raises:
        ValueError: There is no such file, it is not a picture, its size is wrong, or its pixels
            are evidently not on the scale 0 to 255.
    """
    pixels = read_pixels(path, shape, str(path))
    low, high, bright = int(pixels.min()), int(pixels.max()), pixels > 127
    lost = bool(bright.any() == bright.all()) if binary else high == 1
    if low < high and lost:
        wanted = "pixels on both sides of 127" if binary else "pixels from 0 to 255"
        raise ValueError(
            f"expected {wanted} in {path}, got {low} to {high}; rescale them to 0 to 255"
        )
    return pixels

"""Between a model's data and the pixels of picture files."""

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
    """How the pixels 0 to 255 of a picture are scaled to be a model's data.

    Args:
        shape: The data's, (height, width) or (channels, height, width).
        low, high: What 0 and 255 become.
        binary: Whether there is nothing between: pixels above 127 are high, all others low.
    """

    shape: tuple[int, ...]
    low: float
    high: float
    binary: bool

    @staticmethod
    def suit(vae: VAE) -> bool:
        """Whether a model's data can be shown as pictures, grey or of three colours."""
        shape = vae.data_shape
        picture = len(shape) == 2 or (len(shape) == 3 and shape[0] in _CHANNELS)
        return picture and isinstance(vae.likelihood, (Bernoulli, Gaussian))

    @classmethod
    def of(cls, vae: VAE) -> "Pixels":
        """Zeros and ones for a Bernoulli likelihood, [−1, 1] for all others, as in the paper."""
        if isinstance(vae.likelihood, Bernoulli):
            return cls(tuple(vae.data_shape), 0.0, 1.0, binary=True)
        return cls(tuple(vae.data_shape), -1.0, 1.0, binary=False)

    def read(self, path: Path) -> Tensor:
        """The datum that a picture file shows, float32, of the data's shape.

        Raises:
            ValueError: There is no such file, it is no picture, or its size is another.
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
        """A datum as a picture that shows what is observed of it, all else grey if `hide`.

        Observed pixels are blue and orange where data are black and white, and else as they are.
        """
        seen = mask.reshape(-1, *mask.shape[-2:]).any(0).numpy()
        return mark_evidence(self.picture(datum), seen, hide=hide, tint=self.binary)

    def spread(self, deviation: Tensor) -> Picture:
        """Standard deviations as a picture: white is half of what data can span."""
        return colour(deviation.numpy(), high=0.5 * (self.high - self.low))


def read_picture(path: Path, shape: Sequence[int], *, binary: bool) -> Tensor:
    """A picture's pixels, 0 to 255, of shape (channels, height, width) with 1 or 3 channels.

    Args:
        path: The file.
        shape: As above.
        binary: Whether pixels above 127 are told from all others, and nothing else is.

    Raises:
        ValueError: There is no such file, it is no picture, its size is another, or its pixels are
            not from 0 to 255: too dark, or too bright, to be told apart.
    """
    pixels = read_pixels(path, shape, str(path))
    low, high, bright = int(pixels.min()), int(pixels.max()), pixels > 127
    lost = bool(bright.any() == bright.all()) if binary else high == 1
    if low < high and lost:
        wanted = "dark and bright pixels, 127 between them," if binary else "pixels from 0 to 255"
        raise ValueError(
            f"expected {wanted} in {path}, got {low} to {high}; spread them over 0 to 255"
        )
    return pixels

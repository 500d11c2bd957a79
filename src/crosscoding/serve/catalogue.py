"""The models that are served: their names, what their data are, and samples."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from crosscoding import zoo
from crosscoding.columns import Column
from crosscoding.likelihoods import Bernoulli
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from
from crosscoding.serve.json_arrays import listed

_CHANNELS = (1, 3)
_NUM_PROBES = 32  # prior draws whose decoded range says how pixels are scaled
_SLACK = 0.05  # by which decoded means of pixels may leave their range
EXPENSIVE = 1e7  # multiply-adds of a decode above which a first answer takes a second


@dataclass(frozen=True)
class Scale:
    """How a picture's pixels are scaled.

    Args:
        low, high: The values of black and white.
        binary: Whether there is nothing in between.
    """

    low: float
    high: float
    binary: bool


@dataclass(frozen=True, eq=False)
class Served:
    """A model with the name that it is served under.

    Args:
        name: Its name in requests.
        vae: The model.
        source: The Python expression that loads it, for scripts on the server's machine.
        source_elsewhere: The same for other machines, which must not learn the server's folders;
            None: `source`.
    """

    name: str
    vae: VAE
    source: str
    source_elsewhere: str | None = None

    @cached_property
    def scale(self) -> Scale | None:
        """How pixels are scaled, if data are pictures.

        Zeros and ones for a Bernoulli likelihood; otherwise 0 to 1 or −1 to 1 if the decoded means
        of prior draws are in that range, else their own range.
        """
        vae, shape = self.vae, self.vae.data_shape
        if vae.table is not None or not (
            len(shape) == 2 or (len(shape) == 3 and shape[0] in _CHANNELS)
        ):
            return None
        if isinstance(vae.likelihood, Bernoulli):
            return Scale(0.0, 1.0, binary=True)
        means = self.prior_pictures(_NUM_PROBES, seed=0)
        low, high = float(means.min()), float(means.max())
        for least, most in ((0.0, 1.0), (-1.0, 1.0)):
            if low >= least - _SLACK and high <= most + _SLACK:
                return Scale(least, most, binary=False)
        return Scale(low, high, binary=False)

    @property
    def kind(self) -> str:
        """What the data are: "picture", "table" or "values"."""
        if self.vae.table is not None:
            return "table"
        return "values" if self.scale is None else "picture"

    @property
    def is_expensive(self) -> bool:
        """Whether decoding takes long, so that answers come slowly."""
        return self.vae.operations > EXPENSIVE

    @torch.no_grad()
    def prior_pictures(self, num: int, *, seed: int) -> Tensor:
        """Decoded means of prior draws, (num, *data); of a conditional model, draws of data."""
        vae = self.vae
        if vae.examples is not None:
            return vae.sample_prior(num, seed=seed)
        like = torch.empty(0, dtype=vae.dtype, device=vae.device)
        z = vae.prior.sample(num, generator=generator_from(seed), like=like)
        return vae.flat_likelihood.mean(vae.decode_flat(z)).reshape(num, *vae.data_shape)

    def samples(self, num: int, *, seed: int) -> dict[str, Tensor]:
        """Complete pictures, of which a part can be observed, by their origin, (N, *data) each."""
        found = {}
        digits, _ = zoo.digits()
        is_binary = self.scale is not None and self.scale.binary
        if is_binary and self.vae.data_shape.numel() == digits[0].numel():
            found["test digits"] = digits[:num].reshape(-1, *self.vae.data_shape).to(self.vae.dtype)
        drawn = self.prior_pictures(num, seed=seed)
        found["drawn by the model"] = (drawn > 0.5).to(drawn) if is_binary else drawn
        return found

    def described(self) -> dict[str, Any]:
        """The model as the API describes it."""
        vae, scale = self.vae, self.scale
        about: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "data_shape": list(vae.data_shape),
            "latent_dim": vae.latent_dim,
            "likelihood": _words(vae.likelihood),
            "prior": type(vae.prior).__name__,
            "dtype": str(vae.dtype).removeprefix("torch."),
            "expensive": self.is_expensive,
        }
        if scale is not None:
            about["pixels"] = {"low": scale.low, "high": scale.high, "binary": scale.binary}
        if vae.table is not None:
            about["columns"] = [_column(column) for column in vae.table.columns]
        if isinstance(vae.examples, Tensor):
            about["given"] = {
                "shape": list(vae.examples.shape[1:]),
                "examples": listed(vae.examples[:_NUM_PROBES]),
            }
        return about


def served_model(name: str) -> Served:
    """Load a model to be served, from the zoo or from a folder that `vae.save` wrote.

    A saved model is served under its folder's name. Folders that need code to be run are refused.

    Raises:
        ValueError: There is no such model or folder, or loading it would import a class.
        ModelFormatError: The folder contains no model, or a damaged one.

    Example:
        >>> served_model("mnist-2d").kind
        'picture'
    """
    folder = zoo.model_folder(name).resolve()
    vae = load_vae(folder)
    if name in zoo.names():
        return Served(name, vae, f"cc.zoo.load({name!r})")
    here, elsewhere = (f"cc.load_vae({path!r})" for path in (str(folder), folder.name))
    return Served(folder.name, vae, here, f"{elsewhere}  # your copy of the model's folder")


def _words(likelihood: object) -> str:
    """A likelihood in one line."""
    words = " ".join(repr(likelihood).split())
    return words if len(words) <= 200 else f"{words[:200]}…"


def _column(column: Column) -> dict[str, Any]:
    """A column as the page's form needs it."""
    about: dict[str, Any] = {"name": str(column.name), "kind": column.kind}
    if column.is_listed:
        about["categories"] = list(column.categories)
    if column.kind in ("number", "positive"):
        about |= {"shift": column.shift, "scale": column.scale}
    if column.step is not None and column.kind != "date":
        about["step"] = column.step
    return about

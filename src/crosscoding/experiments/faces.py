"""Models of faces, and pictures with evidence, for the figures on faces.

The models are those of the zoo, and the decoder of the paper's own CelebA experiments if the folder
of other authors' models has it. The pictures are from the end of a zip of JPEG files, which the
models of the zoo were not trained on, scaled to [-1, 1].
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crosscoding import zoo
from crosscoding.experiments.experiment import Context, UnavailableError
from crosscoding.experiments.problem import Problem, digest
from crosscoding.likelihoods import Gaussian
from crosscoding.masks import random_mask, rectangle_mask
from crosscoding.model.vae import VAE
from crosscoding.random import generator_from
from crosscoding.zoo.training.data import load_pictures, scaled

PAPERS_OWN = "paper-celeba-100d"
"""Name of the paper's own decoder."""

_FOLDER = "celeba-100d"
_WIDTHS = (256, 128, 64, 32, 3)
_EYES = {"rows": (25, 39), "columns": (16, 49)}
_RANDOM_FRACTION = 0.05
_NUM_KEPT = 30  # pictures at the end of the archive, from which evidence is taken


@dataclass(frozen=True)
class FaceModel:
    """A model of faces and the archive of its pictures.

    Args:
        name: Name of the model in the zoo, or `PAPERS_OWN`.
        family: "anime" or "celeba".
    """

    name: str
    family: str

    @property
    def pictures(self) -> str:
        """Name of the file of pictures in the data folder."""
        return f"{self.family}_64.zip"


_MODELS = (
    FaceModel("anime-64d", "anime"),
    FaceModel("celeba-100d", "celeba"),
    FaceModel(PAPERS_OWN, "celeba"),
)


def models(context: Context, family: str | None = None) -> list[FaceModel]:
    """The available models of faces, of one family or of all.

    Raises:
        UnavailableError: There is none, or no pictures for any.
    """
    wanted = [each for each in _MODELS if family in (None, each.family)]
    found, reasons = [], []
    for each in wanted:
        try:
            context.data_file(each.pictures)
            if each.name == PAPERS_OWN:
                context.model_file(f"{_FOLDER}/decoder.safetensors")
            elif each.name not in zoo.names():
                raise UnavailableError(f"expected a model of faces, but the zoo has no {each.name}")
            found.append(each)
        except UnavailableError as error:
            reasons.append(str(error))
    if not found:
        raise UnavailableError("; ".join(dict.fromkeys(reasons)))
    return found


def subjects(context: Context, family: str | None = None) -> dict[str, str]:
    """Digests of the models that the figures on faces depend on."""
    return {model.name: digest(load(model, context)) for model in models(context, family)}


def load(model: FaceModel, context: Context) -> VAE:
    """A model of faces, on the context's device."""
    if model.name == PAPERS_OWN:
        vae = papers_own(context.model_file(f"{_FOLDER}/decoder.safetensors").parent)
    else:
        vae = zoo.load(model.name)
    return vae.to(context.device)


def papers_own(folder: Path) -> VAE:
    """The decoder of the paper's CelebA experiments as a stack of common layers.

    The original's first layer outputs channels last. Here its rows are reordered to channels first,
    which saves a permutation.

    Args:
        folder: Holds `decoder.safetensors` and `model.json`.
    """
    given = load_file(folder / "decoder.safetensors")
    latent_dim = int(json.loads((folder / "model.json").read_text())["latent_dim"])
    first = _WIDTHS[0]
    decoder = nn.Sequential(nn.Linear(latent_dim, 16 * first), nn.Unflatten(1, (first, 4, 4)))
    named = {"0": "lin"}
    for k in range(4):
        named[str(len(decoder))] = f"norm.{k}"
        decoder.append(nn.BatchNorm2d(_WIDTHS[k])).append(nn.LeakyReLU(0.2))
        decoder.append(nn.Upsample(scale_factor=2))
        named[str(len(decoder))] = f"conv.{k}"
        decoder.append(nn.Conv2d(_WIDTHS[k], _WIDTHS[k + 1], 3, padding=1))
    decoder.append(nn.Tanh())
    given["lin.weight"] = _channels_first(given["lin.weight"])
    given["lin.bias"] = _channels_first(given["lin.bias"])
    state = {}
    for ours in decoder.state_dict():
        layer, _, rest = ours.partition(".")
        state[ours] = given[f"{named[layer]}.{rest}"]
    decoder.load_state_dict(state)
    return VAE(decoder, latent_dim, Gaussian(0.1))


def _channels_first(rows: Tensor) -> Tensor:
    """Reorder rows from (height, width, channel) to (channel, height, width)."""
    by_place = rows.reshape(4, 4, _WIDTHS[0], *rows.shape[1:])
    return by_place.movedim(2, 0).reshape(rows.shape)


def pictures(path: Path, num: int) -> Tensor:
    """The first `num` of an archive's last thirty pictures, scaled to [-1, 1]: (num, 3, 64, 64).

    No model of the zoo was trained on these.

    Raises:
        ValueError: There are fewer pictures, or there is no such archive.
    """
    kept = load_pictures(path, 64, last=_NUM_KEPT)
    if num > len(kept):
        raise ValueError(f"expected a request for at most {len(kept)} pictures, got {num}")
    return scaled(kept[:num])


def problem(model: FaceModel, context: Context, evidence: str, num: int = 1) -> Problem:
    """A batch of queries about a model's pictures.

    Args:
        model: The model.
        context: Its seed selects random pixels.
        evidence: "eyes" (rows 25-39, columns 16-49), "pixels" (one in twenty, at random), or
            "both" in alternation.
        num: Number of evidence sets.
    """
    vae = load(model, context)
    truth = pictures(context.data_file(model.pictures), num).to(vae.device)
    generator = generator_from(context.seed)
    eyes = rectangle_mask(vae.data_shape, **_EYES)
    masks = []
    for index in range(num):
        pixels = random_mask(vae.data_shape[1:], _RANDOM_FRACTION, seed=generator)
        random = evidence == "pixels" or (evidence == "both" and index % 2 == 1)
        masks.append(pixels.expand(vae.data_shape) if random else eyes)
    settings = {"model": digest(vae), "evidence": evidence, "sets": num}
    mask = torch.stack(masks).to(vae.device)
    return Problem(f"{model.name}-{evidence}", vae, truth, mask, settings)

"""The queries of all benchmarks: partly observed digits and faces, and targets from the tests."""

import importlib.util
import json
import os
import re
import sys
import zipfile
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import crosscoding as cc

_ROOT = Path(__file__).parents[2]
KINDS = ("5 %", "15 %", "25 %", "quadrant")


# ---- digits --------------------------------------------------------------------------------------


def digits_source() -> str:
    return "MNIST test digits" if _data_folder() else "the 40 digits of cc.zoo.digits()"


def _data_folder() -> Path | None:
    folder = _folder("CROSSCODING_DATA")
    return folder if folder and (folder / "mnist.npz").is_file() else None


@cache
def digits() -> torch.Tensor:
    """Binary digits, (N, 28, 28): the shuffled MNIST test set, or else the zoo's forty digits."""
    folder = _data_folder()
    if folder is None:
        return cc.zoo.digits()[0]
    with np.load(folder / "mnist.npz") as stored:
        images = torch.from_numpy(stored["test_images"])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return (images[order] > 127).to(torch.float32)


def digit_queries(num: int, start: int = 0) -> cc.Evidence:
    """One digit per query, with 5, 15 or 25 % of its pixels or one quadrant observed, in turn."""
    images = digits()
    index = torch.arange(start, start + num)
    masks = torch.stack([_digit_mask(int(i)) for i in index])
    return cc.Evidence(images[index % len(images)], masks)


def kinds(num: int) -> list[str]:
    return [KINDS[i % len(KINDS)] for i in range(num)]


def _digit_mask(i: int) -> torch.Tensor:
    kind, turn = KINDS[i % len(KINDS)], i // len(KINDS)
    if kind == "quadrant":
        halves = ((0, 13), (14, 27))
        return cc.rectangle_mask((28, 28), rows=halves[turn % 2], columns=halves[turn // 2 % 2])
    return cc.random_mask((28, 28), int(kind.split()[0]) / 100, seed=i)


# ---- queries and models from elsewhere -----------------------------------------------------------


def problems() -> ModuleType:
    """tests/problems.py: targets with exact answers."""
    return _module("problems", _ROOT / "tests" / "problems.py")


def peer_queries(vae: cc.VAE, num: int) -> cc.Evidence:
    """The queries of benchmarks/peers."""
    folder = _ROOT / "benchmarks" / "peers"
    sys.path.append(str(folder))
    try:
        return _module("peers_run", folder / "run.py").queries(vae, num)
    finally:
        sys.path.remove(str(folder))


def faces_vae() -> cc.VAE | None:
    """The 100-d CelebA decoder, or None if CROSSCODING_MODELS does not have it."""
    return model_of_others("celeba-100d", cc.likelihoods.Gaussian(0.1))


def model_of_others(name: str, likelihood: cc.likelihoods.Likelihood) -> cc.VAE | None:
    """A model in CROSSCODING_MODELS, or None if it is not there."""
    folder = _folder("CROSSCODING_MODELS")
    if folder is None or not (folder / name).is_dir():
        return None
    description = json.loads((folder / name / "model.json").read_text())
    kind, sizes = re.fullmatch(r"(\w+)(?:\((.*)\))?", description["module"]).groups()
    module = getattr(_module("architectures_of_others", folder / "architectures.py"), kind)
    decoder = module(*[int(size) for size in (sizes or "").split(",") if size])
    decoder.load_state_dict(load_file(folder / name / "decoder.safetensors"))
    return cc.VAE(decoder.eval(), description["latent_dim"], likelihood)


def wide_digit_queries(num: int) -> cc.Evidence:
    """`digit_queries`, in pictures of 32 x 32."""
    evidence = digit_queries(num)
    values, mask = (
        torch.nn.functional.pad(part, (2, 2, 2, 2))[:, None]
        for part in (evidence.values, evidence.mask)
    )
    return cc.Evidence(values, mask)


def face_queries(vae: cc.VAE, num: int, kind: str = "eyes") -> cc.Evidence | None:
    """Faces with a part observed, "eyes", "5 %" or "quarter"; None if the data are missing."""
    folder = _folder("CROSSCODING_DATA")
    if folder is None or not (folder / "celeba_64.zip").is_file():
        return None
    faces = []
    with zipfile.ZipFile(folder / "celeba_64.zip") as archive:
        for i in range(num):
            with archive.open(f"{i:05}.jpg") as file:
                pixels = torch.from_numpy(np.array(Image.open(file)))
            faces.append(pixels.permute(2, 0, 1).to(torch.float32) / 127.5 - 1)
    return cc.Evidence(torch.stack(faces), face_mask(vae, kind))


def face_mask(vae: cc.VAE, kind: str) -> torch.Tensor:
    """A mask of 3 x 64 x 64, all channels of a pixel alike."""
    if kind == "5 %":
        return cc.random_mask((64, 64), 0.05, seed=0).expand(vae.data_shape)
    rows, columns = {"eyes": ((25, 39), (16, 49)), "quarter": ((0, 31), (0, 31))}[kind]
    return cc.rectangle_mask(vae.data_shape, rows=rows, columns=columns)


def _module(name: str, path: Path) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _folder(variable: str) -> Path | None:
    """The folder that an environment variable names, or None if it does not exist."""
    folder = Path(os.environ.get(variable, ""))
    return folder if os.environ.get(variable) and folder.is_dir() else None

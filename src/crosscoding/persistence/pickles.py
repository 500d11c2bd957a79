"""Pickles can run any code when loaded, so files that contain one are recognised and refused."""

import zipfile
from pathlib import Path

from crosscoding.errors import ModelFormatError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of a torch.save archive, and of a bare pickle
_INSTEAD = (
    "load torch.load(path, weights_only=True) into your decoder and save "
    "crosscoding.VAE(decoder, ...).save(folder), or write the weights alone with "
    "safetensors.torch.save_file"
)


def refuse_pickle(path: Path, instead: str) -> None:
    """Raise ModelFormatError if a file is a pickle, or an archive of one.

    Args:
        path: The file, which need not exist.
        instead: For the message: how to obtain a file that can be loaded.
    """
    if said := way_out(path, instead):
        raise ModelFormatError(f"expected no pickle, but {said}")


def way_out(path: Path, instead: str = _INSTEAD) -> str:
    """What to do with a pickle, in words; "" if the file is not a pickle or does not exist."""
    if not _is_pickle(path):
        return ""
    return (
        f"{path.name} looks like a pickle, which can run code when loaded, so it is not read here; "
        f"if you trust it, {instead}"
    )


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle of protocol 2 or later, or an archive of torch.save."""
    if not path.is_file():  # a pipe or a device might never end
        return False
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if start != _ZIP:
        return start.startswith(_PICKLE)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == "data.pkl" for name in archive.namelist())
    except Exception:  # a damaged archive may raise anything
        return True

"""Pickles, which run whatever code they name when they are loaded: told by content, and refused."""

import zipfile
from pathlib import Path

from crosscoding.errors import ModelFormatError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # how an archive of torch.save begins, and a bare pickle
_INSTEAD = (
    "load torch.load(path, weights_only=True) into your decoder and save "
    "crosscoding.VAE(decoder, ...).save(folder), or write the weights alone with "
    "safetensors.torch.save_file"
)


def refuse_pickle(path: Path, instead: str) -> None:
    """Raise ModelFormatError if a file is a pickle, or an archive of one.

    Args:
        path: The file, which need not be there.
        instead: How to come by something that can be loaded, for the message.
    """
    if said := way_out(path, instead):
        raise ModelFormatError(f"expected no pickle, and {said}")


def way_out(path: Path, instead: str = _INSTEAD) -> str:
    """What to do with a pickle, in words; none if there is another file or nothing."""
    if not _is_pickle(path):
        return ""
    return (
        f"{path.name} looks like a pickle, which can run code when it is read, and is not read "
        f"here: in code of your own, where you trust it, {instead}"
    )


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, of protocol 2 or later, or what torch.save writes."""
    if not path.is_file():  # a pipe or a device might never end
        return False
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if start != _ZIP:
        return start.startswith(_PICKLE)
    try:
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).name == "data.pkl" for name in archive.namelist())
    except Exception:  # cut off, or damaged in a way of its own
        return True

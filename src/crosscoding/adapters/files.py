"""What of a file may be loaded: pickles are refused, as loading one runs the code it names."""

from pathlib import Path

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def refuse_pickle(path: Path, instead: str) -> None:
    """Raise ValueError if a file's name says that it is a pickle.

    Args:
        path: The file.
        instead: How to come by something that can be loaded, for the message.
    """
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"expected no pickle, got {path.name}: loading one runs whatever code it names; where "
            f"you trust it, {instead}"
        )

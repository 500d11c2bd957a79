"""Loads models by name or folder, for the driver and for each worker."""

from pathlib import Path

from crosscoding import zoo
from crosscoding.batch.folder import Folder
from crosscoding.errors import ModelFormatError
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE


def load_model(name: str | Path, *, allow_code: bool) -> VAE:
    """Load a model by its name in the zoo, or from a folder that `VAE.save` wrote.

    Raises:
        ValueError: There is no such model, or loading it would import a class without `allow_code`.
    """
    return load_vae(zoo.model_folder(name), allow_code=allow_code)


def folder_for_workers(vae: VAE, folder: Folder) -> str:
    """Save a model to a folder that workers can load it from, and return the folder's path.

    Raises:
        ValueError: Only the user's own code can load it, or it would lose a part.
    """
    try:
        vae.save(folder.model)
        loaded = load_vae(folder.model)
    except (ValueError, TypeError, ModelFormatError) as error:
        raise ValueError(
            "expected a model that workers can load from a folder, got one with networks of your "
            f"own classes ({error}); save it with vae.save(folder, decoder_arguments=...), and "
            "pass the folder and allow_code=True, or use workers=None"
        ) from None
    if _is_vouched_for(vae) and not _is_vouched_for(loaded):
        raise ValueError(
            "expected a model that workers can load unchanged, but the record of its amortised "
            "cross-coder's coverage cannot be saved, as its masks are of your own class; use "
            "workers=None, or vae.with_amortised(None)"
        )
    return str(folder.model.resolve())


def _is_vouched_for(vae: VAE) -> bool:
    """Whether the model has an amortised cross-coder whose coverage was estimated from twins."""
    record = None if vae.amortised is None else vae.amortised.record
    return record is not None and record.coverage is not None

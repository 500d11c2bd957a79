"""Models by name or folder, for the driver and for workers, which load them by themselves."""

from pathlib import Path

from crosscoding import zoo
from crosscoding.batch.folder import Folder
from crosscoding.errors import ModelFormatError
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE


def load_model(name: str | Path, *, allow_code: bool) -> VAE:
    """The model of a name of the zoo, or of a folder that `VAE.save` wrote.

    Raises:
        ValueError: There is no such model, or its class would have to be imported.
    """
    return load_vae(zoo.model_folder(name), allow_code=allow_code)


def folder_for_workers(vae: VAE, folder: Folder) -> str:
    """Save a model where workers can load it, and return that place.

    Raises:
        ValueError: It can only be loaded by code of its own.
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
            "expected a model that is the same for workers, which load it, but what twins say of "
            "its amortised cross-coder is lost, as its masks are of your own class; use "
            "workers=None, or vae.with_amortised(None)"
        )
    return str(folder.model.resolve())


def _is_vouched_for(vae: VAE) -> bool:
    """Whether twins say anything of the model's amortised cross-coder."""
    record = None if vae.amortised is None else vae.amortised.record
    return record is not None and record.coverage is not None

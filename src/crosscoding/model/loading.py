"""Models that were saved to folders."""

from pathlib import Path

from torch import nn

from crosscoding.isolation import isolated
from crosscoding.model.parts import Model
from crosscoding.model.vae import VAE
from crosscoding.priors import Prior


@isolated
def load_vae(
    folder: str | Path,
    *,
    decoder: nn.Module | None = None,
    encoder: nn.Module | None = None,
    prior: Prior | None = None,
    amortised: nn.Module | None = None,
    allow_code: bool = False,
) -> VAE:
    """Load the model that `VAE.save` or `crosscoding train` wrote to a folder, onto the CPU.

    No code in the folder is run, and everything is checked before it is used. If the folder names
    a class instead of layers, either pass a network, whose copy gets the saved weights, or allow
    the class to be imported by its name.

    Args:
        folder: The folder.
        decoder: A decoder whose copy gets the saved weights; its own weights do not matter.
        encoder: The same for the encoder.
        prior: The same for the prior, where it holds networks of your own classes.
        amortised: The same for the network of the amortised cross-coder.
        allow_code: Whether classes that the folder names may be imported and called, which runs
            their code. Only for folders whose author you trust.
    Raises:
        ModelFormatError: The folder holds no model, a damaged one, or one that does not match its
            description; the first tensor that differs is named.
        ValueError: A class would have to be imported, and allow_code is False.
        NonFiniteError: The decoder outputs NaN or infinity.

    Example:
        >>> from tempfile import mkdtemp
        >>> from crosscoding.likelihoods import Gaussian
        >>> folder = Path(mkdtemp()) / "line"
        >>> VAE(nn.Linear(2, 5), 2, Gaussian(0.1)).save(folder)
        >>> load_vae(folder).likelihood
        Gaussian(scale=0.1)
    """
    given = {"decoder": decoder, "encoder": encoder, "prior": prior, "amortised": amortised}
    model = Model.read(Path(folder), given, allow_code=allow_code)
    return VAE._of_saved(model)

"""`crosscoding models`: lists the zoo and its cards. Also loads models for the other commands."""

import sys
from pathlib import Path

from rich.table import Column, Table

from crosscoding import zoo
from crosscoding.cli.console import out, print_json
from crosscoding.cli.decoder_files import load_decoder
from crosscoding.errors import ModelFormatError, NonFiniteError
from crosscoding.model.loading import load_vae
from crosscoding.model.vae import VAE


def run(name: str | None, *, as_json: bool) -> None:
    """Print one model's card, or one line per model."""
    if name is not None:
        card = zoo.card(name)
        if as_json:
            print_json(card)
        else:
            out.print_json(data=card)
        return
    cards = [zoo.card(each) for each in zoo.names()]
    if as_json:
        print_json(cards)
        return
    table = Table(Column("model", no_wrap=True), "latent", "data", "test ELBO (nats)")
    for card in cards:
        elbo = f"{card['test_elbo_nats']:.2f} ± {card['test_elbo_standard_error']:.2f}"
        table.add_row(card["name"], str(card["latent_dim"]), card["data"], elbo)
    out.print(table)


def load_model(name: str, *, allow_code: bool, decoder: str | None) -> VAE:
    """Load a model from the zoo, or one that was saved to a folder.

    Args:
        name: The model's name, or the folder.
        allow_code: Whether classes that the folder names may be imported, also from the current
            folder.
        decoder: FILE.py:Class of a saved model's decoder, whose code is run; or None.
    Raises:
        ValueError: There is no such model or folder, or loading it would import a class.
    """
    if Path(name).is_file():
        raise ValueError(
            f"expected a model's name or a folder written by vae.save, got {name}, which is a file"
        )
    is_of_zoo = name in zoo.names()
    if is_of_zoo and decoder is not None:
        raise ValueError(f"expected --decoder only with the folder of a model, got {name}")
    folder = zoo.model_folder(name)
    if is_of_zoo:
        return load_vae(folder)
    if allow_code:
        sys.path.append(str(Path.cwd()))
    network = None if decoder is None else load_decoder(decoder)
    try:
        return load_vae(folder, decoder=network, allow_code=allow_code)
    except (ModelFormatError, NonFiniteError) as error:
        if decoder is None:
            raise
        raise ValueError(f"cannot load the model in {name} with {decoder}: {error}") from None
    except ValueError as error:
        said = str(error).partition("; ")[0].replace("allow_code=True", "--allow-code")
        if "decoder=" in said:
            raise ValueError(
                f"{name} contains only weights, so its decoder is needed: --decoder FILE.py:Class"
            ) from None
        raise ValueError(
            f"{said}; on the command line, give --allow-code if you trust it, or --decoder "
            "FILE.py:Class to take the decoder from your own file"
        ) from None

"""`crosscoding models`: the zoo and its cards; and the models that the commands take by name."""

import sys
from pathlib import Path

from rich.table import Column, Table

from crosscoding import zoo
from crosscoding.cli.console import out, print_json
from crosscoding.cli.decoder_files import load_decoder
from crosscoding.errors import ModelFormatError, NonFiniteError, unknown_name
from crosscoding.model.vae import VAE, load_vae


def run(name: str | None, *, as_json: bool) -> None:
    """Print one card, or a line for each."""
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
    """A model of the zoo, or one in a folder.

    Args:
        name: The model's, or the folder's.
        allow_code: Whether classes that the folder names may be imported, from the present folder
            too.
        decoder: FILE.py:Class of the decoder of a folder, whose code is run; or None.
    Raises:
        ValueError: There is neither, or a class would have to be imported.
    """
    if Path(name).is_file():
        raise ValueError(
            f"expected the folder of a model, as vae.save wrote it, or a model's name, got {name}, "
            "which is a file"
        )
    if name in zoo.names():
        if decoder is not None:
            raise ValueError(f"expected --decoder only with the folder of a model, got {name}")
        return zoo.load(name)
    if not Path(name).is_dir():
        raise unknown_name("folder of a model, or a model", name, zoo.names())
    if allow_code:
        sys.path.append(str(Path.cwd()))
    network = None if decoder is None else load_decoder(decoder)
    try:
        return load_vae(name, decoder=network, allow_code=allow_code)
    except (ModelFormatError, NonFiniteError) as error:
        if decoder is None:
            raise
        raise ValueError(f"cannot load the model in {name} with {decoder}: {error}") from None
    except ValueError as error:
        said = str(error).partition("; ")[0].replace("allow_code=True", "--allow-code")
        if "decoder=" in said:
            raise ValueError(
                f"expected the decoder that {name} holds the weights of: --decoder FILE.py:Class"
            ) from None
        raise ValueError(
            f"{said}; on the command line, --allow-code if you trust it, or the decoder from a "
            "file of yours, --decoder FILE.py:Class"
        ) from None

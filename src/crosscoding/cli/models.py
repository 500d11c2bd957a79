"""`crosscoding models`: the zoo and its cards; and the models that the commands take by name."""

import sys
from pathlib import Path

from rich.table import Column, Table

from crosscoding import zoo
from crosscoding.cli.console import out, print_json
from crosscoding.errors import ModelFormatError, NonFiniteError, unknown_name
from crosscoding.vae import VAE, load_vae


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


def load_model(name: str, *, allow_code: bool) -> VAE:
    """A model of the zoo, or one in a folder.

    Args:
        name: The model's, or the folder's.
        allow_code: Whether classes that the folder names may be imported, from the present folder
            too.
    Raises:
        ValueError: There is neither, or a class would have to be imported.
    """
    if name in zoo.names():
        return zoo.load(name)
    if not Path(name).is_dir():
        raise ValueError(f"{unknown_name('model', name, zoo.names())}; nor is it a folder")
    if allow_code:
        sys.path.append(str(Path.cwd()))
    try:
        return load_vae(name, allow_code=allow_code)
    except (ModelFormatError, NonFiniteError):
        raise
    except ValueError as error:
        raise ValueError(f"{error}; on the command line, --allow-code") from None

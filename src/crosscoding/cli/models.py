"""`crosscoding models`: the zoo and its cards."""

from rich.table import Column, Table

from crosscoding import zoo
from crosscoding.cli.console import out, print_json


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

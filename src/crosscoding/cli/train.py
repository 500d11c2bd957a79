"""`crosscoding train`: a model of the zoo from its recipe and a data folder."""

from pathlib import Path

from crosscoding.cli.console import out as console
from crosscoding.cli.console import output_folder, print_json, progress
from crosscoding.errors import unknown_name
from crosscoding.zoo.recipe import RECIPES, load_digits, publish, train


def run(name: str, data: Path, out: Path, *, as_json: bool) -> None:
    """Train, evaluate on the test digits, and write the model with its card."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    recipe = RECIPES[name]
    digits, test_digits = load_digits(data, "train"), load_digits(data, "test")
    folder = output_folder(out)
    with progress(f"training {name}") as report:
        training = train(
            recipe,
            digits,
            folder / f"{name}-checkpoint",
            on_epoch=lambda epoch, value: report(
                epoch / recipe.epochs, f"epoch {epoch}, training ELBO {value:.2f} nats"
            ),
        )
    card = publish(training, test_digits, folder / name)
    if as_json:
        print_json(card)
    else:
        elbo, error = card["test_elbo_nats"], card["test_elbo_standard_error"]
        console.print(
            f"test ELBO {elbo} ± {error} nats; the model is in {folder / name}", markup=False
        )

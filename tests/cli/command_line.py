"""Run the command line, and read what it wrote."""

import numpy as np
from PIL import Image
from typer.testing import CliRunner

from crosscoding.cli.app import app

runner = CliRunner()


def run(*words, **options):
    return runner.invoke(app, [str(word) for word in words], **options)


def arrays(folder):
    with np.load(folder / "samples.npz") as saved:
        return dict(saved)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)

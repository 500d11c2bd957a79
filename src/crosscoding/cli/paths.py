"""Paths as they are given on the command line."""

import os
from pathlib import Path
from typing import TypeVar

Given = TypeVar("Given", str, Path, None)


def expanded(path: Given) -> Given:
    """The path, its leading `~` the home folder: shells leave it where it follows `=` or `:`."""
    return path if path is None else type(path)(os.path.expanduser(path))

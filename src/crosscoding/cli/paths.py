"""Expands `~` in paths given on the command line."""

import os
from pathlib import Path
from typing import TypeVar

Given = TypeVar("Given", str, Path, None)


def expanded(path: Given) -> Given:
    """The path with a leading `~` expanded; shells do not expand it after `=` or `:`."""
    return path if path is None else type(path)(os.path.expanduser(path))

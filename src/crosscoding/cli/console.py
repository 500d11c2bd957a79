"""What all commands share: progress on stderr, errors in one line, a clean end on Ctrl-C."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from crosscoding.errors import BudgetError

out = Console()
err = Console(stderr=True)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what a user can mend into one line and exit code 2, and Ctrl-C into exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("[yellow]interrupted:[/] stopped before the end; nothing more is written")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, BudgetError, NotImplementedError, OSError) as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def note(*words: str) -> None:
    """Print what the user should know of the result, a line each, on stderr."""
    for each in words:
        err.print(f"[blue]note:[/] {escape(each)}", highlight=False, soft_wrap=True)


def use_one_thread() -> None:
    """Keep torch to one thread: the fits are small, and a second waits long on a busy machine."""
    torch.set_num_threads(1)


def output_folder(path: Path) -> Path:
    """The folder, made if need be; checked before any work is done.

    Raises:
        ValueError: It cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".crosscoding-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"expected an output folder that can be written to, got {path}: {error.strerror}; "
            "name another with --out"
        ) from None
    return path


def formatted(value: float | None, digits: int) -> str:
    """A number for a table, or a dash where there is none."""
    return "—" if value is None else f"{value:.{digits}f}"


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write data to a file, readable, whole or not at all."""
    written = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        written.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def print_json(data: object) -> None:
    """Print data to stdout for a program to read."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")

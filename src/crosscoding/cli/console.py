"""Shared by all commands: output streams, one-line errors, JSON, a clean exit on Ctrl-C."""

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
    """Turn errors that a user can fix into one line and exit code 2, Ctrl-C into exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("[yellow]interrupted:[/] stopped early; nothing more is written")
        raise typer.Exit(130) from None
    except (ValueError, TypeError, BudgetError, NotImplementedError, OSError) as error:
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from None


def note(*words: str) -> None:
    """Print notes for the user on stderr, one per line."""
    for each in words:
        err.print(f"[blue]note:[/] {escape(each)}", highlight=False, soft_wrap=True)


def use_one_thread() -> None:
    """Limit torch to one thread: fits are small, so that more threads would wait for each other."""
    torch.set_num_threads(1)


def output_folder(path: Path) -> Path:
    """Create an output folder if needed, and check that it is writable before any work is done.

    Raises:
        ValueError: It cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".crosscoding-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"expected a writable output folder, got {path}: {error.strerror}; "
            "choose another with --out"
        ) from None
    return path


def formatted(value: float | None, digits: int) -> str:
    """A number with a fixed number of digits, or a dash for None."""
    return "—" if value is None else f"{value:.{digits}f}"


def write_json(data: dict[str, Any], path: Path) -> None:
    """Write indented JSON to a file atomically: completely or not at all."""
    written = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        written.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def print_json(data: object) -> None:
    """Print data as JSON on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")

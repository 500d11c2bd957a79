"""The command `crosscoding`."""

from crosscoding.cli.app import main

__all__ = ["main"]

"""`python -m crosscoding.cli` is the same as `crosscoding`."""

from crosscoding.cli import main

main()

"""`python -m crosscoding` is the command `crosscoding`."""

from crosscoding.cli import main

if __name__ == "__main__":
    main()

"""What one request may ask for, and how many requests may wait."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the server.

    Args:
        max_seconds: Seconds of work on one request; then the best answer so far is sent.
        max_queries: Queries in a request, and in a batch of requests that are answered together.
        max_bytes: Bytes of a request's body.
        max_numbers: Numbers in an answer, plus those stored to compute it, such as latent draws;
            also the limit for all requests that are answered together.
        max_waiting: Requests that wait for an answer; further ones get 503.
        max_per_client: Requests of one address that wait for an answer; further ones get 429.

    Raises:
        ValueError: A limit is not positive.
    """

    max_seconds: float = 60.0
    max_queries: int = 1000
    max_bytes: int = 16 * 2**20
    max_numbers: int = 6_000_000
    max_waiting: int = 256
    max_per_client: int = 64

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if not limit > 0:
                raise ValueError(f"expected {name} > 0, got {limit}")

"""Five VAEs of digits, each of a different kind, as `crosscoding.zoo` reads them."""

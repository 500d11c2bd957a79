"""Four VAEs of digits, each of another family, as `crosscoding.zoo` reads them."""

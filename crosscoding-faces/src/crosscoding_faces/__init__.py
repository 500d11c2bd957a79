"""Two VAEs of faces, `anime-64d` and `celeba-100d`, as `crosscoding.zoo` reads them."""

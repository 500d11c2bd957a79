"""A trained VAE as inference sees it, and all that can be computed before any query."""

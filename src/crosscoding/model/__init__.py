"""A trained VAE as inference sees it, and what is known of it before any query comes."""

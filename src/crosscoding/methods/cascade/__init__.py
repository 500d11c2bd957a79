"""The stages of `methods.Auto` and what they share."""

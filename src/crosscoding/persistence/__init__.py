"""Folders of tensors and JSON, and networks as data. Knows nothing about VAEs."""

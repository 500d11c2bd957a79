"""Answers as files: Parquet and Zarr shards, in formats that other programs read."""

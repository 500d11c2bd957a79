"""Writes shards of answers as Parquet or Zarr files, which other programs can read."""

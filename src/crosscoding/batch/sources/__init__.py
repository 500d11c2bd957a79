"""Sources of rows: files that are read range by range, as they may be larger than memory."""

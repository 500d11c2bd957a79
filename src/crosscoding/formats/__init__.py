"""How tables and pictures are written in files: delimiters, headers, cells, pixels."""

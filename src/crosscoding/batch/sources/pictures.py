"""Pictures in a folder, one per row, in the order of their names."""

from pathlib import Path

import numpy as np

from crosscoding.batch.sources.base import Read, Source
from crosscoding.formats.pixels import Pixels

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


class Pictures(Source):
    """A folder of pictures of the model's size.

    Args:
        path: The folder.
        pixels: How pixels are rescaled.
    Raises:
        ValueError: There are no pictures in it.
    """

    kind = "pictures"

    def __init__(self, path: Path, pixels: Pixels) -> None:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not files:
            raise ValueError(f"expected pictures in {path}, got none")
        super().__init__(path, files)
        self.num_rows = len(files)
        self._pixels = pixels

    def _touched(self, start: int, stop: int) -> range:
        return range(start, stop)

    def _read(self, start: int, stop: int) -> Read:
        found, rows, bad = [], [], {}
        for row in range(start, stop):
            try:
                found.append(self._pixels.read(self.files[row]).numpy())
                rows.append(row)
            except ValueError as error:
                bad[row] = str(error)
        cells = np.array(found, dtype=np.float32).reshape(-1, *self._pixels.shape)
        return Read(cells, np.array(rows, dtype=np.int64), bad)

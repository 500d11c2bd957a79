"""Untrusted zip archives: how members may be packed, and what reading them may raise."""

import zipfile
import zlib

COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others unpack without a size limit
ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    OSError,
    RuntimeError,
    zlib.error,
)

"""`StoppedError`: a run that cannot go on now, but can later."""


class StoppedError(RuntimeError):
    """A run stopped early for an outside reason, such as a full disk.

    Finished shards are kept; run again to resume.
    """

"""`StoppedError`: a run that cannot go on now, but can later."""


class StoppedError(RuntimeError):
    """A run stopped before its end for a reason outside of it, such as a full disk.

    Finished shards are kept: run again to go on.
    """

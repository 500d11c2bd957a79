"""The exceptions a caller may want to catch. Every other mistake raises ValueError or TypeError."""


class NonFiniteError(ValueError):
    """A number that must be finite is NaN or infinite: in the evidence, or in what a decoder gave."""


class ModelFormatError(ValueError):
    """A saved model or posterior is not what its description says."""


class BudgetError(RuntimeError):
    """A method used all the work it was allowed and has no answer for at least one query."""

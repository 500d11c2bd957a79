"""Values that are whole numbers, counts and classes: where they are none, no scale is to blame."""

from torch import Tensor

from crosscoding.likelihoods.base import Likelihood


class Whole(Likelihood):
    """A likelihood of counts or classes."""

    def check_values(self, values: Tensor, mask: Tensor, name: str = "observed values") -> None:
        outside = mask & ~self.in_support(values)
        if outside.any():
            raise ValueError(
                f"expected {name} {self.support} for {type(self).__name__}, got "
                f"{values[outside][0]:.6g} and {int(outside.sum()) - 1} more outside; counts and "
                "classes are not scaled: give them as the model was trained on them"
            )

"""Values that are whole numbers, counts and classes: where they are none, no scale is to blame."""

from torch import Tensor

from crosscoding.likelihoods.base import Likelihood, first_and_more


class Whole(Likelihood):
    """A likelihood of counts or classes."""

    def check_values(self, values: Tensor, mask: Tensor, name: str = "observed values") -> None:
        outside = mask & ~self.in_support(values)
        if outside.any():
            raise ValueError(
                f"expected {name} {self.support} for {type(self).__name__}, got "
                f"{first_and_more(values[outside])}; counts and classes are not scaled: give them "
                "as the model was trained on them"
            )

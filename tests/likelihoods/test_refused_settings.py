"""Refused settings of likelihoods, and their messages."""

import math

import pytest
import torch

import crosscoding as cc
from crosscoding.likelihoods import (
    BetaBinomial,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    Laplace,
    Mixed,
    NegativeBinomial,
    Ordinal,
    Poisson,
    StudentT,
)


@pytest.mark.parametrize("wrong", [0, -1.0, math.nan, math.inf, torch.tensor([0.1, -0.1])])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (Laplace, "scale"),
        (lambda scale: StudentT(3.0, scale), "scale"),
        (StudentT, "df"),
        (DiscretizedLogistic, "scale"),
        (NegativeBinomial, "total_count"),
        (BetaBinomial, "total_count"),
        (lambda c: BetaBinomial(3, c), "concentration"),
    ],
)
def test_settings_that_are_not_positive_are_refused(make, name, wrong):
    with pytest.raises(ValueError, match=f"expected a finite {name} > 0, got"):
        make(wrong)


@pytest.mark.parametrize("wrong", ["1", [1.0], True])
@pytest.mark.parametrize(
    ("make", "name", "wanted"),
    [
        (Laplace, "scale", "a number, a tensor or None"),
        (StudentT, "df", "a number or a tensor"),
        (NegativeBinomial, "total_count", "a number, a tensor or None"),
        (BetaBinomial, "total_count", "a number or a tensor"),
    ],
)
def test_settings_of_another_type_are_refused(make, name, wanted, wrong):
    with pytest.raises(TypeError, match=f"expected {name} to be {wanted}, got"):
        make(wrong)


def test_none_is_refused_for_degrees_and_trials():
    with pytest.raises(TypeError, match="expected df to be a number or a tensor, got NoneType"):
        StudentT(None)
    with pytest.raises(TypeError, match="expected total_count to be a number or a tensor, got"):
        BetaBinomial(None)


@pytest.mark.parametrize("wrong", [2.5, torch.tensor([3.0, 2.5])])
def test_a_fractional_number_of_trials_is_refused(wrong):
    with pytest.raises(ValueError, match="expected a total_count of whole numbers, got"):
        BetaBinomial(wrong)


@pytest.mark.parametrize(
    ("likelihood", "name"),
    [
        (Laplace(torch.tensor([0.1, 0.2])), "scale"),
        (StudentT(torch.tensor([3.0, 4.0]), 1.0), "df"),
        (NegativeBinomial(torch.tensor([0.1, 0.2])), "total_count"),
        (BetaBinomial(5, torch.tensor([0.1, 0.2])), "concentration"),
        (Ordinal(torch.zeros(2, 1)), "cut_points"),
    ],
)
def test_tensor_settings_have_the_datas_shape_and_the_decoders_dtype(likelihood, name):
    with pytest.raises(
        ValueError, match=rf"{name} that broadcasts to the data's shape \(2, 3\), got \(2,\)"
    ):
        likelihood.for_data((2, 3), torch.empty(0))
    with pytest.raises(ValueError, match=f"expected the {name}'s dtype and device"):
        likelihood.for_data((2,), torch.empty(0, dtype=torch.double))


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), torch.tensor([0.1, -0.1])])
def test_an_invalid_scale_is_refused(scale):
    with pytest.raises(ValueError, match="finite scale > 0"):
        Gaussian(scale)


@pytest.mark.parametrize("scale", ["0.1", [0.1], True])
def test_a_scale_of_another_type_is_refused(scale):
    with pytest.raises(TypeError, match="number, a tensor or None, got"):
        Gaussian(scale)


@pytest.mark.parametrize(
    "like", [torch.empty(0, dtype=torch.double), torch.empty(0, device="meta")], ids=str
)
def test_a_scale_of_another_dtype_or_device_is_refused_and_not_cast(like):
    with pytest.raises(ValueError, match="dtype and device to be the decoder's"):
        Gaussian(torch.tensor([0.1])).for_data((3,), like)


def test_a_scale_that_does_not_broadcast_is_refused():
    with pytest.raises(ValueError, match=r"broadcasts to the data's shape \(2, 3\), got \(2,\)"):
        Gaussian(torch.tensor([0.1, 0.2])).for_data((2, 3), torch.empty(0))


@pytest.mark.parametrize("wrong", [1, 0, -3])
def test_fewer_than_two_classes_or_bins_are_refused(wrong):
    with pytest.raises(ValueError, match="expected num_classes >= 2, got"):
        Categorical(wrong)
    with pytest.raises(ValueError, match="expected num_classes >= 2, got"):
        Ordinal(None, num_classes=wrong)
    with pytest.raises(ValueError, match="expected bins >= 2, got"):
        DiscretizedLogistic(bins=wrong)


@pytest.mark.parametrize("wrong", [2.0, True, None, "3"])
def test_numbers_of_classes_and_bins_that_are_not_ints_are_refused(wrong):
    with pytest.raises(TypeError, match="expected num_classes to be an int, got"):
        Categorical(wrong)
    with pytest.raises(TypeError, match="expected num_classes to be an int, got"):
        Ordinal(None, num_classes=wrong)
    with pytest.raises(TypeError, match="expected bins to be an int, got"):
        DiscretizedLogistic(bins=wrong)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.0, 0.0), (0.0, math.inf)])
def test_a_grid_without_ends_is_refused(low, high):
    with pytest.raises(ValueError, match="expected finite low < high, got"):
        DiscretizedLogistic(low=low, high=high)


def test_invalid_cut_points_are_refused():
    with pytest.raises(ValueError, match="expected cut points that increase, got"):
        Ordinal([0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="expected at least one finite cut point, got"):
        Ordinal([])
    with pytest.raises(ValueError, match="expected at least one finite cut point, got"):
        Ordinal([0.0, math.nan])
    with pytest.raises(ValueError, match="one cut point fewer than num_classes=3, got 1"):
        Ordinal([0.0], num_classes=3)


@pytest.mark.parametrize(
    "parts",
    [
        ({}, {"name": "Categorical", "settings": {"num_classes": 1}}),
        ({}, {"name": "Mixed", "settings": {"parts": [[{"name": "Cauchy"}, 1]], "dim": -1}}),
        ({}, {"name": "Mixed", "settings": {"parts": 3, "dim": -1}}),
        ({}, {"name": "Mixed", "settings": {}}),
        ({}, {"name": "LocationDispersion", "settings": {}}),
        ({}, {"name": "ExponentialFamily", "settings": {}}),
        ({}, {"name": "Likelihood", "settings": {}}),
        ({}, {"name": "StudentT", "settings": None}),
        ({}, {"name": "Bernoulli", "settings": {"logits": "no"}}),
        ({}, {"name": "Categorical", "settings": {"num_classes": 3, "one_hot": 0}}),
    ],
)
def test_parts_of_an_unknown_likelihood_are_refused(parts):
    with pytest.raises(cc.ModelFormatError, match="expected a known likelihood"):
        cc.likelihoods.Likelihood.from_parts(parts)


def test_mixed_of_nothing_or_of_another_type_is_refused():
    with pytest.raises(ValueError, match="expected at least one part, got none"):
        Mixed([])
    for part in ("Poisson", (Mixed([Poisson()]), 1), Mixed([Poisson()])):
        with pytest.raises(TypeError, match=r"expected parts of crosscoding\.likelihoods"):
            Mixed([part])
    for num in (0, -1, 2):  # 3 classes do not fit 2 columns
        with pytest.raises(ValueError, match=r"a number of columns that .* can have, got"):
            Mixed([(Categorical(3, one_hot=True), num)])
    for num in (1.0, True, None):
        with pytest.raises(TypeError, match="expected a number of columns, got"):
            Mixed([(Poisson(), num)])


@pytest.mark.parametrize("dim", [0, 1, 1.0, True])
def test_mixed_counts_its_dimension_from_the_last(dim):
    with pytest.raises(ValueError, match="expected dim to be an int < 0"):
        Mixed([Poisson()], dim=dim)

"""TVAEs of ctgan, as models of the columns that they were trained on."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from crosscoding.adapters.libraries import library
from crosscoding.adapters.tvae_decoder import ClassSpan, NumberSpan, Span, vae_of
from crosscoding.columns import Column
from crosscoding.isolation import isolated
from crosscoding.model.vae import VAE

_MISSING = "(missing)"
_ADVICE = (
    "ctgan's own files are pickles, which run whatever code they name when they are loaded; if you "
    "trust one, load it with {0}.load and pass the result"
)


@isolated
def from_ctgan(tvae: Any, *, power: float = 1.0) -> VAE:
    """The `VAE` of a trained ctgan TVAE, with a table of the user's columns.

    The model answers DataFrames: `sample`, `sample_remaining`, `log_prob`, `condition`. It keeps a
    copy of the decoder in double precision. Given z, a number follows a mixture of normal
    distributions, in the user's units, and a discrete column is a class.

    Args:
        tvae: A fitted `ctgan.TVAE`.
        power: Exponent, > 0: p(t|z) is the network's distributions raised to this power and
            normalised. With 1, they are those that `tvae.sample` draws residuals from. ctgan
            maximises `loss_factor` (2 by default) times log p(t|z), minus the KL divergence;
            `power=2` reads the decoder as that loss does, with σ / √2 and doubled logits.

    Raises:
        ImportError: ctgan is not installed.
        TypeError: tvae is not a ctgan TVAE, but for instance a path or a CTGAN.
        ValueError: It is not fitted, power is not > 0, or a column is not supported; the message
            names the column.
    """
    kind = library("ctgan", "ctgan").TVAE
    check_model(tvae, kind, "ctgan.TVAE")
    check_power(power)
    if not hasattr(tvae, "decoder") or not hasattr(tvae, "transformer"):
        raise ValueError("expected a fitted TVAE, got one without a decoder; call its fit first")
    columns = _plain_columns(tvae.transformer)
    return vae_of(*network_of(tvae), spans_of(tvae, columns), power)


def check_model(model: Any, kind: type, name: str) -> None:
    """Raise TypeError unless this is a model of a library."""
    if isinstance(model, (str, Path)):
        raise TypeError(
            f"expected a fitted {name}, got the path {str(model)!r}: " + _ADVICE.format(name)
        )
    if not isinstance(model, kind):
        raise TypeError(f"expected a fitted {name}, got {type(model).__name__}")


def check_power(power: object) -> None:
    """Raise TypeError or ValueError unless this is a finite number > 0."""
    if isinstance(power, bool) or not isinstance(power, (int, float)):
        raise TypeError(f"expected power to be a number > 0, got {power!r}")
    if not 0 < power < math.inf:
        raise ValueError(f"expected a finite power > 0, got {power}")


def network_of(tvae: Any) -> tuple[nn.Module, int]:
    """A copy of the decoder's layers on the CPU, and the number of latents."""
    return copy.deepcopy(tvae.decoder.seq).cpu(), tvae.embedding_dim


def spans_of(tvae: Any, columns: dict[str, Column]) -> list[Span]:
    """What the decoder's outputs mean, in order.

    Args:
        tvae: The model.
        columns: The columns, by their names in the model's transformer. ctgan's number n is the
            value shift + scale · n.
    """
    sigma, start, found = tvae.decoder.sigma.detach().cpu().double().numpy(), 0, []
    for info in tvae.transformer._column_transform_info_list:
        column = columns[info.column_name]
        if info.column_type == "discrete":
            span: Span = ClassSpan(column)
        else:
            span = _number_span(info.transform, column, float(sigma[start]))
        found.append(span)
        start += info.output_dimensions
    return found


def _number_span(normalizer: Any, column: Column, sigma: float) -> NumberSpan:
    """A number's mixture in its own units, and the column standardised by it.

    Raises:
        ValueError: The column had missing values.
    """
    if normalizer.null_transformer.models_missing_values():
        raise ValueError(
            f"{column.where}: expected a number without missing values in training, got some, "
            "which ctgan replaced by the mean but cannot sample; train with SDV's TVAESynthesizer, "
            "or on rows without gaps"
        )
    mixture, valid = normalizer._bgm_transformer, normalizer.valid_component_indicator
    means = column.shift + column.scale * mixture.means_.reshape(-1)[valid]
    deviations = column.scale * np.sqrt(mixture.covariances_.reshape(-1)[valid])
    weights = mixture.weights_[valid] / mixture.weights_[valid].sum()
    shift = float((weights * means).sum())
    variance = float((weights * (deviations**2 + (means - shift) ** 2)).sum())
    settings = {**vars(column), "shift": shift, "scale": math.sqrt(variance)}
    return NumberSpan(Column(**settings), means, deviations, weights, sigma)


def _plain_columns(transformer: Any) -> dict[str, Column]:
    """The columns of a TVAE that was trained without SDV."""
    found = {}
    for info in transformer._column_transform_info_list:
        name, dtype = info.column_name, transformer._column_raw_dtypes[info.column_name]
        if info.column_type == "discrete":
            found[name] = class_column(name, info.transform.dummies, dtype)
        else:
            step = 1.0 if dtype.kind in "iu" else None
            found[name] = Column(name, "number", dtype=str(dtype), step=step)
    return found


def class_column(name: str, categories: list[Any], dtype: Any) -> Column:
    """A discrete column. As in ctgan, a missing value is a category of its own."""
    known = [_MISSING if category != category else category for category in categories]
    plain = [c.item() if isinstance(c, np.generic) else c for c in known]
    return Column(name, "class", tuple(plain), "object" if _MISSING in plain else str(dtype))

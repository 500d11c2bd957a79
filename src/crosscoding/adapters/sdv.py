"""TVAE synthesizers of SDV, which wrap ctgan's TVAE in transformations of their own."""

from typing import Any

from crosscoding.adapters.ctgan import (
    check_model,
    check_power,
    class_column,
    network_of,
    spans_of,
)
from crosscoding.adapters.libraries import library
from crosscoding.adapters.tvae_decoder import vae_of
from crosscoding.columns import Column
from crosscoding.isolation import isolated
from crosscoding.model.vae import VAE

_NUMBERS = "FloatFormatter"
_DATES = ("UnixTimestampEncoder", "OptimizedTimestampEncoder")
_DAY = 86400.0
_IN_2000 = 946_684_800.0  # seconds from 1970 to 2000


@isolated
def from_sdv(synthesizer: Any, *, power: float = 1.0) -> VAE:
    """The `VAE` of a fitted SDV `TVAESynthesizer`, with a table of the user's columns.

    This works like `from_ctgan`. Columns that SDV makes up independently of the others, such as
    ids, names and addresses, are not in the model. A missing value is one to fill in: SDV removes
    values at random after sampling, `sample` does not. Dates are datetimes, even if SDV was given
    text. Numbers are rounded as SDV rounds them, but not clipped to the range of the training data;
    condition on an interval to stay in one.

    Args:
        synthesizer: A fitted `sdv.single_table.TVAESynthesizer`.
        power: As in `from_ctgan`.

    Raises:
        ImportError: SDV is not installed.
        TypeError: synthesizer is not a TVAESynthesizer, but for instance a path or a
            CTGANSynthesizer.
        ValueError: It is not fitted, has constraints, power is not > 0, or a column's transformer
            is not supported; the message names the column.
    """
    kind = library("sdv.single_table", "sdv").TVAESynthesizer
    check_model(synthesizer, kind, "TVAESynthesizer")
    check_power(power)
    tvae = getattr(synthesizer, "_model", None)
    if tvae is None or not hasattr(tvae, "transformer"):
        raise ValueError(
            "expected a fitted TVAESynthesizer, got one that is not; call its fit first"
        )
    constraints = synthesizer.get_constraints()
    if constraints:
        raise ValueError(
            f"expected a TVAESynthesizer without constraints, got {constraints[0]!r}: they "
            "change the columns that the network is trained on, and rows that break them are "
            "thrown away; train without them, and condition on intervals or sets instead"
        )
    transformers = synthesizer.get_transformers()
    columns = {
        info.column_name: _column(info, transformers.get(info.column_name))
        for info in tvae.transformer._column_transform_info_list
    }
    return vae_of(*network_of(tvae), spans_of(tvae, columns), power)


def _column(info: Any, transformer: Any) -> Column:
    """The column of the user's table for one column of the network.

    Raises:
        ValueError: Its transformer is not supported.
    """
    name, kind = info.column_name, type(transformer).__name__
    if info.column_type == "discrete" and transformer is None:
        return class_column(name, info.transform.dummies, info.transform.dtype)
    if info.column_type == "continuous" and kind == _NUMBERS:
        return _number(name, transformer)
    if info.column_type == "continuous" and kind in _DATES:
        return _date(name, transformer)
    if transformer is None:
        raise ValueError(
            f"column {name!r}: expected a column of the data, got one that SDV derived from "
            "another, such as where values are missing; set missing_value_generation='random' in "
            "the other's transformer, with synthesizer.update_transformers, and fit again"
        )
    raise ValueError(
        f"column {name!r}: expected it to be transformed by SDV's defaults, {_NUMBERS} for "
        f"numbers, {_DATES[0]} for dates and nothing for categories, got {kind}; fit a synthesizer "
        "without update_transformers for this column"
    )


def _number(name: str, transformer: Any) -> Column:
    import pandas as pd

    digits = transformer._rounding_digits if transformer.learn_rounding_scheme else None
    is_whole = pd.api.types.is_integer_dtype(transformer._dtype)
    step = 10.0**-digits if digits is not None else 1.0 if is_whole else None
    return Column(name, "number", dtype=str(transformer._dtype), step=step)


def _date(name: str, encoder: Any) -> Column:
    """A date, with the shift and scale from the encoder's numbers to seconds since 1970.

    Raises:
        ValueError: Its dates have a time zone.
    """
    import pandas as pd

    form = encoder.datetime_format
    if encoder._timezone_offset is not None or encoder._has_multiple_timezones:
        raise ValueError(
            f"column {name!r}: expected dates without a time zone, got the format {form!r}; "
            "convert them to UTC without a zone and fit again"
        )
    days = pd.Series(pd.to_datetime([_IN_2000, _IN_2000 + 10 * _DAY], unit="s"))
    text = days.dt.strftime(encoder._get_pandas_datetime_format()) if form else days
    start, end = encoder._transform_helper(days if encoder._dtype.kind == "M" else text)
    scale = 10 * _DAY / (end - start)
    shift = _IN_2000 - scale * start
    step = None if form is None or any(part in form for part in ("%H", "%I", "%c", "%X")) else _DAY
    return Column(name, "date", shift=float(shift), scale=float(scale), step=step)

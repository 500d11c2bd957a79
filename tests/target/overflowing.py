"""A decoder with a column that overflows, and evidence on its first column alone."""

import math

import torch
from torch import Tensor, nn

import crosscoding as cc

DTYPES = [torch.float32, torch.float64]
WEIGHTS = 0.7, -1.1, 0.4


class Columns(nn.Module):
    """Three lines through 0, and a fourth column that overflows from |z| = 2.5 on."""

    def __init__(self, dtype: torch.dtype, *, overflows: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([WEIGHTS], dtype=dtype))
        self.overflows = overflows
        self.rate = 14.2 if dtype == torch.float32 else 113.6

    def forward(self, z: Tensor) -> Tensor:
        lines = z * self.weight
        if not self.overflows:
            return lines
        return torch.cat([lines, (self.rate * z.square()).exp()], -1)


def evidence(values: list[float], num: int, dtype: torch.dtype) -> cc.Evidence:
    """Rows of which the first element is observed, (len(values), num), or (num,) of one."""
    rows = torch.full((len(values), num), math.nan, dtype=dtype)
    rows[:, 0] = torch.tensor(values, dtype=dtype)
    return cc.Evidence.from_nan(rows[0] if len(values) == 1 else rows)

"""Trains a VAE of a table with gaps, by the importance-weighted bound on what is observed.

    log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x),   z_k ~ q(z|x),

with x the observed cells of a row: a lower bound on log p(x), tighter for larger K. q(z|x) is a
Gaussian from a network that sees the observed cells, 0 in place of the others, and the mask.

Source: Mattei and Frellsen (2019), MIWAE, eq. 3. Differs in: the likelihood of a number is normal
    and not Student's, and each observed number is taken to be known up to a deviation of 0.03 of
    the column's, which bounds the likelihood; classes and counts are modelled as such; and after
    training, variances are raised to what suits held-out rows.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from crosscoding.clock import Clock
from crosscoding.columns import Column, Table
from crosscoding.model.vae import VAE
from crosscoding.progress import Progress
from crosscoding.random import normal
from crosscoding.tables.dispersion import ColumnOutputs

_BLUR = 0.03  # standard deviations: fitting a smaller scale does not pay
_LEAST_STEPS = 50  # per epoch: with 100 rows, a pass of two steps shows no progress
_MOST_LOG_VARIANCE = 10.0  # of the encoder
_RISE, _NUM_RISES = 0.1, 11  # of the decoder's log variances after training: 0, 0.1, …, 1


@dataclass(frozen=True)
class Training:
    """Settings of the training; `VAEImputer` documents them."""

    latent_dim: int
    hidden: int
    num_samples: int
    batch_size: int
    learning_rate: float
    max_epochs: int
    patience: int
    validation: float
    max_seconds: float | None


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, and the bound on held-out rows after each epoch, in nats a row."""

    vae: VAE
    bounds: list[float]


@torch.enable_grad()
def train(
    table: Table,
    values: Tensor,
    mask: Tensor,
    settings: Training,
    generator: Generator,
    progress: Progress,
) -> Trained:
    """Train a VAE.

    Args:
        table: The columns.
        values, mask: The rows, shape (N, columns); each column has an observed value.
        settings: The settings.
        generator: Source of all random numbers.
        progress: Called after each epoch.
    """
    networks = _Networks(table, values, mask, settings, generator)
    held_out = int(settings.validation * len(values))
    order = torch.randperm(len(values), generator=generator)
    test, own = order[:held_out], order[held_out:]
    test = test if held_out else own
    optimizer = torch.optim.Adam(networks.parameters(), lr=settings.learning_rate)
    clock, best, left = Clock(settings.max_seconds), -math.inf, settings.patience
    kept, bounds = copy.deepcopy(networks.state_dict()), []
    for epoch in range(settings.max_epochs):
        for rows in _batches(own, settings.batch_size, generator):
            optimizer.zero_grad()
            loss = -networks.bound(values[rows], mask[rows], generator, blurred=True).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(networks.parameters(), 10.0)
            optimizer.step()
        bounds.append(_held_out(networks, values[test], mask[test], settings.batch_size))
        left -= 1
        if bounds[-1] > best:
            best, left, kept = bounds[-1], settings.patience, copy.deepcopy(networks.state_dict())
        share = max(1 - left / settings.patience, (epoch + 1) / settings.max_epochs, clock.share)
        progress(min(share, 1.0), f"epoch {epoch + 1}, bound {bounds[-1]:.4g} nats a row")
        if left <= 0 or clock.is_over():
            break
    networks.load_state_dict(kept)
    if held_out:
        _widen(networks, values[test], mask[test], settings.batch_size)
    return Trained(networks.vae(table), bounds)


@torch.no_grad()
def _widen(networks: "_Networks", values: Tensor, mask: Tensor, batch_size: int) -> None:
    """Raise all log variances by the number that suits held-out rows best.

    A decoder fits its training rows more closely than new ones, so its intervals are too narrow
    for new rows.
    """
    bounds = []
    for _ in range(_NUM_RISES):
        bounds.append(_held_out(networks, values, mask, batch_size))
        networks.raise_log_variances(_RISE)
    networks.raise_log_variances(_RISE * (bounds.index(max(bounds)) - _NUM_RISES))


@torch.no_grad()
def _held_out(networks: "_Networks", values: Tensor, mask: Tensor, batch_size: int) -> float:
    """The mean bound on rows, with the same noise each time."""
    generator = Generator().manual_seed(0)
    pieces = zip(values.split(batch_size), mask.split(batch_size), strict=True)
    return float(torch.cat([networks.bound(*piece, generator) for piece in pieces]).mean())


def _batches(rows: Tensor, size: int, generator: Generator) -> Iterator[Tensor]:
    """Batches of rows in random order: whole passes until there were enough steps."""
    num = 0
    while num < _LEAST_STEPS:
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(size):
            yield batch
            num += 1


class _Networks(nn.Module):
    """Decoder, encoder, and what is learned about columns."""

    def __init__(
        self, table: Table, values: Tensor, mask: Tensor, settings: Training, generator: Generator
    ) -> None:
        super().__init__()
        self.latent_dim, self.num_samples = settings.latent_dim, settings.num_samples
        self.outputs = ColumnOutputs(table, values, mask)
        self.flat_likelihood = self.outputs.likelihood.for_data(values.shape[1:], values)
        self.features = _Features(table)
        hidden, latent = settings.hidden, settings.latent_dim
        self.decoder = _network(latent, hidden, len(self.outputs.start), generator)
        self.encoder = _network(self.features.num, hidden, 2 * latent, generator)
        with torch.no_grad():
            self._last.bias.copy_(self.outputs.start)
            self._last.weight.mul_(0.5)  # columns start close to their own distributions
        self._log_variances = self.outputs.log_variances
        self._normal_columns = self.outputs.normal_columns

    def bound(
        self, values: Tensor, mask: Tensor, generator: Generator, *, blurred: bool = False
    ) -> Tensor:
        """The bound on log p(x) of each row in nats, shape (B,).

        Args:
            values, mask: Shape (B, columns).
            generator: Source of the noise.
            blurred: Whether to take observed numbers as known only up to the blur.
        """
        mean, log_variance = self.encoder(self.features(values, mask)).chunk(2, -1)
        scale = (0.5 * log_variance.clamp(-_MOST_LOG_VARIANCE, _MOST_LOG_VARIANCE)).exp()
        eps = normal((self.num_samples, *mean.shape), generator=generator, like=mean)
        z = mean + scale * eps
        log_ratio = 0.5 * (eps.square() - z.square()).sum(-1) + scale.log().sum(-1)
        output = self.decoder(z)
        there = torch.where(mask, values, 0.0)
        log_prob = self.flat_likelihood.masked_log_prob(self.outputs(output), there, mask)
        if blurred and len(self._normal_columns):
            seen = mask[:, self._normal_columns]
            precision = (-output[..., self._log_variances]).exp()
            log_prob = log_prob - 0.5 * _BLUR**2 * torch.where(seen, precision, 0.0).sum(-1)
        return (log_prob + log_ratio).logsumexp(0) - math.log(self.num_samples)

    @property
    def _last(self) -> nn.Linear:
        last = self.decoder[-1]
        assert isinstance(last, nn.Linear)
        return last

    def raise_log_variances(self, by: float) -> None:
        """Multiply the variances of all numbers by exp(by)."""
        self._last.bias[self._log_variances] += by

    def vae(self, table: Table) -> VAE:
        """The trained model."""
        likelihood = self.outputs.trained()
        return VAE(self.decoder, self.latent_dim, likelihood, table=table)


class _Features(nn.Module):
    """What the encoder sees of rows: numbers, one-hot classes, and which cells are observed."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._columns = table.columns
        self.num = sum(self._width(column) for column in table.columns) + len(table.columns)

    @staticmethod
    def _width(column: Column) -> int:
        return len(column.categories) if column.kind == "class" else 1

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        pieces = [mask.to(values.dtype)]
        for column, own, seen in zip(self._columns, values.mT, mask.mT, strict=True):
            if column.kind == "class":
                places = torch.where(seen, own, 0.0).long()
                ones = nn.functional.one_hot(places, len(column.categories))
                pieces.append(torch.where(seen[:, None], ones, 0).to(values.dtype))
                continue
            if column.kind == "positive":
                own = torch.where(seen, own, 1.0).log()
            if column.kind == "count":
                own = torch.where(seen, own, 0.0).log1p()
            pieces.append(torch.where(seen, own, 0.0)[:, None])
        return torch.cat(pieces, -1)


def _network(num_in: int, hidden: int, num_out: int, generator: Generator) -> nn.Sequential:
    """A network with two hidden layers and random initial weights."""
    network = nn.Sequential(
        nn.Linear(num_in, hidden),
        nn.Tanh(),
        nn.Linear(hidden, hidden),
        nn.Tanh(),
        nn.Linear(hidden, num_out),
    )
    for layer in network:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return network

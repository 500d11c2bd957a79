"""MIWAE as its authors published it, for the comparison in `run.py`.

Three hidden layers of 128 tanh units in encoder and decoder, 10 latents, Student's t columns, 20
importance samples in training and 10,000 for each row that is imputed; 500 epochs of batches of 64
by Adam at 0.001, without early stopping. Columns are standardised.

Source: Mattei and Frellsen (2019), section 4.3 and its supplement. Differs in: nothing known.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal, StudentT

_LATENT, _HIDDEN, _SAMPLES, _WEIGHED = 10, 128, 20, 10_000
_EPOCHS, _BATCH, _RATE = 500, 64, 1e-3


class PublishedMIWAE:
    """The model, and its imputation of rows (N, D) in which NaN means missing."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def fit(self, rows: np.ndarray) -> "PublishedMIWAE":
        torch.manual_seed(0)
        num = rows.shape[1]
        self._encoder, self._decoder = _network(num, 2 * _LATENT), _network(_LATENT, 3 * num)
        both = [*self._encoder.parameters(), *self._decoder.parameters()]
        optimizer = torch.optim.Adam(both, lr=_RATE)
        data = torch.from_numpy(rows).float()
        for _ in range(_EPOCHS):
            for batch in data[torch.randperm(len(data), generator=self._generator)].split(_BATCH):
                optimizer.zero_grad()
                log_weights = self._weighed(batch, _SAMPLES)[0]
                (-(log_weights.logsumexp(0)).mean()).backward()
                optimizer.step()
        return self

    @torch.no_grad()
    def impute(self, rows: np.ndarray, num_draws: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows filled with means, (N, D), and with draws, (num_draws, N, D)."""
        filled, draws = [], []
        for row in torch.from_numpy(rows).float():
            log_weights, data = self._weighed(row[None], _WEIGHED)
            weights = log_weights[:, 0].softmax(0)
            seen = ~row.isnan()
            mean = (weights[:, None] * data.mean[:, 0]).sum(0)
            filled.append(torch.where(seen, row, mean))
            chosen = torch.multinomial(weights, num_draws, True, generator=self._generator)
            draws.append(torch.where(seen, row, data.sample()[chosen, 0]))
        return torch.stack(filled).double().numpy(), torch.stack(draws, 1).double().numpy()

    def _weighed(self, rows: Tensor, num: int) -> tuple[Tensor, StudentT]:
        """log p(x|z) p(z) / q(z|x) of draws from q, (num, B), and p(t|z)."""
        seen = ~rows.isnan()
        values = torch.where(seen, rows, 0.0)
        mean, scale = self._encoder(values).chunk(2, -1)
        q = Normal(mean, nn.functional.softplus(scale))
        noise = torch.randn(num, *mean.shape, generator=self._generator)
        z = q.mean + q.stddev * noise
        location, spread, freedom = self._decoder(z).chunk(3, -1)
        positive = nn.functional.softplus
        data = StudentT(3 + positive(freedom), location, 0.001 + positive(spread))
        log_prob = torch.where(seen, data.log_prob(values), 0.0).sum(-1)
        return log_prob + (Normal(0, 1).log_prob(z) - q.log_prob(z)).sum(-1), data


def _network(num_in: int, num_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num in (num_in, _HIDDEN, _HIDDEN):
        layers += [nn.Linear(num, _HIDDEN), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(_HIDDEN, num_out))

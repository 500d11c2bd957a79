"""A target that takes several stages of Auto, and what tests ask about its answers."""

import torch
from problems import mirrored_vae
from torch import Tensor

import crosscoding as cc
from crosscoding.methods import Auto


def labels(posterior: cc.Posterior) -> list[str]:
    return [verdict.label for verdict in posterior.verdicts]


def spent(posterior: cc.Posterior) -> Tensor:
    """Decodes of each query, all stages together."""
    return torch.stack([stage.decodes for stage in posterior.trace]).sum(0)


def several_stages() -> cc.VAETarget:
    """Two mirrored queries that take climbs and a swarm, and one that anneals, in double."""
    vae = mirrored_vae(8, 16, 0.3, seed=2, dtype=torch.double)
    truth = mirrored_vae(8, 16, 0.3, seed=2).sample_prior(6, seed=102).double()
    evidence = cc.Evidence(truth, cc.random_mask((16,), 0.7, seed=2))
    return cc.VAETarget(vae, evidence[[0, 3, 5]])


def assert_entries_are_those_alone(together: cc.Posterior, seed: int) -> None:
    target = together.target
    for entry in range(target.num_queries):
        alone = cc.condition(target.vae, target.evidence[[entry]], Auto(), seed=seed)
        # In double, sums in another order are 1e-16 apart; hundreds of moves make it 1e-12.
        torch.testing.assert_close(together.draws[:, entry], alone.draws[:, 0], rtol=0, atol=1e-8)
        for name in ("log_evidence", "log_evidence_error", "ess", "c_elbo"):
            one, other = getattr(together, name)[entry], getattr(alone, name)[0]
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, equal_nan=True)
        assert together.verdicts[entry] == alone.verdicts[0]
        assert spent(together)[entry] == spent(alone)[0]

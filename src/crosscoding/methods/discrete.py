"""Discrete latents: exact by enumeration where states are few, otherwise by annealed particles.

The stages run in turn, each on the queries that earlier ones could not settle:

    prior     weights draws of the prior, which all queries share
    anneal    takes particles from the prior to p(z|x) by gradient-informed moves
    refine    fits an autoregressive density to them, and weights its draws
    bridge    takes particles from that density to p(z|x), and fits it again
    look      sends independent chains from the prior: does the answer lack states that they reach?

Source: see `numerics.enumeration`, `numerics.discrete_annealing`, `numerics.autoregressive_fit` and
`numerics.discrete_look`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator

from crosscoding.errors import check_count
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.numerics.discrete_search import DiscreteSearch
from crosscoding.methods.numerics.enumeration import MAX_STATES, enumerated
from crosscoding.result.findings import Findings
from crosscoding.result.purposes import check_purpose
from crosscoding.target.base import Target
from crosscoding.target.discrete_target import DiscreteTarget


@dataclass(frozen=True)
class Discrete(Method):
    """p(z|x) for discrete latents, which no other method but `Auto` takes.

    Args:
        num_draws: Draws stored for each query, ≥ 2.
        max_states: Largest number of states to enumerate, K^D for D places with K values, ≥ 1.
        purpose: "density", "mean" or "interval": a query stops once it is settled for this purpose.
        max_decodes: Most decoder evaluations per query, besides those that all queries share; None:
            no limit.

    Source: Grathwohl et al. (2021) and others; see the module.
    """

    takes_continuous: ClassVar[bool] = False
    takes_discrete: ClassVar[bool] = True

    num_draws: int = 1000
    max_states: int = MAX_STATES
    purpose: str = "density"
    max_decodes: int | None = None

    def __post_init__(self) -> None:
        check_count("num_draws", self.num_draws, 2)
        check_count("max_states", self.max_states, 1)
        check_purpose(self.purpose, self.num_draws)
        if self.max_decodes is not None:
            check_count("max_decodes", self.max_decodes, 1)

    @torch.no_grad()
    def find(self, target: Target, *, generator: Generator, report: Report = silent) -> Findings:
        if not isinstance(target, DiscreteTarget):
            raise ValueError("expected a target with discrete latents, got another; use Auto()")
        if target.prior.num_states <= self.max_states:
            return enumerated(target, self.num_draws, generator=generator, report=report)
        search = DiscreteSearch(target, self.num_draws, self.purpose, self.max_decodes, report)
        return search.run(generator)

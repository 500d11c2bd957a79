"""Auto: the cascade. Cheap stages first; each passes on only the queries that it could not settle.

    bank    every query at every kept point of the prior: where is p(z|x), and how narrow?
    grid    latent ≤ 3: exact integration
    anneal  a few particles from the prior to p(z|x): they see its modes, and start and test the fit
    climb   in their place where p(z|x) is too narrow to anneal to: Gauss–Newton from many points
    adapt   a mixture that proposes well, fitted in rounds of weighted draws
    weigh   fresh draws of it, until log p(x) is known well enough: Pareto k, ESS
    search  do the particles lie where the fit puts mass? Did climbs keep finding new modes?
    swarm   what fails is annealed again, with many particles in islands, and weighed again
    fit     what even that cannot settle, and is narrow: the best Gaussian, by natural gradients

What comes out says itself what it is worth (`verdict`), and what was done for it (`trace`).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from crosscoding.crosscoders import Fitted, Gaussian, Mixture, fit_to_draws
from crosscoding.diagnostics import importance_ess, log_mean_exp, mean_error, pareto_smooth
from crosscoding.errors import BudgetError
from crosscoding.findings import Findings, Stage
from crosscoding.methods.base import Method, Report, silent
from crosscoding.methods.grid import Grid
from crosscoding.methods.importance import adapt, widened
from crosscoding.methods.laplace import climb, spread_starts
from crosscoding.methods.natural import NaturalGradient
from crosscoding.methods.particles import next_temperature, systematic, taken
from crosscoding.methods.smc import Annealing
from crosscoding.random import spawn, uniform
from crosscoding.target import Target

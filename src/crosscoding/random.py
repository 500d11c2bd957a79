"""The only place where seeds become generators and generators become base noise.

The queries of one call share their base noise: it is drawn once, with shape (*sample, 1, event),
and broadcast over the batch. Each entry therefore gets exactly the numbers it would get alone. For
independent repeats of one query, call again with another seed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.quasirandom import SobolEngine


def generator_from(seed: int | Generator | None) -> Generator:
    """A generator for a seed: an int ≥ 0, a generator (used as is), or None for a fresh seed.

    Raises:
        TypeError: seed is of another type.
        ValueError: seed is negative.
    """
    if isinstance(seed, Generator):
        return seed
    generator = Generator()
    if seed is None:
        generator.seed()
        return generator
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(
            f"expected seed to be an int, a torch.Generator or None, got {type(seed).__name__}"
        )
    if seed < 0:
        raise ValueError(f"expected seed >= 0, got {seed}")
    return generator.manual_seed(seed)


def spawn(generator: Generator, num: int) -> list[Generator]:
    """`num` new generators, seeded by draws from this one."""
    seeds = torch.randint(2**62, (num,), generator=generator, device=generator.device)
    return [Generator().manual_seed(seed) for seed in seeds.tolist()]


def normal(shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
    """Standard normal noise of the given shape, in the dtype and on the device of `like`."""
    noise = torch.randn(
        tuple(shape), generator=generator, device=generator.device, dtype=like.dtype
    )
    return noise.to(like.device)


def uniform(shape: Sequence[int], *, generator: Generator, like: Tensor) -> Tensor:
    """Uniform noise in [0, 1) of the given shape, in the dtype and on the device of `like`."""
    noise = torch.rand(tuple(shape), generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


def quasi_normal(
    num: int, dim: int, *, generator: Generator, like: Tensor, start: int = 0
) -> Tensor:
    """Standard normal points (num, dim), spread more evenly than independent draws.

    A scrambled Sobol sequence from its point `start` on, mapped through the normal quantiles.
    """
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    engine = SobolEngine(dim, scramble=True, seed=seed)
    if start:
        engine.fast_forward(start)
    uniforms = engine.draw(num, dtype=torch.double)
    if not start:  # the first point comes in the default dtype
        uniforms[:1] = engine.shift.double() / 2**engine.MAXBIT
    quantiles = math.sqrt(2) * torch.erfinv((2 * uniforms - 1).clamp(-1 + 1e-12, 1 - 1e-12))
    return quantiles.to(like)

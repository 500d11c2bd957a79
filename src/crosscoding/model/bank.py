"""The bank: latent points that are decoded once and then serve every query.

Given their outputs, log p(x|z) of all queries at all points takes one or two matrix products and no
decoding: for Bernoulli elements, (x·m) @ logitsᵀ − m @ softplus(logits)ᵀ. A likelihood without such
a form is evaluated element by element, in chunks, from the same outputs.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from crosscoding.clock import UNLIMITED, Clock, OutOfTime
from crosscoding.covariates import number_of_rows
from crosscoding.errors import ModelFormatError
from crosscoding.isolation import isolated_class
from crosscoding.likelihoods import Likelihood
from crosscoding.model.in_noise import check_continuous, in_noise
from crosscoding.model.recognition import same_output
from crosscoding.model.vae import VAE
from crosscoding.persistence.folder import fingerprint, prefixed, read_folder, write_folder
from crosscoding.random import quasi_normal

MAX_POINTS = 16_384  # halving it changes `Auto` on mnist-20d hardly more than another seed does
_MIN_POINTS = 16
_MAX_BYTES = 256 * 2**20
_MAX_OUTPUT_BYTES = 128 * 2**20  # of complete outputs, which are kept besides the bank
_MAX_OPERATIONS = 2e10  # multiply-adds to build it: about a second
_FEW = 1024  # points that are decoded for one query; a cascade takes several times as many decodes
_PER_VALUE = 32  # multiply-adds that take about as long as writing and reading a number
_CHUNK_BYTES = 64 * 2**20
_COPIES = 16  # working memory of a likelihood, in copies of what is kept: about eight in double
_LAYERS_AT_ONCE = 16  # decoding holds about 1 in 16 of all layers' outputs in memory at a time
_PAIR_OPERATIONS = 2e9  # multiply-adds in one tile of points and queries
_TILE_BYTES = 2 * 2**20  # log-likelihoods of a tile in double: in cache, three times as fast
_SHARE = 0.25  # of the time left, for decoding a bank
_NUM_CHECKED = 64  # points decoded again when a bank is loaded: 5 % wrong ones pass in 4 % of cases
_ROUNDING = 1000  # eps by which their outputs may differ, as kept numbers enter answers: 1.2e-4


@isolated_class
class Bank:
    """Decoded points that give the log-likelihood of any evidence at each of them.

    Args:
        vae: The model.
        points: z, shape (N, latent).

    Attributes:
        points: As given.

    Raises:
        ValueError: The decoder takes covariates, so that no points serve every query.

    Example:
        >>> import crosscoding as cc
        >>> bank = cc.Bank.of(cc.zoo.load("mnist-2d"))
        >>> digits = cc.zoo.digits()[0].flatten(1)
        >>> bank.log_likelihood(digits[:3], digits[:3] > 0).shape
        torch.Size([16384, 3])
    """

    def __init__(self, vae: VAE, points: Tensor) -> None:
        _check_takes_only_z(vae)
        self.points = points
        self._decoder, self._likelihood = vae.decoder, vae.flat_likelihood
        self._kept = tuple(_by_element(part) for part in _decoded(vae, points))
        self._is_of_model = False

    @property
    def num_bytes(self) -> int:
        """Size of the points and of what is kept for them."""
        return sum(tensor.nbytes for tensor in (self.points, *self._kept))

    @classmethod
    def of(cls, vae: VAE, *, max_bytes: int | None = None, clock: Clock = UNLIMITED) -> "Bank":
        """The bank of a model: quasi-random draws of its prior, decoded at the first call.

        Every method uses this bank. Its points are noise, which the model's prior maps to z. Its
        size depends only on the model, through the counted cost of decoding, so answers do not
        depend on the machine's speed. Making it takes a few seconds, once per model.

        Args:
            vae: The model, which keeps the bank.
            max_bytes: Largest memory, > 0. If given, a bank of that size is made and the model does
                not keep it; by default it is 256 MiB and kept.
            clock: Ticked before each piece is decoded.
        """
        _check_takes_only_z(vae)
        vae = in_noise(vae)
        if max_bytes is not None:
            return cls(vae, prior_points(_num_points(vae, max_bytes), vae.latent_dim, _like(vae)))
        bank = cls.start_of(vae, MAX_POINTS, clock)
        if not bank._is_of_model:
            raise OutOfTime
        return bank

    @staticmethod
    def few_points(vae: VAE, num: int) -> Tensor:
        """The first points of a bank, at most `num`, for covariates that have no bank."""
        few = min(num, _FEW, _num_points(vae, num_banks=1))
        return prior_points(few, vae.latent_dim, _like(vae))

    @staticmethod
    def is_worth_keeping(vae: VAE) -> bool:
        """Whether a bank for each example has at least as many points as `few_points` gives."""
        return _num_points(vae) >= min(_FEW, _num_points(vae, num_banks=1))

    @classmethod
    def start_of(cls, vae: VAE, num: int, clock: Clock) -> "Bank":
        """The first `num` points of the model's bank, or as many as can be decoded in time.

        Decoded points are kept, and the next call continues from there; once all are decoded, the
        bank becomes the model's own. If there is no time for even one piece, a few points are
        decoded anyway and not kept.
        """
        whole = vae.kept.get("bank")
        if isinstance(whole, Bank):
            return whole if num >= len(whole.points) else whole._first(num)
        decoded, parts, seconds = vae.kept.get("start of bank", (0, (), 0.0))
        total, size, stop = _num_points(vae), _chunk_size(vae, clock), clock.within(_SHARE)
        if not decoded and clock.is_limited:
            few = _few_of(vae, min(size, total), clock, stop)
            if few is not None:
                return cls._made(vae, *few)._first(num)
        while decoded < min(num, total):
            if decoded and (stop() or seconds > _SHARE * clock.left):
                break
            clock.beat()
            began = time.perf_counter()
            piece = _piece_of(vae, decoded, min(size, total - decoded))
            if not parts:  # allocated once: joining pieces would take twice the memory
                points, *kept = (part.new_empty(total, *part.shape[1:]) for part in piece)
                parts = (points, *map(_by_element, kept))
            for part, own in zip(parts, piece, strict=True):  # other threads may write the same
                part[decoded : decoded + len(own)] = own
            decoded, seconds = decoded + len(piece[0]), time.perf_counter() - began
            vae.kept["start of bank"] = decoded, parts, seconds
        bank = cls._made(vae, *parts)
        if decoded < total:
            return bank._first(min(num, decoded))
        bank._is_of_model = True
        vae.kept["bank"] = bank
        vae.kept.pop("start of bank", None)
        return bank if num >= total else bank._first(num)

    @classmethod
    def _made(cls, vae: VAE, points: Tensor, *kept: Tensor) -> "Bank":
        bank = object.__new__(cls)
        bank.points, bank._kept, bank._is_of_model = points, kept, False
        bank._decoder, bank._likelihood = vae.decoder, vae.flat_likelihood
        return bank

    def _first(self, num: int) -> "Bank":
        bank = object.__new__(Bank)
        vars(bank).update(vars(self))
        bank.points, bank._is_of_model = self.points[:num], False
        bank._kept = tuple(part[:num] for part in self._kept)
        return bank

    def log_likelihood(self, values: Tensor, mask: Tensor, clock: Clock = UNLIMITED) -> Tensor:
        """log p(x|z) of every query at every point, in nats.

        Args:
            values: x, shape (B, data_size), finite everywhere.
            mask: True = observed, shape (B, data_size).
            clock: Ticked before each piece but the first.
        Returns:
            Shape (N, B).
        """
        share_used = int(mask.any(0).sum()) / max(mask.shape[1], 1)
        row_bytes = max(_COPIES * share_used * self._kept[0][:1].nbytes, 1)
        # Every tile also needs a few copies of values: as much memory as data_size more rows.
        tile = max(_TILE_BYTES / (8 * max(len(values), 1)), values.shape[1])
        chunk = clock.piece_bytes(_CHUNK_BYTES)
        at_once = min(_PAIR_OPERATIONS / max(values.numel(), 1), chunk / row_bytes, tile)
        size = max(int(at_once), 1)
        # Each query's numbers are contiguous in memory, as most work is on one query at a time.
        by_query = self.points.new_empty(len(values), len(self.points))
        for start in range(0, len(self.points), size):
            if start:
                clock.tick()
            kept = tuple(part[start : start + size] for part in self._kept)
            piece = self._likelihood.pairwise_of_observed(kept, values, mask)
            by_query[:, start : start + size] = piece.mT
        return by_query.mT

    def save(self, path: str | Path) -> None:
        """Write the bank to a folder; either all of it or nothing.

        Raises:
            ValueError: Its points are not those of `Bank.of(vae)`, the only ones that a loaded
                bank may have; or the folder cannot be written.
        """
        first = prior_points(len(self.points), self.points.shape[-1], self.points)
        if not self._is_of_model or not torch.equal(self.points, first):
            raise ValueError(
                f"expected the bank that Bank.of(vae) makes, got one of {len(self.points)} other "
                "points: a loaded bank must represent the prior"
            )
        kept = {f"kept.{index}": part.contiguous() for index, part in enumerate(self._kept)}
        model = _model_fingerprint(self._decoder, self._likelihood)
        write_folder(Path(path), "bank", (kept, {"num_points": len(self.points), "model": model}))

    @classmethod
    def load(cls, path: str | Path, *, vae: VAE) -> "Bank":
        """Read the bank that `save` wrote, and let the model keep it.

        The points are not stored but made again. Weights and likelihood must equal those that the
        bank was made with, bit for bit, and some points are decoded again to compare.

        Raises:
            ModelFormatError: The folder holds no bank, a damaged one, or one of another model.
        """
        _check_takes_only_z(vae)
        vae = in_noise(vae)
        tensors, description = read_folder(Path(path), "bank")
        if description.get("model") != _model_fingerprint(vae.decoder, vae.flat_likelihood):
            raise ModelFormatError(f"expected the bank of this model in {path}, got one of another")
        points = prior_points(_num_points(vae), vae.latent_dim, _like(vae))
        names = sorted(tensors, key=lambda name: (len(name), name))  # kept.2 before kept.10
        kept = tuple(_by_element(tensors[name].to(vae.device)) for name in names)
        generator = Generator().manual_seed(int(fingerprint(tensors, {})[:15], 16))
        rows = torch.randperm(len(points), generator=generator)[:_NUM_CHECKED].to(vae.device)
        wanted = _decoded(vae, points[rows])
        if description.get("num_points") != len(points) or [
            (part.dtype, part.shape) for part in kept
        ] != [(part.dtype, (len(points), *part.shape[1:])) for part in wanted]:
            raise ModelFormatError(
                f"expected outputs decoded at each of {len(points)} points in {path}"
            )
        pairs = [(new, part[rows]) for new, part in zip(wanted, kept, strict=True)]
        eps = [torch.finfo(new.dtype).eps for new in wanted]
        if not all(same_output(*pair, _ROUNDING * e) for pair, e in zip(pairs, eps, strict=True)):
            raise ModelFormatError(
                f"expected the bank of this model in {path}, got numbers that it does not output"
            )
        bank = cls._made(vae, points, *kept)
        bank._is_of_model = True
        vae.kept["bank"] = bank
        return bank


def kept_outputs(vae: VAE, points: Tensor, clock: Clock = UNLIMITED) -> Tensor | None:
    """The decoder's complete output at the first points of the model's bank, (N, E, *param_shape).

    A bank keeps only what exact values need; for other evidence, the model keeps these outputs.
    The result is None if they are too large to keep.
    """
    if len(points) * vae.params_size * vae.dtype.itemsize > _MAX_OUTPUT_BYTES:
        return None
    kept = vae.kept.get("outputs of bank")
    if kept is None or len(kept) < len(points):
        slices = clock.slices(len(points), _chunk_size(vae, clock), "outputs of bank")
        kept = torch.cat([vae.decode_flat(points[some]) for some in slices])
        vae.kept["outputs of bank"] = kept
    return kept[: len(points)]


def prior_points(num: int, dim: int, like: Tensor, start: int = 0) -> Tensor:
    """The points of a bank from `start` on, (num, dim): the same at every call."""
    return quasi_normal(num, dim, generator=Generator().manual_seed(0), like=like, start=start)


def _check_takes_only_z(vae: VAE) -> None:
    check_continuous(vae, "a bank")
    if vae.examples is not None and vae.given is None:
        raise ValueError(
            "expected a model whose decoder takes only z, got one that takes covariates, which "
            "keeps a bank for each of its examples by itself"
        )


def _like(vae: VAE) -> Tensor:
    return torch.empty(0, dtype=vae.dtype, device=vae.device)


def _num_points(vae: VAE, max_bytes: int = _MAX_BYTES, num_banks: int | None = None) -> int:
    """The number of points that memory and the work of decoding allow.

    Args:
        vae: The model.
        max_bytes: Largest memory of all its banks.
        num_banks: Their number; None: one for each example of covariates, or one.
    """
    like = _like(vae)
    params_shape = vae.decode_flat(like.new_zeros(0, vae.latent_dim)).shape[1:]
    kept_of_one = vae.flat_likelihood.to_keep(like.new_zeros(1, *params_shape))
    row_bytes = max(2 * vae.data_size * like.element_size(), sum(t.nbytes for t in kept_of_one))
    row_bytes += vae.latent_dim * like.element_size()
    num_weights = sum(parameter.numel() for parameter in vae.decoder.parameters())
    at_once = max(vae.params_size, vae.cost.values // _LAYERS_AT_ONCE) * vae.dtype.itemsize
    values = vae.cost.values + num_weights / max(
        _CHUNK_BYTES // at_once, 1
    )  # weights are read once per chunk
    most = int(_MAX_OPERATIONS / max(vae.operations, _PER_VALUE * values))
    if num_banks is None:
        num_banks = 1 if vae.examples is None else number_of_rows(vae.examples)
    return max(min(MAX_POINTS, max_bytes // row_bytes // num_banks, most), _MIN_POINTS)


def _chunk_size(vae: VAE, clock: Clock = UNLIMITED) -> int:
    """Points that are decoded at once."""
    chunk = clock.piece_bytes(_CHUNK_BYTES)
    return max(chunk // (vae.row_values * vae.dtype.itemsize), 1)


def _decoded(vae: VAE, points: Tensor) -> tuple[Tensor, ...]:
    """What the likelihood keeps from the decoder's output at points."""
    return _together([_kept_of(vae, piece) for piece in points.split(_chunk_size(vae))])


def _by_element(kept: Tensor) -> Tensor:
    """The same numbers, with those of each element of a datum contiguous in memory.

    A few elements are then selected 30 times as fast: 39 of 784 take 0.3 ms instead of 10.
    """
    return kept.transpose(0, 1).contiguous().transpose(0, 1)


def _together(pieces: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _piece_of(vae: VAE, start: int, num: int) -> tuple[Tensor, ...]:
    """Some points of the model's bank, and what is kept for each."""
    points = prior_points(num, vae.latent_dim, _like(vae), start)
    return points, *_kept_of(vae, points)


@torch.no_grad()
def _kept_of(vae: VAE, piece: Tensor) -> tuple[Tensor, ...]:
    return vae.flat_likelihood.to_keep(vae.decode_flat(piece))


def _few_of(
    vae: VAE, size: int, clock: Clock, stop: Callable[[], bool]
) -> tuple[Tensor, ...] | None:
    """`_piece_of` for as many points as time allows, or None if it allows a whole piece."""
    seconds, found = _SHARE * clock.left, []
    for some in clock.slices(size, size, "bank"):
        if found and stop():
            break
        start, num = time.perf_counter(), min(some.stop, size) - some.start
        found.append(_piece_of(vae, some.start, num))
        if (time.perf_counter() - start) / num * size <= seconds:
            return None
    return _together(found)


def _model_fingerprint(decoder: nn.Module, likelihood: Likelihood) -> str:
    """SHA-256 of the decoder's named weights and buffers and of the likelihood."""
    weights = dict(decoder.named_parameters()) | dict(decoder.named_buffers())
    settings, description = likelihood.to_parts()
    return fingerprint(prefixed(weights, "decoder") | prefixed(settings, "likelihood"), description)

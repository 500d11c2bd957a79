"""Answers: what a posterior says, as JSON, one object for each query."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from crosscoding.random import generator_from
from crosscoding.result.frames import means_of
from crosscoding.result.lazy_verdicts import Verdict
from crosscoding.result.posterior import Posterior
from crosscoding.serve.jobs import Watch
from crosscoding.serve.json_arrays import encoded, number
from crosscoding.serve.modes import groups, with_different_data
from crosscoding.serve.questions import FOR_MODES, LEVEL, Question
from crosscoding.serve.table_answers import columns_of, rows_of

_SHOWN = 48  # draws of a group over which its picture is averaged
_DRAWN = ("draws", "completions", "interval")  # whose first dimension is not that of queries
_IN_JSON = {
    "auto": "no max_seconds and no max_decodes",
    "hmc": "methods.HMC() in Python",
    "smc": "methods.TemperedSMC() in Python",
    "large_smc": "methods.TemperedSMC(num_particles=10_000) in Python",
    "mixture": "a richer cross-coder in Python, such as crosscoders.Mixture(8)",
    "seed": "another seed",
}
"""What `result.advice` suggests, in words for users of the API."""


def answers_of(
    posterior: Posterior, questions: Sequence[Question], watch: Watch | None = None
) -> list[list[dict[str, Any]]]:
    """The answers to questions that were asked in one batch, a list for each question.

    Args:
        posterior: The posterior of the batch of all their queries, in order.
        questions: The questions, which all ask for the same outputs.
        watch: Ends the work when nobody waits for it any more. Once its time is up, no modes are
            sought for queries after the first.
    Raises:
        AbandonedError: Nobody waits any more.
    """
    first = questions[0]
    found = _Answers(posterior, first, watch)
    ends = torch.tensor([question.num_queries for question in questions]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [
        found.of(question, start, end)
        for question, start, end in zip(questions, starts, ends, strict=True)
    ]


class _Answers:
    """All outputs for a batch, computed once for all of its queries."""

    def __init__(self, posterior: Posterior, asked: Question, watch: Watch | None) -> None:
        wanted, self._seed = asked.wanted, asked.seed
        self._posterior, self._asked, self._watch = posterior, asked, watch
        table = asked.served.vae.table
        makers: dict[str, Callable[[], Any]] = {
            "mean": lambda: posterior.mean() if table is None else means_of(posterior, table),
            "std": posterior.std,
            "interval": lambda: torch.stack(posterior.interval(LEVEL, seed=asked.seed)),
            "probabilities": posterior.probabilities,
            "completions": lambda: posterior.predict_mean(wanted.draws, seed=asked.seed),
        }
        self._parts: dict[str, Tensor] = {}
        for name in wanted.outputs:
            if name in makers:
                self._check_wanted()
                self._parts[name] = makers[name]()
        if table is not None and "probabilities" not in self._parts and self._parts:
            self._parts["probabilities"] = posterior.probabilities()
        if wanted.draws:
            self._check_wanted()
            self._parts["draws"] = posterior.predict(wanted.draws, seed=asked.seed)

    def _check_wanted(self) -> None:
        if self._watch is not None:
            self._watch.check_wanted()

    def of(self, question: Question, start: int, end: int) -> list[dict[str, Any]]:
        """The answers to a question, whose queries are those from `start` to `end`."""
        parts = {
            name: part[:, start:end] if name in _DRAWN else part[start:end]
            for name, part in self._parts.items()
        }
        figures = [self._figures(query) for query in range(start, end)]
        if question.served.vae.table is None:
            own = [self._arrays(parts, query) for query in range(end - start)]
        else:
            own = columns_of(question, parts)
            if "draws" in parts:
                drawn = rows_of(question, parts["draws"])
                own = [{**o, "draws": rows} for o, rows in zip(own, drawn, strict=True)]
        if "modes" in question.wanted.outputs:
            own = [{**o, "modes": self._modes(start + i)} for i, o in enumerate(own)]
        return [f | o for f, o in zip(figures, own, strict=True)]

    def _figures(self, query: int) -> dict[str, Any]:
        posterior = self._posterior
        return {
            "verdict": verdict_json(posterior.verdicts[query].on(self._asked.method.purpose)),
            "log_evidence": number(float(posterior.log_evidence[query])),
            "log_evidence_error": number(float(posterior.log_evidence_error[query])),
            "ess": number(float(posterior.ess[query])),
        }

    def _arrays(self, parts: dict[str, Tensor], query: int) -> dict[str, Any]:
        """The arrays of one query, in the model's units."""
        encoding = self._asked.wanted.encoding
        found: dict[str, Any] = {}
        for name, part in parts.items():
            if name == "interval":
                ends = (encoded(end[query], encoding) for end in part)
                found[name] = {"level": LEVEL, **dict(zip(("low", "high"), ends, strict=True))}
            else:
                own = part[:, query] if name in _DRAWN else part[query]
                found[name] = encoded(own, encoding)
        return found

    def _modes(self, query: int) -> list[dict[str, Any]]:
        """Different ways to complete a datum, the likeliest first; [] if there is no time left."""
        if query > 0 and self._watch is not None and self._watch.stops():
            return []
        own, seed = self._posterior._of([query]), self._seed
        z = own.sample(FOR_MODES, seed=seed)[:, 0]
        means = own.predict_mean(FOR_MODES, seed=seed)[:, 0]
        label = groups(z.cpu(), generator=generator_from(seed))
        label = with_different_data(label, means.cpu())
        found = []
        for group in range(int(label.max()) + 1):
            members = label == group
            mean = means[members.to(means.device)][:_SHOWN].mean(0)
            found.append(
                {
                    "share": float(members.double().mean()),
                    "mean": encoded(mean, self._asked.wanted.encoding),
                }
            )
        return found


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict, with its reasons and advice in words."""
    return {
        "label": verdict.label,
        "purposes": verdict.purposes,
        "reasons": list(verdict.reasons),
        "advice": verdict.advice_in(_IN_JSON),
    }

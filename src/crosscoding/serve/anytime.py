"""First answers: the same question with small budgets, so that something is shown at once."""

from dataclasses import replace

from crosscoding.methods import Auto
from crosscoding.serve.questions import Question

# Seconds and stored draws of the answers before the last. The first answer about a digit then
# arrives after 0.2 seconds; about a face, whose decoder takes 10^8 multiply-adds, after 1.3.
_CHEAP = ((0.15, 100),)
_EXPENSIVE = ((1.0, 16), (5.0, 64))


def stages(question: Question) -> list[Question]:
    """The question with growing budgets; the last budget is its own."""
    own, budgets = question.method, _EXPENSIVE if question.served.is_expensive else _CHEAP
    found = []
    for seconds, draws in budgets:
        if own.max_seconds is None or seconds < own.max_seconds:
            method = Auto(seconds, own.max_decodes, min(draws, own.num_draws))
            outputs = tuple(name for name in question.wanted.outputs if name != "modes")
            wanted = replace(question.wanted, outputs=outputs)
            found.append(replace(question, method=method, wanted=wanted))
    return [*found, question]

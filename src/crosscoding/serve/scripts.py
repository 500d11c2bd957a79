"""The Python script that asks the same question as a request."""

import base64
import io
from textwrap import dedent

import numpy as np
import torch

from crosscoding.evidence import Evidence
from crosscoding.methods import Auto
from crosscoding.serve.questions import Question
from crosscoding.uncertain_values import UncertainValues

_LINE = 92  # characters of base64 in a line


def script_of(question: Question, *, here: bool) -> str:
    """A complete script that asks the question with the same settings, and prints the answer.

    Its evidence is the request's, bit for bit, so that the same seed gives the same draws.

    Args:
        question: The question.
        here: Whether all clients are on the server's machine, and so may know its folders.
    """
    served = question.served
    elsewhere = served.source_elsewhere or served.source
    arrays, lines = _evidence(question.evidence)
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, **arrays)
    text = base64.b64encode(packed.getvalue()).decode("ascii")
    content = "\n".join(f'    "{text[i : i + _LINE]}"' for i in range(0, len(text), _LINE))
    head = dedent(
        '''\
        """Asks the same question as the page of crosscoding serve."""

        import base64
        import io

        import numpy as np
        import crosscoding as cc

        vae = {source}
        known = np.load(io.BytesIO(base64.b64decode(
        {content}
        )))  # NaN: not observed
        '''
    ).format(source=served.source if here else elsewhere, content=content)
    return head + "\n".join([*lines, *_asking(question)]) + "\n"


def _evidence(evidence: Evidence) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of the evidence, and the lines of code that make evidence from them."""
    values = torch.where(evidence.has_value, evidence.values, torch.nan)
    known = evidence.uncertain or UncertainValues.nothing(evidence.values)
    arrays = {"values": values.cpu().numpy()}
    more = ""
    if bool((known.noise > 0).any()):
        arrays["noise"] = known.noise.cpu().numpy()
        more += ', noise=known["noise"]'
    if isinstance(evidence.given, torch.Tensor):
        arrays["given"] = evidence.given.cpu().numpy()
    lines = [f'evidence = cc.Evidence.from_nan(known["values"]{more})']
    if bool(known.is_bounded.any()):
        arrays |= {"low": known.low.cpu().numpy(), "high": known.high.cpu().numpy()}
        lines.append('evidence &= cc.Evidence.interval(known["low"], known["high"])')
    if known.allowed is not None:
        arrays["allowed"] = known.allowed.cpu().numpy()
        lines.append('evidence &= cc.Evidence.one_of(known["allowed"])')
    if "given" in arrays:
        lines.append('evidence = evidence.with_given(known["given"])')
    return arrays, lines


def _asking(question: Question) -> list[str]:
    method = question.method
    settings = {
        name: value for name, value in vars(method).items() if value != getattr(Auto(), name)
    }
    words = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    lines = [
        f"posterior = cc.condition(vae, evidence, cc.methods.Auto({words}), seed={question.seed})",
        "",
        "for verdict in posterior.verdicts:",
        '    print(verdict.label, *verdict.reasons, sep="; ")',
        "print(posterior.log_evidence, posterior.log_evidence_error)  # nats",
        "mean, std = posterior.mean(), posterior.std()",
    ]
    num = question.wanted.draws or 8
    lines.append(f"draws = posterior.predict({num}, seed={question.seed})  # complete data")
    if question.served.vae.table is not None:
        lines.append(
            f'print(posterior.frame("mean"), posterior.frame("draw", seed={question.seed}))'
        )
    return lines

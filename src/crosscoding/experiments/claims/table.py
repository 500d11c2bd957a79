"""`claims`: generates docs/reproduction.md, the paper's claims against what was measured.

Everything on the page comes from the JSON files of the other experiments.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

from crosscoding.experiments.claims import CLAIMS, families
from crosscoding.experiments.claims.rules import AGREE, DIFFER, OPEN
from crosscoding.experiments.experiment import Context, Experiment, Result
from crosscoding.experiments.recorded_runs import Record, finished

_PAGE = "reproduction.md"
_MISSING = "not measured"
_LABELS = (AGREE, DIFFER, OPEN, _MISSING)
_HEAD = """# The paper's claims, and what we measured

`crosscoding reproduce claims` generates this page from the figures' JSON files; do not edit it.
Every verdict follows from a rule, listed at the end. Means come with their standard error and the
number n of repeats (evidence sets, seeds, digits or draws). A claim is "not decidable" if the mean
is within two standard errors of the threshold. `crosscoding reproduce --list` says what each figure
shows. "quick" marks runs with `--quick`; settings in brackets were given with `--set`.

The experiments differ from the paper's in a few points, besides the implementation. HMC runs with
many chains, the default here, and with one chain at an acceptance rate of 0.75, as in the paper.
Methods start near weighted draws from the prior. The mixture of Figure 9 is our own, as the paper
does not state its mixture. "Auto" is `methods.Auto`, the cascade; "NG" fits GVI's family by natural
gradients. "paper-celeba-100d" is the paper's own decoder, with a scale of 0.1. Claims that name
authors are those of the papers on families of VAEs.
"""


@dataclass(frozen=True)
class Settings:
    """This experiment has no settings."""


def measure(settings: Settings, context: Context) -> Result:
    """Judge every claim by the records in the folder; list the cost of each figure."""
    records = _records(context)
    claims = []
    for claim in CLAIMS:
        shared = {"claim": claim.text, "experiment": claim.experiment, "rule": claim.rule}
        record = records.get(claim.experiment)
        found = {} if record is None else claim.judge(record["numbers"])
        for subject, judged in found.items():
            row = {"subject": subject, "label": judged.label, "measured": judged.measured}
            claims.append(shared | row | {"reason": judged.reason, "run": _run_as(record)})
        if not found:
            row = {"subject": "", "label": _MISSING, "measured": "—", "run": ""}
            claims.append(shared | row | {"reason": "not run, or the model is missing"})
    took = {name: _cost(record) for name, record in records.items()}
    numbers = {"claims": claims, "figures": took}
    numbers["counts"] = dict(Counter(row["label"] for row in claims))
    if "families" in records:
        numbers["families"] = families.section(records["families"]["numbers"])
    return Result(numbers)


def _records(context: Context) -> dict[str, Record]:
    """The finished experiments in the folder, except the claims themselves."""
    names = sorted(path.stem for path in context.folder.glob("*.json"))
    found = {name: finished(name, context.folder) for name in names if name != "claims"}
    return {name: record for name, record in found.items() if record is not None}


def _run_as(record: Record | None) -> str:
    """How a run differs from the full one: "quick", and changed settings."""
    if record is None:
        return ""
    changed = [f"{name} = {value}" for name, value in record.get("changed", {}).items()]
    return ", ".join((["quick"] if record["quick"] else []) + changed)


def _cost(record: Record) -> dict[str, Any]:
    names = ("title", "seed", "seconds", "processor_seconds", "machine", "versions")
    return {name: record[name] for name in names} | {"run": _run_as(record)}


def subjects(context: Context) -> dict[str, str]:
    """Digests of the files that the claims are judged by."""
    return {
        name: hashlib.sha256((context.folder / f"{name}.json").read_bytes()).hexdigest()[:12]
        for name in _records(context)
    }


def pages(result: Result) -> dict[str, str]:
    """The table as Markdown."""
    claims, counts = result.numbers["claims"], result.numbers["counts"]
    summary = ", ".join(f"{counts.get(each, 0)} {each}" for each in _LABELS)
    titles = {name: took["title"] for name, took in result.numbers["figures"].items()}
    lines = [
        _HEAD,
        "## Summary",
        "",
        f"In all: {summary}.",
        "",
        *_summary_table(claims, titles),
        "",
    ]
    lines += ["## The claims, figure by figure", "", *_claims_tables(claims, titles)]
    lines += result.numbers.get("families", [])
    lines += [
        "## Running times",
        "",
        "Seconds are wall-clock time; processor seconds are those of this program alone. The load",
        "is the number of processes that wanted a core before the run, so a high load means that",
        "the machine was busy with other work.",
        "",
        *_cost_table(result.numbers["figures"]),
        "",
        "## The rules",
        "",
        *_rules(claims),
    ]
    return {_PAGE: "\n".join(lines) + "\n"}


def _by_figure(claims: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each figure, in the order of the claims."""
    figures: dict[str, list[dict[str, Any]]] = {}
    for row in claims:
        figures.setdefault(row["experiment"], []).append(row)
    return figures


def _summary_table(claims: list[dict[str, Any]], titles: dict[str, str]) -> list[str]:
    """How many claims of each figure got which verdict."""
    rows = [_row("figure", "shows", *_LABELS), "|" + " --- |" * (2 + len(_LABELS))]
    for name, own in _by_figure(claims).items():
        counts = Counter(row["label"] for row in own)
        numbers = (str(counts[label] or "") for label in _LABELS)
        rows.append(_row(f"[{name}](#{name})", titles.get(name, ""), *numbers))
    return rows


def _claims_tables(claims: list[dict[str, Any]], titles: dict[str, str]) -> list[str]:
    """A section with a table for each figure."""
    lines = []
    for name, own in _by_figure(claims).items():
        lines += [f"### {name}", "", *([f"{titles[name]}.", ""] if name in titles else [])]
        lines += ["| the paper says | figure | on | we measured | verdict | why |"]
        lines += ["|" + " --- |" * 6]
        for row in own:
            figure = f"{name} ({row['run']})" if row["run"] else name
            cells = (row["claim"], figure, row["subject"], row["measured"])
            lines.append(_row(*cells, f"**{row['label']}**", row["reason"]))
        lines.append("")
    return lines


def _cost_table(figures: dict[str, Any]) -> list[str]:
    rows = [
        "| figure | settings | seed | seconds | processor seconds | load | threads | device |",
        "|" + " --- |" * 8,
    ]
    for name, took in figures.items():
        if not took["seconds"]:
            continue  # drawn, not measured
        machine = took["machine"]
        settings = took["run"] or "full"
        seconds = f"{took['seconds']:.0f}", f"{took['processor_seconds']:.0f}"
        load = "—" if machine["load_before"] is None else str(machine["load_before"])
        device, threads = ", ".join(machine.get("devices", ["cpu"])), str(machine["threads"])
        rows.append(_row(name, settings, str(took["seed"]), *seconds, load, threads, device))
    return rows


def _rules(claims: list[dict[str, Any]]) -> list[str]:
    """Each rule with the claims it decides, in the order of the table."""
    by_rule: dict[str, list[str]] = {}
    for row in claims:
        decided = by_rule.setdefault(row["rule"], [])
        if row["claim"] not in decided:
            decided.append(row["claim"])
    return [f"- {'; '.join(decided)}: **{rule}**." for rule, decided in by_rule.items()]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


CLAIMS_TABLE = Experiment(
    name="claims",
    title="The paper's claims against what was measured: reproduction.md, from the JSON files",
    wanted="each claim with a number, its uncertainty, and a verdict by a stated rule",
    full=Settings(),
    quick=Settings(),
    measure=measure,
    draw=lambda result: {},
    subjects=subjects,
    pages=pages,
)

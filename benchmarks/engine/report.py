"""Generates docs/benchmarks.md and its pictures from benchmarks/results/engine.json."""

import math
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

Sections = dict[str, dict[str, Any]]

_OURS, _COLOURS = "#c1440e", ("#4c72b0", "#64a6bd", "#55a868", "#8172b3", "#8c8c8c", "#b0a160")
_LEAST_ERROR = 1e-5  # nats; smaller errors are drawn there
_LABELS = ("trusted", "approximate", "unreliable")
_SOURCES = {"mnist-2d": "o", "mnist-20d": "s", "blocks": "^", "mirrored": "D"}


def word(met: bool | None) -> str:
    return {True: "met", False: "**not met**", None: "–"}[met]


def render(results: dict[str, Any], folder: Path) -> None:
    """Write benchmarks.md and images/*.png to `folder`."""
    sections: Sections = results["sections"]
    (folder / "images").mkdir(parents=True, exist_ok=True)
    drawn = {"peers": _versus, "verdicts": _verdicts, "scale": _scale}
    pictures = {name: draw(sections, folder / "images") for name, draw in drawn.items()}
    parts = [
        _HEAD,
        _summary(sections),
        *(
            part
            for name, section in sections.items()
            for part in (_section(name, section["rows"]), pictures.get(name, ""))
        ),
        _peers(sections),
        _MISSED,
        _how(sections),
    ]
    (folder / "benchmarks.md").write_text("\n\n".join(part for part in parts if part) + "\n")


_HEAD = """# Benchmarks

This page compares the cascade, `cc.methods.Auto()`, with its targets. `make engine` measures all of
this again and writes `benchmarks/results/engine.json`, from which this page is generated. Errors
are relative to exact answers, or to references with a known standard error. A query on digits is an
MNIST test digit with 5, 15 or 25 % of its pixels observed at random, or one quadrant, in equal
parts; every query is about another digit. All times are for whole calls, in one process, on two
CPU cores ([machine](#machine))."""

_TITLES = {
    "mnist-2d": "Digits in 2 dimensions",
    "mnist-20d": "Digits in 20 dimensions",
    "celeba-100d": "Faces in 100 dimensions",
    "faces": "Answers about faces",
    "linear": "Linear-Gaussian models",
    "blocks": "Products of bimodal blocks",
    "price": "The price of an answer",
    "calibration": "Ranks of simulated truths",
    "verdicts": "Verdicts against the truth",
    "others": "Other decoders and likelihoods",
    "peers": "Against other libraries",
    "machinery": "A step of a fit",
    "scale": "More queries in one call",
}


_MISSED = """## Missed targets, and what was measured by hand

- **2 ms per query in 2-d.** A third of the 1,000 queries, those with the most observed pixels, have
  a p(z|x) too narrow for the bank. They are integrated on the grid, which takes 3 ms each,
  including the draws that check it. The bank itself takes 0.5 ms per query.
- **50 ms per query in 20-d.** 12,400 decodes take 0.07 to 0.1 s per query; 8,000 of them are draws,
  one in twelve of which counts. Better proposals than Gaussians would need fewer decodes.
- **The price of an answer** (rows "price"; "before" is the version before the cascade was
  redesigned, measured in the same run). These rows are of an AMD processor, and differ from one
  hour to the next: an earlier run took 1.7 ms for a table row (15 times as fast as before), 103
  ms for mnist-20d (2.1 times), and 0.125 ms for "wide" (9.8 times). On an Intel Xeon, a table row
  took 1.5 ms (14 times as fast), mnist-20d 69 ms (6.5 times), and mean() of 200,000 rows 10 s. A
  quarter of a table row's time is each for the bank, 16 climbs and 1,200 draws, and a sixth for
  the 5 % of the rows that need particles. Rows of closed forms take 0.05 ms in 2 dimensions, most
  of it for looks at the answers. mean() of 200,000 rows decodes 2e8 points. Grids counted only
  their last cells before, so 906 decodes on mnist-2d are no more than the 354 of other versions.
  A convolutional decoder takes 8,500 decodes, 6,000 of which are draws. On faces with 10 latent
  dimensions, one draw in twenty counts, as p(z|x) is bent. Rows "tvae" go through the stage
  `narrow` (decision 0012), of 1,000 to 7,500 draws of about 40 decodes each.
- **Answers about faces** were measured with one thread, beside other work: as many as half an hour
  allowed, not ten of each kind. On two quiet cores, the eyes of one face of anime-64d take 54 s (76
  with the version before), 45 of which are trajectories of 256 particles. Kinds whose chains go on,
  as draws are few, take 1.5 times as long; the paper's decoder takes twice as long. On processors
  with AMX, gradients take half of that. Real faces are unreliable with the paper's decoder, which
  does not fit them, and eyes with the zoo's celeba-100d, as climbs find further regions (decision
  0010).
- **Figure 5 with 10,000 steps of burn-in, and all rows on a GPU** were not measured, as no GPU was
  lent. Ten minutes a model would be 200,000 gradients a second; an H100 did 18,500 in the shorter
  run (docs/reproduction.md). 200,000 would take 86 TFLOP/s, above its float32 peak.
- **Linear-Gaussian, D = 2.** The bank answers; its own error is about 0.002 nats.
- **Products of blocks, D = 16 and 64.** The answers miss the tolerance but are not called trusted:
  4,000 particles are too few for 2^32 modes. One of ten answers in 64 dimensions is 19 nats off.
- **1,000, 100 and 5 times as fast as peers.** Peers with sensible settings are too fast for this.
  NumPyro's Gaussian guide, started at the prior's scale, with a compiled loop that decodes only
  observed pixels, estimates log p(x) by importance to within 0.1 nats after 10 ms per query in 2-d
  and 42 ms in 20-d, if somebody who knows the answer stops it then, and does not tell whether modes
  are missing. That is 0.16 to 0.43 times our time (0.2 to 0.8 times on an Intel Xeon, with earlier
  versions); 1,000 queries of ours in one call take a fifth of its time in 2-d, and 200 take 1.8
  times its time in 20-d. Whole runs of peers, stopped by nobody, take 1.0 to 3.5 times our time.
- **Other decoders and likelihoods.** Of products of ten blocks, in 20 dimensions, those of classes
  are trusted (15 of 16), and those of counts and Student's t are not: their errors reach a nat, as
  2^10 modes that are far apart are too many for a query's particles. Seconds are of one thread,
  beside other work. Of 792 further queries on 99 products of 2 to 5 blocks under 11 likelihoods
  (from a script that was run once), 588 were trusted, and none of those was wrong.
- **Versions.** "celeba-100d", "linear", "verdicts", "machinery" and "scale" were measured with
  earlier versions, "verdicts" with the oldest; "mnist-2d" and "blocks" with the last one, whose
  answers there are the same.
- **The share of right answers among trusted ones** is mostly that of 2-d, where all are right. In
  20 dimensions, only the trusted ones of 25 queries have a reference (a longer run of our own
  annealing), all with 5 % of their pixels observed. The errors in the row of mnist-20d are newer,
  and of all kinds of evidence.
- **Mirrored decoders with 16 dimensions** are left out, as a single reference takes minutes.
- **Answers that a review found trusted but wrong** are now right or no longer trusted, and have
  tests: thin ridges and ripples on the grid, funnels, tails heavier than the prior's, evidence far
  outside the model. One case remains: a mode inside a broader one, narrower by a factor r, is
  missed if r^latent is large ([how narrow](densities.md#how-far-to-trust-it))."""


# ---- tables --------------------------------------------------------------------------------------


def _summary(sections: Sections) -> str:
    """How many targets of each section are met."""
    lines = ["## Summary", "", "| section | targets met | missed |", "| --- | --- | --- |"]
    for name, section in sections.items():
        judged = [row for row in section["rows"] if row["met"] is not None]
        missed = [row["target"] for row in judged if not row["met"]]
        title = _title(name)
        cells = [
            f"[{title}](#{_anchor(title)})",
            f"{len(judged) - len(missed)} of {len(judged)}" if judged else "none set",
            "; ".join(target.removeprefix("price: ") for target in missed),
        ]
        lines.append(_row(cells))
    why = "[What was missed, and why](#missed-targets-and-what-was-measured-by-hand)."
    return "\n".join([*lines, "", why])


def _section(name: str, rows: list[dict[str, Any]]) -> str:
    """A table of a section's targets, and below it how each was measured."""
    lines = [f"## {_title(name)}", "", "| what | target | measured | met |"]
    lines.append("| --- | --- | --- | --- |")
    lines += [
        _row([row["target"], row["wanted"], row["measured"], word(row["met"])]) for row in rows
    ]
    notes: dict[str, list[str]] = {}
    for row in rows:
        notes.setdefault(row["how"], []).append(row["target"])
    lines += ["", "<details markdown><summary>How it was measured</summary>", ""]
    if len(notes) == 1:
        lines.append(f"{next(iter(notes))}.")
    else:
        lines += [f"- **{'; '.join(targets)}**: {how}." for how, targets in notes.items()]
    return "\n".join([*lines, "", "</details>"])


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _peers(sections: Sections) -> str:
    figures = sections.get("peers", {}).get("figures", {})
    if not figures:
        return ""
    lines = [
        "## Peers",
        "",
        "All use the same decoder and the same evidence (`make peers`; settings are in",
        "`benchmarks/results/peers.json`). Times are per query without compilation, medians over",
        "queries: until the first checkpoint at which an estimate of log p(x) is within 0.1 nats",
        "of the truth, which no user could know, and for the whole run. A dash means that at least",
        "half of the queries never come within 0.1 nats. Ratios are the peer's time over ours.",
        "",
        "| model | queries | peer | to 0.1 nats | whole run | its error | ours | our error | ratio "
        "| for whole runs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for pair in figures["pairs"]:
        asked = f"{pair['num']} in one call" if pair["form"] == "batch" else "alone"
        cells = [
            pair["model"],
            asked,
            f"{pair['peer']} {pair['version']}",
            _seconds(pair["seconds_to_0.1"]),
            _seconds(pair["seconds_total"]),
            _figure(pair["median_error"], " nats"),
            _seconds(pair["our_seconds"]),
            _figure(pair["our_median_error"], " nats"),
            _figure(pair["ratio_to_0.1"]),
            _figure(pair["ratio_total"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _how(sections: Sections) -> str:
    lines = [
        "## Machine",
        "",
        "| section | took | processor | threads | load at start | torch | python | digits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, section in sections.items():
        about = section["context"]
        cells = [
            name + (" (quick)" if section["quick"] else ""),
            f"{section['seconds']:.0f} s",
            f"{about['processor']}, {about['cores']} cores",
            str(about["threads"]),
            f"{about['load']:.1f}",
            about["torch"],
            about["python"],
            about["digits"],
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def _figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}{unit}" if abs(value) >= 100 else f"{value:.2g}{unit}"


# ---- pictures ------------------------------------------------------------------------------------


def _versus(sections: Sections, folder: Path) -> str:
    """Error against seconds, one point per query, for peers and ours."""
    figures = sections.get("peers", {}).get("figures", {})
    if not figures:
        return ""
    models = sorted(figures["ours"], reverse=True)
    figure, axes = _axes(len(models), (4.6 * len(models), 4.4))
    peers = list(dict.fromkeys(pair["peer"] for pair in figures["pairs"]))
    for axis, model in zip(axes, models, strict=True):
        for pair in figures["pairs"]:
            if pair["model"] == model:
                colour = _COLOURS[peers.index(pair["peer"]) % len(_COLOURS)]
                _points(axis, pair["points"], colour, pair["form"], pair["peer"])
        for form, own in figures["ours"][model].items():
            points = zip(own["seconds"], own["errors"], strict=True)
            _points(axis, list(points), _OURS, form, "crosscoding, Auto")
        axis.axhline(0.1, color="0.6", linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", title=model, xlabel="seconds a query")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set_ylabel("|error of log p(x)|, nats")
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False
    )
    return _picture(
        figure,
        folder,
        "error-against-seconds",
        "Error of log p(x) against seconds per query, crosscoding and its peers",
        "One point per query, at the end of its run. Rings are single queries, dots those of a "
        "batch. Lower left is better; the dotted line is at 0.1 nats.",
    )


def _points(axis: Axes, points: list, colour: str, form: str, name: str) -> None:
    points = [(s, max(e, _LEAST_ERROR)) for s, e in points if s is not None and e is not None]
    if not points:
        return
    filled = form == "batch"
    axis.scatter(
        *zip(*points, strict=True),
        s=26,
        facecolors=colour if filled else "none",
        edgecolors=colour,
        linewidths=1.2,
        alpha=0.85,
        label=name if filled else None,
        zorder=3 if colour == _OURS else 2,
    )


def _verdicts(sections: Sections, folder: Path) -> str:
    """Errors by verdict, one point per answer."""
    answers = sections.get("verdicts", {}).get("figures", {}).get("answers", [])
    if not answers:
        return ""
    figure, axes = _axes(2, (9.2, 4.0))
    kinds = {"error": (0.1, "|error of log p(x)|, nats"), "mass_error": (0.05, "error of a mass")}
    for axis, (key, (limit, name)) in zip(axes, kinds.items(), strict=True):
        for place, source in enumerate(_SOURCES):
            some = [a for a in answers if a["source"] == source and a[key] is not None]
            side = 0.2 * (place - 1.5)
            axis.scatter(
                [_LABELS.index(a["label"]) + side + 0.12 * _spread(i) for i, a in enumerate(some)],
                [max(a[key], _LEAST_ERROR) for a in some],
                s=10,
                marker=_SOURCES[source],
                color=(_OURS, *_COLOURS)[place],
                alpha=0.5,
                linewidths=0,
                label=source,
            )
        counts = [sum(a["label"] == label for a in answers) for label in _LABELS]
        ticks = [f"{label}\n({n:,})" for label, n in zip(_LABELS, counts, strict=True)]
        axis.set_xticks(range(len(_LABELS)), ticks)
        axis.set(yscale="log", ylabel=name, xlim=(-0.5, 2.5))
        axis.axhline(limit, color="0.6", linewidth=0.8, linestyle=":")
    axes[0].legend(frameon=False, fontsize="small")
    return _picture(
        figure,
        folder,
        "verdicts",
        "Errors of log p(x) and of masses by verdict",
        "One point per answer, by verdict. “Trusted” answers should lie below the dotted lines.",
    )


def _scale(sections: Sections, folder: Path) -> str:
    """Milliseconds per query against the size of the batch."""
    figures = sections.get("scale", {}).get("figures", {})
    if not figures:
        return ""
    figure, (axis,) = _axes(1, (5.2, 3.6))
    for colour, (model, calls) in zip((_OURS, *_COLOURS), figures.items(), strict=False):
        sizes = [call["num"] for call in calls]
        each = [1e3 * call["seconds"] / call["num"] for call in calls]
        axis.plot(sizes, each, marker="o", markersize=5, color=colour, label=model)
    axis.set(xscale="log", yscale="log", xlabel="queries in one call", ylabel="ms a query")
    axis.legend(frameon=False)
    return _picture(
        figure,
        folder,
        "batch-size",
        "Milliseconds per query against the number of queries in one call",
        "Time per query as more queries are asked in one call.",
    )


def _axes(num: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(1, num, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _picture(figure: Figure, folder: Path, name: str, alt: str, caption: str) -> str:
    with matplotlib.rc_context({"savefig.dpi": 130}):
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return f"![{alt}](images/{name}.png)\n\n{caption}"


def _spread(i: int) -> float:
    """Reproducible offsets in (−½, ½) that keep points apart."""
    return math.modf(i * 0.618034)[0] - 0.5

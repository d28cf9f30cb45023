"""Figures of a benchmark's lines, as png.

    python -m benchmarks.accuracy.figures LINES.jsonl [MORE.jsonl ...] --out FOLDER

``methods-ROLE.png`` has the form of the paper's Figure 4, one for each role of scenarios ("replicates" …): every method
on every scenario, with ARI beside JSD (on a logarithmic axis) and FIDE, as over-smoothing wins these two; a dashed line
is the expert.
``ablation.png`` has the form of its Figure 3: FIDE against JSD of the leaves for depths and batch sizes.
``parameters.png`` has NMI of the leaves over every parameter that was changed, with a grey band at the default. Bars
and points are means over seeds, whiskers standard deviations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .ablations import ablations, ordered
from .runs import read_lines
from .tables import about_domains, by_role, frame

LOWEST_JSD = 1e-4  # where its logarithmic axis begins
SCORES = ("ARI", "ARI between halves", "specificity", "FIDE", "JSD")


def main() -> None:
    """Draw all figures that the lines have runs for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    lines = list({line["id"]: line for path in options.lines for line in read_lines(path)}.values())
    scores = frame(filter(about_domains, lines))
    figures = {f"methods-{role.replace(' ', '-')}": methods(runs) for role, runs in by_role(scores).items()}
    changed = ablations(lines)
    if len(changed):
        figures |= {"ablation": trade_off(changed), "parameters": parameters(changed)}
    options.out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(options.out / f"{name}.png", dpi=100)
        print(options.out / f"{name}.png")


def methods(scores: pd.DataFrame) -> Figure:
    """Bars of every score and method, one column for each scenario."""
    runs = scores[scores["section"] == "mean"]
    names = [name for name in runs.groupby("name")["ARI"].mean().sort_values().index if name != "expert"]
    titles = [title for title in SCORES if runs[title].notna().any()]
    columns = list(runs.groupby("scenario", sort=False))
    size = (2.2 + 2.4 * len(columns), len(titles) * (0.8 + 0.22 * len(names)))
    figure, grid = plt.subplots(
        len(titles), len(columns), figsize=size, squeeze=False, sharey=True, sharex="row", layout="constrained"
    )
    for axes, (scenario, part) in zip(grid.T, columns, strict=True):
        shown = [title for title in titles if part[title].notna().any()]
        for ax, title in zip(axes, titles, strict=True):
            if title not in shown:
                ax.set_visible(False)
                continue
            if title == shown[0]:
                ax.set_title(scenario, fontsize=8)
            found = part.groupby("name")[title].agg(["mean", "std"]).reindex(names)
            colours = ["tab:red" if name.startswith("stage") else "tab:blue" for name in names]
            ax.barh(names, found["mean"], xerr=found["std"].fillna(0), color=colours, alpha=0.75)
            if (expert := part.loc[part["name"] == "expert", title].dropna()).size:
                ax.axvline(expert.mean(), color="black", linestyle="--", linewidth=1)
            ax.set_xlabel(title)
    for ax, title in zip(grid[:, 0], titles, strict=True):  # limits are shared, and fixed from here on
        if title == "JSD":
            ax.set_xscale("log")
            ax.set_xlim(LOWEST_JSD, max(2 * runs["JSD"].max(), 1))
        else:
            ax.set_xlim(left=0)
    return figure


def trade_off(changed: pd.DataFrame) -> Figure:
    """FIDE against JSD of the leaves: one panel for depths, one for batch sizes, of scenarios with several sections.

    Of the leaves, as neither changes a domain.
    """
    jsd_of, fide_of = "JSD of leaves", "FIDE of leaves"
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    for ax, parameter in zip(axes, ("depth", "batch_size"), strict=True):
        part = changed[(changed["parameter"] == parameter) & changed[jsd_of].notna()]
        for scenario, runs in part.groupby("scenario"):
            found = runs.groupby("value")[[jsd_of, fide_of]].agg(["mean", "std"]).fillna(0).sort_index()
            jsd, fide = found[jsd_of], found[fide_of]
            ax.errorbar(
                jsd["mean"], fide["mean"], xerr=jsd["std"], yerr=fide["std"], fmt="o-", alpha=0.7, label=scenario
            )
            for value, x, y in zip(found.index, jsd["mean"], fide["mean"], strict=True):
                ax.annotate(str(value), (x, y), textcoords="offset points", xytext=(5, 5))
            ax.legend()
        ax.set(title=parameter.replace("_", " "), xlabel="JSD of leaves (lower: more alike)", ylabel=fide_of)
    return figure


def parameters(changed: pd.DataFrame) -> Figure:
    """NMI of the leaves over the values of every parameter, one line for each scenario.

    Of the leaves, as most parameters change no domain.
    """
    names, scenarios = sorted(changed["parameter"].unique()), sorted(changed["scenario"].unique())
    style = {"fmt": "o-", "markersize": 4}
    n_columns = min(4, len(names))
    n_rows = -(-len(names) // n_columns)
    size = (3 * n_columns, 2.4 * n_rows)
    figure, grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for ax in grid.flat[len(names) :]:
        ax.axis("off")
    for ax, name in zip(grid.flat, names, strict=False):
        part = changed[changed["parameter"] == name]
        values = ordered(part["value"])
        for number, scenario in enumerate(scenarios):
            found = part[part["scenario"] == scenario].groupby("value")["NMI of leaves"]
            found = found.agg(["mean", "std"]).reindex(values)
            places = np.arange(len(values)) + 0.1 * number
            ax.errorbar(places, found["mean"], yerr=found["std"].fillna(0), **style, color=f"C{number}", label=scenario)
        for place in np.flatnonzero(pd.Index(values).isin(part.loc[part["default"], "value"])):
            ax.axvspan(place - 0.25, place + 0.25, color="0.9", zorder=0)
        ax.set_xlim(-0.5, len(values) - 0.5)
        long = sum(len(str(value)) for value in values) > 24
        ax.set_xticks(range(len(values)), [str(value) for value in values], rotation=20 if long else 0)
        ax.set_title(name, fontsize="medium")
    for ax in grid[:, 0]:
        ax.set_ylabel("NMI of leaves")
    grid.flat[0].legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()

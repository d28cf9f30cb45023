"""Tables of a benchmark's lines, in Markdown.

    python -m benchmarks.accuracy.tables LINES.jsonl [MORE.jsonl ...]

Scores are means over sections; mean and standard deviation over runs: seeds, and models of several seeds. The p-values
are those of Wilcoxon's signed-rank test (two-sided) over all pairs of a section and a seed. These are not independent,
as seeds share sections: p-values are smaller than new tissue would give.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import wilcoxon

from .ablations import COLUMNS, NICHES, OTHERS, ablations, ordered
from .execute import OF_ALL
from .runs import Line, read_lines
from .scenarios import read_scenarios

SCORES = ["ARI", "NMI", "FIDE", "PAS", "ASW", "patches"]
JOINT = {"JSD": "JSD", "ARI": "ARI, joint", "between": "ARI between halves", "specificity": "specificity"}
OURS = "stage fit"
CHANGES = {"config", *OTHERS}  # options of runs in which one choice was changed
PLATFORMS = ["imaging panel", "whole-transcriptome spots", "proteins"]
PAPER_ROLES = ("cross-platform", "replicates", "shared and specific")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--ours", default=OURS, help="the method that is tested against the others")
    options = parser.parse_args()
    lines = list({line["id"]: line for path in options.lines for line in read_lines(path)}.values())
    scores = frame(filter(about_domains, lines))
    for scenario, part in scores.groupby("scenario", sort=False):
        print(f"## {scenario} ({', '.join(part['roles'].iloc[0])})\n\n{markdown(summary(part))}\n")
    for title, table in study_tables(scores).items():
        print(f"## ARI, mean over studies: {title}\n\n{markdown(table)}\n")
    if len(refused := null_table(lines)):
        print(f"## Sections refused, as nothing varies in space\n\n{markdown(refused)}\n")
    print(f"## In the form of the paper's Table 1\n\n{markdown(paper_table(scores))}\n")
    if (tests := signed_ranks(scores, options.ours)) is not None:
        print(f"## {options.ours} against each method: Wilcoxon's signed-rank test\n\n{markdown(tests)}\n")
    if len(niches := niche_table(lines)):
        print(f"## Niches of the tree\n\n{markdown(niches)}\n")
    if len(changed := ablations(lines)):
        for scenario, part in changed.groupby("scenario", sort=False):
            print(f"## One choice changed: {scenario}\n\n{markdown(ablation_table(part))}\n")
    if failed := [line for line in lines if "scores" not in line]:
        print(f"## Not done\n\n{markdown(reasons(failed))}")


def about_domains(line: Line) -> bool:
    """Whether no single choice was changed, and domains are not those of another run: settling moves none."""
    options = line["options"]
    return not CHANGES & set(options) and (options.get("settle", True) or "variant" in options)


def name_of(line: Line) -> str:
    """Method, mode, and every other option that was given, with the changes of the configuration.

    A checkpoint is named by its folder without the number at the end: models of several seeds are one method.
    """
    options = {**line["options"], **line["options"].get("config", {})}
    if "checkpoint" in options:
        options["checkpoint"] = re.sub(r"-\d+$", "", Path(options["checkpoint"]).parent.name)
    others = [f"{key}={value}" for key, value in options.items() if key not in ("mode", "config", "weights")]
    return " ".join([line["method"], *([options["mode"]] if "mode" in options else []), *others])


def frame(lines: Iterable[Line]) -> pd.DataFrame:
    """One row for each section of each run, and one for all sections ("mean") with the joint scores."""
    rows = []
    for line in lines:
        common = {
            "name": name_of(line),
            **{key: line[key] for key in ("scenario", "seed")},
            "roles": tuple(line["roles"]),
        }
        scores = line.get("scores", {})
        joint = {title: scores.get("joint", {}).get(key) for key, title in JOINT.items()}
        for section, values in scores.items():
            if section == "mean":
                rows.append({**common, "section": section, **values, **joint, "seconds": line.get("cpu_s")})
            elif section != "joint":
                rows.append({**common, "section": section, **values})
    columns = ["name", "scenario", "seed", "roles", "section", *SCORES, *JOINT.values(), "seconds"]
    return pd.DataFrame(rows, columns=columns).astype(dict.fromkeys([*SCORES, *JOINT.values(), "seconds"], float))


def by_role(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of the scenarios of every role."""
    roles = dict.fromkeys(role for roles in scores["roles"] for role in roles)
    return {role: scores[[role in roles for roles in scores["roles"]]] for role in roles}


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean (sd) over seeds, the best ARI first, columns without values left out."""
    runs = scores[scores["section"] == "mean"].dropna(axis="columns", how="all")
    figures = [name for name in [*SCORES, *JOINT.values(), "seconds"] if name in runs]
    groups = runs.groupby("name", sort=False)
    order = groups[figures[0]].mean().sort_values(ascending=False).index
    table = pd.DataFrame({name: groups[name].agg(spread) for name in figures}).loc[order]
    return table.assign(runs=groups.size()).rename_axis("method").reset_index()


def study_tables(scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """ARI by study, of sections labelled together where a study has replicates, and of every section by itself.

    Sections and seeds are averaged in a study; every study has one vote in the mean of its platform and of all. Where
    a method has not labelled all studies of a mean there is none.
    """
    studies = [one for one in read_scenarios().values() if one.study]
    platforms = {one.study: one.platform for one in sorted(studies, key=lambda one: PLATFORMS.index(one.platform))}
    means = scores[scores["section"] == "mean"].pivot_table(index="name", columns="scenario", values="ARI")
    tables = {}
    for title, kind in (("replicates jointly", "joint"), ("every section by itself", "one-by-one")):
        chosen = {
            one.study: one.name for one in sorted(studies, key=lambda one: one.kind == kind)
        }  # the last one stays
        table = pd.DataFrame({study: means.get(chosen[study], np.nan) for study in platforms}, index=means.index)
        groups = {f"**{name}**": [one for one in platforms if platforms[one] == name] for name in PLATFORMS}
        groups["**all**"] = list(platforms)
        table = table.assign(**{name: table[part].mean(axis=1, skipna=False) for name, part in groups.items()})
        table = table.dropna(how="all").sort_values("**all**", ascending=False)
        if len(table):
            tables[title] = (
                table.map(lambda one: "–" if np.isnan(one) else f"{one:.3f}").rename_axis("method").reset_index()
            )
    return tables


def null_table(lines: Iterable[Line]) -> pd.DataFrame:
    """Number of sections that a method refused, of those for which it says so: intact and shuffled ones."""
    rows = [
        {"sections": line["scenario"] if "null" in line["roles"] else "intact", "method": name_of(line), "said": said}
        for line in lines
        for said in line.get("refused", {}).values()
        if said is not None
    ]
    if not rows:
        return pd.DataFrame()
    said = pd.DataFrame(rows).groupby(["method", "sections"], sort=False)["said"]
    return said.agg(lambda one: f"{one.sum()} of {len(one)}").rename("refused").reset_index()


def paper_table(scores: pd.DataFrame) -> pd.DataFrame:
    """PAS and ASW as the paper prints them: mean (± sd) over sections and seeds, three roles below one another.

    The paper's ASW is a silhouette in [-1, 1]: twice ours less 1.
    """
    rows = []
    for role in PAPER_ROLES:
        part = by_role(scores).get(role)
        if part is None:
            continue
        rows.append({"Methods": f"**{role}**", "PAS": "", "ASW": ""})
        for name, values in part[part["section"] != "mean"].groupby("name", sort=False):
            asw = 2 * values["ASW"] - 1
            row = {
                title: f"{one.mean():.4f} (± {one.std():.4f})" for title, one in (("PAS", values["PAS"]), ("ASW", asw))
            }
            rows.append({"Methods": name, **row})
    return pd.DataFrame(rows, columns=["Methods", "PAS", "ASW"])


def signed_ranks(scores: pd.DataFrame, ours: str = OURS) -> pd.DataFrame | None:
    """Test `ours` against every method over the pairs of section and seed that both have; None if there are none."""
    sections = scores[(scores["section"] != "mean") & scores["ARI"].notna()]
    values = sections.pivot_table(index=["scenario", "section", "seed"], columns="name", values="ARI")
    if ours not in values:
        return None
    rows = []
    for name in values.columns.drop([ours, "expert"], errors="ignore"):
        pairs = values[[ours, name]].dropna()
        gain = pairs[ours] - pairs[name]
        if len(pairs) and gain.any():
            wins = f"{(gain > 0).sum()} of {len(pairs)}"
            p = wilcoxon(gain).pvalue
            rows.append({"method": name, "median gain in ARI": f"{gain.median():+.3f}", "wins": wins, "p": f"{p:.2g}"})
    return pd.DataFrame(rows) if rows else None


def niche_table(lines: Iterable[Line]) -> pd.DataFrame:
    """Scores of the levels of the tree, of methods that have one; mean (sd) over seeds."""
    rows = [
        {"scenario": line["scenario"], "method": name_of(line), "level": level, **scores}
        for line in lines
        if not CHANGES & set(line["options"])
        for level, scores in line.get("levels", {}).items()
    ]
    if not rows:
        return pd.DataFrame()
    names = ["number", *NICHES, *(title for title in OF_ALL.values() if title not in NICHES)]
    table = pd.DataFrame(rows).reindex(columns=["scenario", "method", "level", *names])
    table = table.astype(dict.fromkeys(names, float)).dropna(axis="columns", how="all")
    groups = table.groupby(["scenario", "method", "level"], sort=False)
    niches = pd.DataFrame({name: groups[name].agg(spread) for name in names if name in table})
    return niches.assign(runs=groups.size()).reset_index()


def ablation_table(changed: pd.DataFrame) -> pd.DataFrame:
    """Parameters, values and scores in the form of the paper's Table 3, defaults in bold; mean (sd) over seeds."""
    rows = []
    for parameter, part in changed.groupby("parameter"):
        for value in ordered(part["value"]):
            runs = part[part["value"] == value]
            title = f"**{value}**" if runs["default"].any() else value
            scores = {score: spread(runs[score]) for score in COLUMNS if runs[score].notna().any()}
            rows.append({"parameter": parameter, "value": title, **scores, "runs": len(runs)})
    return pd.DataFrame(rows)


def reasons(lines: list[Line]) -> pd.DataFrame:
    """Why runs have no scores."""
    rows = [
        (line["scenario"], name_of(line), line.get("error") or f"skipped: {line['skipped']}", line["seed"])
        for line in lines
    ]
    table = pd.DataFrame(rows, columns=["scenario", "method", "reason", "seed"])
    seeds = table.groupby(["scenario", "method", "reason"], sort=False)["seed"]
    return seeds.agg(lambda found: ", ".join(map(str, sorted(found)))).rename("seeds").reset_index()


def spread(values: pd.Series) -> str:
    """Mean, and sd where there are several values."""
    known = values.dropna()
    digits = 3 if known.abs().max() < 10 else 0
    if known.empty:
        return "–"
    deviation = f" ({np.std(known, ddof=1):.{digits}f})" if len(known) > 1 else ""
    return f"{known.mean():.{digits}f}{deviation}"


def markdown(table: pd.DataFrame) -> str:
    """Markdown table."""
    rows = [[str(value) for value in row] for row in [table.columns, ["---"] * len(table.columns), *table.to_numpy()]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()

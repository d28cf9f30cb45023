"""Make the gene table that `stage_sc` ships: Ensembl ids, symbols and the token of every human and mouse gene.

    python scripts/make_gene_table.py human_to_mouse.csv.gz mouse_to_human.csv.gz src/stage_sc/genes/genes.csv.gz

The two inputs are exports of Ensembl BioMart (https://www.ensembl.org/biomart, database "Ensembl Genes"):

* dataset "Human genes", page "Homologues": under "GENE" tick *Gene stable ID* and *Gene name*; under "ORTHOLOGUES",
  "Mouse Orthologues" tick *Mouse gene stable ID*, *Mouse gene name* and *Mouse homology type*; no filter; export as CSV
  (compressed or not).
* dataset "Mouse genes", the same with "Human Orthologues".

Further columns do no harm. The output is a gzipped CSV with the columns

* ``gene_id``: Ensembl id without version,
* ``symbol``: the official symbol,
* ``token``: empty where the token is the case-folded symbol, which is so for most genes.

Human and mouse one-to-one orthologues share a token, the case-folded human symbol. Where names and orthology disagree
(some 80 genes, among them copies such as Mycs, whose orthologue is said to be MYCN), genes of the same name share the
token. Genes without a symbol are left out. The same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import io

import pandas as pd


def read_export(path: str, other: str) -> tuple[pd.DataFrame, pd.Series]:
    """Read one export: the genes (id, symbol), and of one-to-one orthologues the other species' id, by id."""
    export = pd.read_csv(path, dtype=str, keep_default_na=False)
    needed = ["Gene stable ID", "Gene name", f"{other} gene stable ID", f"{other} homology type"]
    missing = [column for column in needed if column not in export]
    if missing:
        raise SystemExit(f"{path} lacks the column(s) {missing}; tick them in BioMart (see the head of this script).")
    genes = export[needed[:2]].drop_duplicates(needed[0]).set_axis(["gene_id", "symbol"], axis=1)
    pairs = export.loc[export[needed[3]] == "ortholog_one2one"].set_index(needed[0])[needed[2]]
    return genes.sort_values("gene_id", ignore_index=True), pairs


def make_table(human_path: str, mouse_path: str) -> pd.DataFrame:
    """Genes of both species with their tokens."""
    human, _ = read_export(human_path, "Mouse")
    mouse, to_human = read_export(mouse_path, "Human")
    partner = to_human.reindex(mouse["gene_id"]).to_numpy()
    human_symbol = human.set_index("gene_id")["symbol"].reindex(partner).fillna("").to_numpy()
    mouse["token"] = [ours.casefold() for ours in human_symbol]
    own = mouse["symbol"].str.casefold()
    named_alike = own.isin(human["symbol"].str.casefold())
    someone_elses = mouse["token"].isin(own) & (mouse["token"] != own)
    many = mouse["token"].duplicated(keep=False)  # partners of human genes with one name, such as Y_RNA
    mouse.loc[named_alike | someone_elses | many, "token"] = ""
    table = pd.concat([human.assign(token=""), mouse], ignore_index=True)
    table.loc[table["token"] == table["symbol"].str.casefold(), "token"] = ""
    return table[table["symbol"] != ""]


def main() -> None:
    """Read the arguments, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("human_to_mouse", help="BioMart export of human genes with mouse orthologues")
    parser.add_argument("mouse_to_human", help="BioMart export of mouse genes with human orthologues")
    parser.add_argument("out", help="file to write, .csv.gz")
    arguments = parser.parse_args()
    text = make_table(arguments.human_to_mouse, arguments.mouse_to_human).to_csv(index=False, lineterminator="\n")
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as file:
        file.write(text.encode())
    with open(arguments.out, "wb") as out:
        out.write(buffer.getvalue())


if __name__ == "__main__":
    main()

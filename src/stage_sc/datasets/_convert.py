"""Files of public repositories, as they are downloaded, to AnnData."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from anndata import AnnData
from scipy import sparse
from scipy.io import mmread
from tqdm.auto import tqdm

from stage_sc.datasets._rdata import read_r_matrix

PIXELS = 4.705882  # per µm, of the outlines of a Xenium slide
SPOT_PITCH = 200.0  # µm, of the first Spatial Transcriptomics arrays


def _adata(X: object, obs: pd.DataFrame, genes: pd.Index | list[str], coordinates: np.ndarray) -> AnnData:
    """Compose an object: counts as float32 in canonical CSR, names as strings."""
    counts = sparse.csr_matrix(X, dtype=np.float32)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    var = pd.DataFrame(index=pd.Index(genes, dtype=str))
    obs.index = obs.index.astype(str)
    obs.index.name = None
    return AnnData(counts, obs=obs, var=var, obsm={"spatial": coordinates})


def osmfish(loom: Path) -> AnnData:
    """Read the valid cells within a region; their areas in both units give 0.065 µm a pixel."""
    with h5py.File(loom) as file:
        cells = {key: file["col_attrs"][key][:] for key in ("CellID", "ClusterName", "Region", "Valid", "X", "Y")}
        pixel = np.sqrt(file["col_attrs/size_um2"][:] / file["col_attrs/size_pix"][:])
        genes = file["row_attrs/Gene"][:].astype(str)
        counts = file["matrix"][:].T
    region, cell_type = cells["Region"].astype(str), cells["ClusterName"].astype(str)
    kept = (cells["Valid"] == 1) & (region != "Excluded")
    xy = np.stack([cells["X"], cells["Y"]], axis=1)[kept]
    frame = pd.DataFrame(
        {"domain": region[kept], "cell_type": cell_type[kept]}, index=cells["CellID"].astype(str)[kept]
    )
    frame = frame.astype("category")
    frame["is_duplicate"] = pd.DataFrame(np.hstack([counts[kept], xy])).duplicated().to_numpy()
    return _adata(counts[kept], frame, genes, (xy * np.round(np.nanmedian(pixel), 3)).astype(np.float32))


def xenium_bundle(matrix: Path, cells: Path) -> AnnData:
    """Read ``cell_feature_matrix.tar.gz`` and ``cells.csv.gz`` of a Xenium output; sort genes by name."""
    with tarfile.open(matrix) as archive:
        members = {Path(member.name).name: member for member in archive.getmembers()}

        def text(name: str) -> IO[bytes]:
            return gzip.open(archive.extractfile(members[name]))  # type: ignore[arg-type, return-value]

        features = pd.read_csv(text("features.tsv.gz"), sep="\t", header=None, names=["id", "gene", "kind"])
        barcodes = pd.read_csv(text("barcodes.tsv.gz"), sep="\t", header=None, dtype=str)[0]
        counts = sparse.csr_matrix(mmread(text("matrix.mtx.gz"))).T.tocsr()
    features = features[features["kind"] == "Gene Expression"].sort_values("gene")
    table = pd.read_csv(cells, dtype={"cell_id": str}).set_index("cell_id").loc[barcodes]
    xy = table[["x_centroid", "y_centroid"]].to_numpy(np.float32)
    return _adata(counts[:, features.index.to_numpy()], table[[]], features["gene"].tolist(), xy)


def celldega(archive: Path) -> AnnData:
    """Read tables of counts by gene and of outlines by tile, of a Xenium slide; cells are at their centroids."""
    with zipfile.ZipFile(archive) as file:
        tiles = pa.concat_tables(
            [table.select(["GEOMETRY", "name"]) for table in _tables(file, "cell_segmentation")],
            promote_options="permissive",
        )
        names = pd.Index(tiles["name"].to_pandas())
        outlines = tiles["GEOMETRY"].combine_chunks()
        (clusters,) = (table.to_pandas() for table in _tables(file, "cell_clusters", "cluster"))
        columns = [table.to_pandas() for table in _tables(file, "cbg")]
    genes = [column.columns[0] for column in columns]
    counts = sparse.csc_matrix(
        (
            np.concatenate([column.iloc[:, 0] for column in columns]),
            np.concatenate([names.get_indexer(column.index) for column in columns]),
            np.cumsum([0, *map(len, columns)]),
        ),
        shape=(len(names), len(genes)),
    )
    labels = clusters["cluster"].astype("string").reindex(names).fillna("<NA>").to_numpy(str)
    numbers = sorted(set(labels), key=lambda label: (len(label), label))  # "<NA>" is the longest
    obs = pd.DataFrame({"graphclust": pd.Categorical(labels, numbers)}, index=names)
    return _adata(counts, obs, genes, (_centroids(outlines) / PIXELS).astype(np.float32))


def _tables(archive: zipfile.ZipFile, folder: str, stem: str = "*") -> Iterator[pa.Table]:
    """Parquet files of a folder, in the order of their names."""
    members = sorted(name for name in archive.namelist() if Path(name).match(f"{folder}/{stem}.parquet"))
    for name in tqdm(members, desc=folder, disable=len(members) < 2, leave=False):
        yield pq.read_table(io.BytesIO(archive.read(name)))


def _centroids(outlines: pa.Array) -> np.ndarray:
    """Centroids, (cells, 2), of the first ring of each cell, a list of points."""
    rings = outlines.flatten()  # of one ring a cell
    points = np.asarray(rings.flatten().flatten()).reshape(-1, 2)
    cell = np.repeat(np.arange(len(rings)), rings.value_lengths())
    polygons = shapely.polygons(shapely.linearrings(points, indices=cell))
    return shapely.get_coordinates(shapely.centroid(polygons))


def spots_of_r(counts: Path, layers: Path) -> AnnData:
    """Read an R matrix of genes and spots, and their layers."""
    return _spots(read_r_matrix(counts).T, layers)


def spots_of_csv(counts: Path, layers: Path) -> AnnData:
    """Read a table of spots and genes, and their layers; gene names become those of R (``make.names``)."""
    table = pd.read_csv(counts, index_col=0)
    table.columns = [re.sub(r"^(?=\d)", "X", re.sub(r"[^A-Za-z0-9._]", ".", gene)) for gene in table.columns]
    return _spots(table, layers)


def _spots(table: pd.DataFrame, layers: Path) -> AnnData:
    """Spots are named by their place on the array, in pitches: ``"16.92x9.015"``; layers, by the nearest ``"17_9"``."""
    place = table.index.to_series().str.split("x", expand=True).astype(float).to_numpy()
    flags = pd.read_csv(layers, sep="\t", index_col=0)
    layer = flags.idxmax().where(flags.sum() == 1)
    nearest = [f"{x:.0f}_{y:.0f}" for x, y in place.round()]
    obs = pd.DataFrame({"domain": pd.Categorical(layer.reindex(nearest))}, index=table.index)
    return _adata(table.to_numpy(), obs, table.columns, place * SPOT_PITCH)

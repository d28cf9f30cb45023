"""Small folders as the instruments write them, for the readers of spatialdata-io."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from scipy.spatial import cKDTree

PIXEL = 0.2737  # µm, of the images of Visium and Visium HD


def on_places(adata: ad.AnnData, xy: np.ndarray) -> ad.AnnData:
    """Expression of a section at other places (µm), stretched over it."""
    own = adata.obsm["spatial"]
    stretch = np.ptp(own, axis=0) / np.ptp(xy, axis=0)
    nearest = cKDTree(own).query((xy - xy.min(axis=0)) * stretch + own.min(axis=0))[1]
    made = adata[nearest].copy()
    made.obs_names = [f"spot{number}-1" for number in range(len(xy))]
    made.obs, made.obsm["spatial"] = made.obs[[]], xy.copy()
    return made


def write_10x(path: Path, adata: ad.AnnData, library: str = "sample") -> None:
    """Matrix of features by barcodes, as Cell Ranger 3 and later write it."""
    X = sp.csr_matrix(adata.X).astype(np.int32)
    n = adata.n_vars
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"], file.attrs["chemistry_description"] = np.array([library], "S"), "Spatial"
        group = file.create_group("matrix")
        group["barcodes"] = np.array(adata.obs_names, "S")
        group["data"], group["indices"], group["indptr"] = X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64)
        group["shape"] = np.array([n, adata.n_obs], np.int32)
        features = group.create_group("features")
        for name, values in {"id": adata.var_names, "name": adata.var_names}.items():
            features[name] = np.array(values, "S")
        features["feature_type"] = np.array(["Gene Expression"] * n, "S")
        features["genome"] = np.array(["mm10"] * n, "S")


def xenium(folder: Path, adata: ad.AnnData) -> None:
    """Xenium Onboard Analysis 3: cells with text ids, their centroids in µm, and a raster of labels in pixels."""
    n, pixel = adata.n_obs, 0.2125
    ids = np.c_[np.arange(1, n + 1), np.ones(n)].astype(np.uint32)
    hexadecimal = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    adata = adata.copy()
    adata.obs_names = [f"{number:08x}".translate(hexadecimal) + "-1" for number in ids[:, 0]]
    write_10x(folder / "cell_feature_matrix.h5", adata)
    xy = adata.obsm["spatial"]
    cells = {"cell_id": adata.obs_names, "x_centroid": xy[:, 0], "y_centroid": xy[:, 1]}
    area = np.full(n, 60.0)
    pd.DataFrame({**cells, "cell_area": area, "nucleus_area": area / 2}).to_parquet(folder / "cells.parquet")
    specs = {"analysis_sw_version": "xenium-3.0.0.15", "pixel_size": pixel, "run_name": "run", "region_name": "region"}
    (folder / "experiment.xenium").write_text(json.dumps(specs))
    columns = ["cell_centroid_x", "cell_centroid_y", "cell_area", "nucleus_centroid_x", "nucleus_centroid_y"]
    summary = np.c_[xy, area, xy, area / 2, np.zeros(n), np.ones(n)]
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w", zarr_format=2)
        group.create_array("cell_id", data=ids)
        array = group.create_array("cell_summary", data=summary)
        array.attrs["column_names"] = [*columns, "nucleus_area", "z_level", "nucleus_count"]
        row, column = (np.round(xy[:, axis] / pixel).astype(int) for axis in (1, 0))
        masks = np.zeros((row.max() + 3, column.max() + 3), np.uint32)
        for step in (-1, 0, 1):
            for other in (-1, 0, 1):
                masks[np.maximum(row + step, 0), np.maximum(column + other, 0)] = np.arange(1, n + 1)
        for number in "01":
            group.create_array(f"masks/{number}", data=masks)
            group.create_array(f"polygon_sets/{number}/cell_index", data=np.arange(n, dtype=np.uint32))


def visium(folder: Path, adata: ad.AnnData) -> None:
    """Space Ranger 2: spots in the pixels of an image."""
    (folder / "spatial").mkdir()
    write_10x(folder / "sample_filtered_feature_bc_matrix.h5", adata)
    pixels = adata.obsm["spatial"] / PIXEL
    positions = {"barcode": adata.obs_names, "in_tissue": 1, "array_row": 0, "array_col": 0}
    positions |= {"pxl_row_in_fullres": pixels[:, 1], "pxl_col_in_fullres": pixels[:, 0]}
    pd.DataFrame(positions).to_csv(folder / "spatial" / "tissue_positions.csv", index=False)
    factors = {"spot_diameter_fullres": 55 / PIXEL, "tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.03}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))


def visium_hd(folder: Path, adata: ad.AnnData, sizes: tuple[int, ...] = (8, 16)) -> dict[int, ad.AnnData]:
    """Space Ranger 3: square bins in the pixels of an image. Returns the bins in µm."""
    made = {}
    layout = json.dumps({"file_format": "1.0", "transform": {}})
    with h5py.File(folder / "sample_feature_slice.h5", "w") as file:
        file.attrs["metadata_json"] = json.dumps({"hd_layout_json": layout})
    for size in sizes:
        rows = np.stack(np.meshgrid(np.arange(20), np.arange(20)), axis=-1).reshape(-1, 2)
        bins = made[size] = on_places(adata, rows * float(size))
        place = folder / "binned_outputs" / f"square_{size:03}um"
        (place / "spatial").mkdir(parents=True)
        write_10x(place / "filtered_feature_bc_matrix.h5", bins)
        factors = {"spot_diameter_fullres": size / PIXEL, "bin_size_um": float(size), "microns_per_pixel": PIXEL}
        factors |= {"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.03}
        (place / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
        positions = {"barcode": bins.obs_names, "in_tissue": 1, "array_row": rows[:, 1], "array_col": rows[:, 0]}
        pixels = bins.obsm["spatial"] / PIXEL
        positions |= {"pxl_row_in_fullres": pixels[:, 1], "pxl_col_in_fullres": pixels[:, 0]}
        pd.DataFrame(positions).to_parquet(place / "spatial" / "tissue_positions.parquet")
    return made


def merscope(folder: Path, adata: ad.AnnData) -> None:
    """Vizgen: tables of counts and cells, centres in µm."""
    import geopandas as gpd
    from shapely import MultiPolygon, Point

    (folder / "images").mkdir()
    np.savetxt(folder / "images" / "micron_to_mosaic_pixel_transform.csv", [[9.26, 0, 50], [0, 9.26, 80], [0, 0, 1]])
    names = [str(10**15 + number) for number in range(adata.n_obs)]
    counts = pd.DataFrame(adata.X.toarray(), index=pd.Index(names, name="cell"), columns=adata.var_names)
    counts.assign(**{"Blank-1": 0.0}).to_csv(folder / "cell_by_gene.csv")
    xy = adata.obsm["spatial"]
    cells = pd.DataFrame({"fov": 0, "volume": 500.0, "center_x": xy[:, 0], "center_y": xy[:, 1]}, index=names)
    cells.rename_axis("EntityID").to_csv(folder / "cell_metadata.csv")
    outlines = [MultiPolygon([Point(*place).buffer(4, 4)]) for place in xy]
    table = {"EntityID": names, "ZIndex": 0, "Type": "cell", "Name": None}
    boundaries = gpd.GeoDataFrame(table, geometry=outlines)
    boundaries.rename_geometry("Geometry").to_parquet(folder / "cell_boundaries.parquet")


def cosmx(folder: Path, adata: ad.AnnData, pixel: float = 0.12028) -> None:
    """Nanostring: two fields of view side by side, each with places of its own, in pixels."""
    import tifffile

    xy = adata.obsm["spatial"] / pixel
    middle = np.median(xy[:, 0])
    fov = np.where(xy[:, 0] < middle, 1, 2)
    number = np.zeros(len(xy), int)
    for one in (1, 2):
        number[fov == one] = np.arange(1, (fov == one).sum() + 1)
    local = xy - np.c_[np.where(fov == 2, middle, 0.0), np.zeros(len(xy))]
    keys = {"fov": fov, "cell_ID": number}
    counts = pd.DataFrame(adata.X.toarray().astype(int), columns=adata.var_names)
    pd.concat([pd.DataFrame(keys), counts], axis=1).to_csv(folder / "s_exprMat_file.csv", index=False)
    places = {"CenterX_local_px": local[:, 0], "CenterY_local_px": local[:, 1]}
    places |= {"CenterX_global_px": xy[:, 0], "CenterY_global_px": xy[:, 1]}
    pd.DataFrame({**keys, "Area": 900, **places}).to_csv(folder / "s_metadata_file.csv", index=False)
    positions = {"fov": [1, 2], "x_global_px": [0.0, middle], "y_global_px": [0.0, 0.0]}
    pd.DataFrame(positions).to_csv(folder / "s_fov_positions_file.csv", index=False)
    for name, shape in (("CellComposite", (30, 40, 3)), ("CellLabels", (30, 40))):
        (folder / name).mkdir()
        for one in (1, 2):
            kind = np.uint8 if len(shape) == 3 else np.uint16
            tifffile.imwrite(folder / name / f"{name}_F{one:03}.tif", np.ones(shape, kind))


WRITERS: dict[str, Callable[[Path, ad.AnnData], object]] = {
    "xenium": xenium,
    "visium": visium,
    "visium_hd": visium_hd,
    "merscope": merscope,
    "cosmx": cosmx,
}
# Arguments of the readers: without images, transcripts and boundaries, which the folders lack.
READING: dict[str, dict[str, object]] = {
    "xenium": dict.fromkeys(
        (
            "transcripts",
            "morphology_mip",
            "morphology_focus",
            "cells_boundaries",
            "nucleus_boundaries",
            "aligned_images",
        ),
        False,
    ),
    "visium": {"dataset_id": "sample"},
    "visium_hd": {"dataset_id": "sample", "load_segmentations_only": False, "load_all_images": False},
    "merscope": {"transcripts": False, "mosaic_images": False},
    "cosmx": {"transcripts": False},
}

"""Real sections: addresses, digests and annotations."""

from __future__ import annotations

from stage_sc.datasets import _convert
from stage_sc.datasets._fetch import File, Section

_GITHUB = "https://raw.githubusercontent.com"
_10X = "https://cf.10xgenomics.com/samples/xenium/1.0.2/Xenium_V1_FF_Mouse_Brain_Coronal_Subset_CTX_HP"
_SPLOTCH = f"{_GITHUB}/tare/Splotch/5792958513c67742a7bbe60f80959bf8ddd23dc1/tutorials/olfactory_bulb_st/annotations"
_STAHL = "Stahl et al. 2016, Science 353, 78-82, doi:10.1126/science.aaf2403"

OSMFISH = Section(
    dataset="osmfish_cortex",
    sample="SScortex",
    files=(
        File(
            f"{_GITHUB}/vitessce/vitessce-data/002f5046fe5cad43fd6e842ab10f61bb97b0919e"
            "/fake-files/input/linnarsson/linnarsson.cells.loom",
            "linnarsson.cells.loom",
            "0b6c0de4cf02badc51fe3bc2a6861e4b03ef614bcacd984158c3164639887a7d",
        ),
    ),
    convert=_convert.osmfish,
    content="b577b6a24ef6fd49949a0f1d6886770a51924d70caa1ddfaba696b2a644622fe",
    uns={
        "condition": "normal",
        "counts": "raw",
        "dataset": "osmfish_cortex",
        "license": "MIT",
        "paper": "Codeluppi et al. 2018 Nat Methods",
        "platform": "osmFISH",
        "sample": "SScortex",
        "source_path": "fake-files/input/linnarsson/linnarsson.cells.loom",
        "source_repo": "vitessce/vitessce-data",
        "spatial_unit": "um",
        "species": "mouse",
        "stage_note": (
            "domain = author Region annotation; 0.065 um/px derived from size_um2/size_pix in the loom; valid, "
            "non-excluded cells only; 476 cells are exact duplicates (same counts and coordinates) of another cell in "
            "the source, flagged obs.is_duplicate; kept because the usual 4,839-cell benchmark has them too"
        ),
        "tissue": "brain (somatosensory cortex)",
        "licence": "MIT",
        "citation": "Codeluppi et al. 2018, Nature Methods 15, 932-935, doi:10.1038/s41592-018-0175-z",
    },
)

MOUSE_BRAIN = Section(
    dataset="xenium_mouse_brain_subset",
    sample="FF_coronal_CTX_HP",
    files=tuple(
        File(f"{_10X}/Xenium_V1_FF_Mouse_Brain_Coronal_Subset_CTX_HP_{name}", name, None)
        for name in ("cell_feature_matrix.tar.gz", "cells.csv.gz")
    ),
    convert=_convert.xenium_bundle,
    content="ebe8157cf511800fc5fdb3bfb53eb6712fc9a8594682377857a5cc74c5a9485e",
    uns={
        "condition": "normal",
        "counts": "raw",
        "dataset": "xenium_mouse_brain_subset",
        "license": "Artistic-2.0 (package); source data 10x CC BY 4.0 / NanoString public release",
        "paper": "10x Genomics Xenium V1 FF Mouse Brain Coronal Subset CTX HP",
        "platform": "Xenium",
        "sample": "FF_coronal_CTX_HP",
        "source_path": "inst/extdata/10xXenium_MouseBrain_Subset (git history)",
        "source_repo": "estellad/SpatialExperimentIO",
        "spatial_unit": "um",
        "species": "mouse",
        "tissue": "brain (cortex+hippocampus, coronal)",
        "licence": "CC BY 4.0",
        "citation": "10x Genomics, Fresh Frozen Mouse Brain for Xenium Explorer Demo (2023)",
    },
)

PANCREAS = Section(
    dataset="xenium_pancreas",
    sample="human_Pancreas_FFPE",
    files=(
        File(
            "https://github.com/broadinstitute/celldega_Xenium_human_Pancreas_FFPE/archive"
            "/966f7fe75a44acb83d50d86a12d10be6bbc25147.zip",
            "celldega_Xenium_human_Pancreas_FFPE.zip",
            None,
        ),
    ),
    convert=_convert.celldega,
    content="1020f60d67c94382c374ea798c6b8bf531de1862878908e04e64eb945c4aaba6",
    uns={
        "condition": "cancer (PDAC section)",
        "counts": "raw",
        "dataset": "xenium_pancreas",
        "license": "10x public dataset (CC BY 4.0); repo: Broad academic",
        "paper": "10x Genomics Xenium V1 human Pancreas FFPE",
        "platform": "Xenium",
        "sample": "human_Pancreas_FFPE",
        "source_path": "Landscape_Xenium_V1_human_Pancreas_FFPE_outs_webp/cbg + cell_segmentation tile centroids",
        "source_repo": "broadinstitute/celldega_Xenium_human_Pancreas_FFPE",
        "spatial_unit": "um",
        "species": "human",
        "stage_note": (
            "coordinates = centroids of cell boundary polygons in the repo (cell_metadata.parquet absent from the "
            "snapshot)"
        ),
        "tissue": "pancreas",
        "licence": "CC BY 4.0 (data of 10x Genomics); files of the repository: Broad academic licence",
        "citation": "10x Genomics, Xenium V1 human Pancreas FFPE (2024), as prepared for Celldega, Broad Institute",
    },
)

_BULB = {
    "condition": "normal",
    "counts": "raw",
    "dataset": "mob_st",
    "licence": "MIT",
    "note": "spots of 100 um at a pitch of 200 um",
    "platform": "Spatial Transcriptomics (1k array)",
    "spatial_unit": "um",
    "species": "mouse",
    "tissue": "brain (main olfactory bulb)",
    "citation": f"{_STAHL}; layers: Äijö et al. 2019, bioRxiv 757096 (Splotch, BSD-3)",
}

BULBS = {
    "Rep11": Section(
        dataset="mob_st",
        sample="Rep11",
        files=(
            File(
                f"{_GITHUB}/sales-lab/spatialDE/5e78c6a7fb76fb82ebaaad4276dc14fa71ed4c23/data/Rep11_MOB_0.rda",
                "Rep11_MOB_0.rda",
                "e11dc4f3d3b42ab0c7324939ae35ab279fa61ed4d48d5eb91e7401d2cc24d15e",
            ),
            File(
                f"{_SPLOTCH}/11_01.tsv", "11_01.tsv", "2db0ecaf0485002929ee1a4fae50bf77ba2e31162dabd8b5c257d8f63464bce2"
            ),
        ),
        convert=_convert.spots_of_r,
        content="3a0b6760ffd466d20e1f1a26090392e44d70455f5e2450c0fe08c71a2d608da6",
        uns={
            **_BULB,
            "sample": "Rep11",
            "source": "sales-lab/spatialDE data/Rep11_MOB_0.rda @ 5e78c6a7",
            "label_source": (
                "morphological layers of tare/Splotch tutorials/olfactory_bulb_st/annotations/11_01.tsv @ 9eb6d489 "
                "(BSD-3), Stahl et al. 2016 Science data"
            ),
        },
    ),
    "Rep12": Section(
        dataset="mob_st",
        sample="Rep12",
        files=(
            File(
                "https://media.githubusercontent.com/media/Teichlab/SpatialDE"
                "/77f9fa5910838f5ee4308b4334a2e6ce85d1748e/Analysis/MouseOB/data/Rep12_MOB_0.csv",
                "Rep12_MOB_0.csv",
                "f6f41966a2554be155a45c2797b3ecb473f299204aa9de3518c89a9b85b8902a",
            ),
            File(
                f"{_SPLOTCH}/12_01.tsv", "12_01.tsv", "8844df56992bf2a04102f3602372aef74a64f6d78463a54c1d14041a5717866f"
            ),
        ),
        convert=_convert.spots_of_csv,
        content=None,  # the digests of the files hold
        uns={
            **_BULB,
            "sample": "Rep12",
            "source": "Teichlab/SpatialDE Analysis/MouseOB/data/Rep12_MOB_0.csv @ 77f9fa59",
            "label_source": (
                "morphological layers of tare/Splotch tutorials/olfactory_bulb_st/annotations/12_01.tsv @ 57929585 "
                "(BSD-3), Stahl et al. 2016 Science data"
            ),
        },
    ),
}

"""Labels of the real sections as digests: ``python tests/golden.py DATA OUT.json`` writes them, a test compares.

Niches are the same on every machine. Domains and trained models are the same on one machine.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import anndata as ad

import stage_sc as st

MICE = ("BZ5", "BZ9", "BZ14")


def digest(*objects: ad.AnnData) -> dict[str, str]:
    """Digest of the paths and, where there are any, of the domains of all cells, in the order of the cells."""
    found = {}
    for name in ("stage_path", "stage_domain"):
        if name in objects[0].obs:
            text = "\n".join(label for adata in objects for label in adata.obs[name].astype(str))
            found[name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def section(path: Path, n_domains: int = 7) -> ad.AnnData:
    """One section, labelled by itself with the defaults."""
    adata = ad.read_h5ad(path)
    st.pp.filter_cells(adata)
    st.pp.build_graph(adata)
    st.tl.stage_niches(adata, n_domains=n_domains)
    return adata


def several(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Three mice in one call, in files, and with models of their own."""
    paths = [folder / "dev" / "starmap_mpfc" / f"{name}.h5ad" for name in MICE]
    mice = {path.stem: ad.read_h5ad(path) for path in paths}
    for adata in mice.values():
        st.pp.build_graph(adata)
    st.tl.stage_niches(mice, n_domains=4)
    yield "three mice", digest(*mice.values())
    st.tl.stage_niches(mice, settle=False)
    yield "three mice, the tree of the checkpoint", digest(*mice.values())
    with TemporaryDirectory() as out:
        files = [ad.read_h5ad(path) for path in st.tl.label_files(paths, out, n_domains=4)]
    yield "three mice in files", digest(*files)
    for name, changes in (("from scratch", {"epochs": 2}), ("fine-tuned", {"epochs": 2, "init": "bundled"})):
        model = st.tl.fit(mice["BZ5"], progress=False, **changes)
        yield f"BZ5, {name}", digest(st.tl.stage_niches(mice["BZ5"], model=model, n_domains=4, copy=True))


def main(folder: Path, out: Path) -> None:
    """Label all sections below a folder, and write the digests."""
    found = {}
    for path in sorted(folder.rglob("*.h5ad")):
        found[path.relative_to(folder).with_suffix("").as_posix()] = digest(section(path))
        print(path.stem, flush=True)
    found |= dict(several(folder))
    out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""Draw _static/overview.png, two simulated sections and their tree of niches: ``python docs/make_picture.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

import stage_sc as st

OUT = Path(__file__).parent / "_static" / "overview.png"


def main() -> None:
    """Label two sections, one with a lesion, and draw both beside the tree."""
    adata = st.datasets.simulate_tissue(2500, n_slides=2, lesion="slide2", batch_effect=0.3, rotation=8)
    st.pp.build_graph(adata, library_key="slide")
    st.tl.stage_niches(adata, library_key="slide")

    fig = plt.figure(figsize=(17, 4.6))
    panels = [fig.add_axes((0.005 + 0.125 * i, 0.06, 0.12, 0.84)) for i in range(4)]
    for i, slide in enumerate(["slide1", "slide2"]):
        for j, level in enumerate(adata.uns["stage"]["levels"][:2]):
            st.pl.spatial_domains(
                adata,
                keys=level,
                libraries=[slide],
                legend_loc=None,
                title=f"{slide}, level {j + 1}",
                ax=panels[2 * i + j],
                show=False,
            )
    st.pl.niche_tree(adata, max_level=2, ax=fig.add_axes((0.56, 0.06, 0.38, 0.9)), show=False)
    fig.savefig(OUT, dpi=80)


if __name__ == "__main__":
    main()

"""Tables of the simulated cortex: layers, cell types and marker genes.

Proportions and thicknesses are round numbers in the range that imaging studies of mouse neocortex report.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

LAYERS = {  # from the pia inwards: thickness in µm, cell density relative to layer 4
    "L1": (130.0, 0.50),
    "L2/3": (260.0, 0.95),
    "L4": (170.0, 1.00),
    "L5": (270.0, 0.70),
    "L6": (260.0, 0.85),
    "WM": (160.0, 0.80),
}
NICHES = [*LAYERS, "lesion"]

# Percentage of each cell type by niche, in the order of NICHES.
_COMPOSITION = {
    "L2/3 IT": (4, 52, 18, 5, 0, 0, 3),
    "L4 IT": (0, 16, 48, 10, 1, 0, 3),
    "L5 IT": (0, 2, 9, 32, 6, 0, 2),
    "L5 ET": (0, 0, 2, 16, 3, 0, 1),
    "L6 IT": (0, 0, 0, 6, 16, 2, 1),
    "L6 CT": (0, 0, 0, 6, 44, 5, 1),
    "L6b": (0, 0, 0, 0, 5, 5, 0),
    "Lamp5": (14, 3, 2, 2, 2, 0, 1),
    "Vip": (5, 5, 3, 2, 1, 0, 1),
    "Sst": (1, 3, 4, 6, 4, 1, 1),
    "Pvalb": (0, 4, 6, 6, 4, 0, 1),
    "Astro": (36, 9, 7, 8, 8, 14, 6),
    "Reactive astro": (0, 0, 0, 0, 0, 0, 26),
    "Oligo": (3, 2, 3, 6, 7, 60, 5),
    "OPC": (7, 3, 2, 2, 3, 5, 4),
    "Micro": (8, 3, 3, 3, 3, 6, 6),
    "Activated micro": (0, 0, 0, 0, 0, 0, 28),
    "Endo": (9, 6, 4, 4, 3, 5, 7),
    "Peri": (3, 2, 1, 1, 1, 2, 2),
    "VLMC": (12, 0, 0, 0, 0, 1, 1),
}
CELL_TYPES = list(_COMPOSITION)

# Genes of each type, and of groups of types, as "symbol" or "symbol:level" (default 1).
_GROUPS = {
    "Neuron": CELL_TYPES[:11],
    "Exc": CELL_TYPES[:7],
    "Inh": CELL_TYPES[7:11],
    "Astroglia": ["Astro", "Reactive astro"],
    "Myeloid": ["Micro", "Activated micro"],
}
_MARKERS = {
    "Neuron": "Snap25 Syt1 Rbfox3 Vgf:0.5 Homer1:0.5 Arc:0.3 Fos:0.3 Egr1:0.5",
    "Exc": "Slc17a7 Neurod6 Neurod2 Satb2 Camk2a Nrn1 Tbr1:0.3",
    "L2/3 IT": "Cux2 Calb1 Rasgrf2 Otof Wfs1 Cux1 Pdzrn3 Adamts2 Lamp5:0.3 Penk:0.4 Cpne5:0.4",
    "L4 IT": "Rorb Rspo1 Scnn1a Cux2:0.5 Kcnh5 Plcxd2 Thsd7a:0.5 Cux1:0.6 Rasgrf2:0.2",
    "L5 IT": "Etv1 Deptor Hsd11b1 Rorb:0.3 Fezf2:0.3 Tcerg1l Cpne5:0.6 Parm1:0.6",
    "L5 ET": "Fezf2 Bcl11b Pou3f1 Vat1l Chrna6 Parm1 Crym:0.6 Etv1:0.3",
    "L6 IT": "Car3 Oprk1 Sulf1 Osr1 Cdh13:0.5 Thsd7a:0.4",
    "L6 CT": "Foxp2 Syt6 Rprm Tle4 Hs3st4 Tbr1 Crym Sema3e:0.6 Fezf2:0.4 Bcl11b:0.3 Sla",
    "L6b": "Ccn2 Cplx3 Nxph4 Moxd1 Nr4a2 Drd1:0.6 Foxp2:0.3 Tle4:0.4",
    "Inh": "Gad1 Gad2 Slc32a1 Dlx1 Erbb4:0.7",
    "Lamp5": "Lamp5 Ndnf Reln Id2 Npy Cxcl14 Kit Adarb2:0.6 Cplx3:0.3",
    "Vip": "Vip Calb2 Crh Cck Htr3a Adarb2 Prox1 Tac2",
    "Sst": "Sst Crhbp Chodl:0.3 Grin3a Cort Lhx6 Sox6:0.7 Reln:0.4 Npy:0.4 Calb1:0.4",
    "Pvalb": "Pvalb Tac1 Btbd11 Syt2 Kcnip2 Lhx6 Sox6:0.5",
    "Astroglia": "Aqp4 Gja1 Slc1a2 Slc1a3 Aldoc Mfge8 Acsbg1 Ntsr2 Fgfr3 Gjb6 Glul Apoe:0.6",
    "Astro": "Gfap:0.15 Serpina3n:0.1 Vim:0.05 Cd44:0.05 Lcn2:0.03",
    "Reactive astro": "Gfap:2 Vim Serpina3n Cd44 Lcn2 Ccn2:0.2",
    "Oligo": "Mbp Plp1 Mog Mobp Mag Cldn11 Opalin Ermn Cnp Anln Gjc3 Sox10:0.6",
    "OPC": "Pdgfra Cspg4 Gpr17 Olig1 Olig2 Vcan C1ql1 Sox10 Lhfpl3",
    "Myeloid": "Cx3cr1 Csf1r P2ry12:0.7 Tmem119:0.7 Hexb C1qa:0.5 Siglech Trem2:0.4 Laptm5 Ctss Aif1:0.5 Ikzf1",
    "Micro": "Cd68:0.15 Lyz2:0.1 Apoe:0.2 Spp1:0.05 Lpl:0.1 Cst7:0.03 Cd74:0.1",
    "Activated micro": "C1qa Cd68 Lyz2 Apoe Spp1 Cst7 Lpl Trem2 Aif1 Cd74",
    "Endo": "Cldn5 Flt1 Pecam1 Kdr Emcn Ly6a Adgrl4 Slco1a4 Itm2a Cd93",
    "Peri": "Vtn Kcnj8 Rgs5 Pdgfrb Acta2 Carmn",
    "VLMC": "Dcn Col1a1 Col1a2 Lum Igf2 Fmod Slc13a4 Spp1:0.4 Aldh1a2 Vim:0.5 Ptgds",
}

# Gradients of expression over depth (0 = pia, 1 = bottom of the white matter): peak and sd, in every cell type.
GRADIENTS = {
    "Cux2": (0.12, 0.14),
    "Calb1": (0.12, 0.08),
    "Otof": (0.14, 0.06),
    "Wfs1": (0.14, 0.08),
    "Rasgrf2": (0.28, 0.10),
    "Rorb": (0.37, 0.09),
    "Scnn1a": (0.42, 0.07),
    "Etv1": (0.60, 0.09),
    "Deptor": (0.52, 0.08),
    "Crym": (0.78, 0.15),
    "Foxp2": (0.74, 0.10),
    "Syt6": (0.80, 0.08),
    "Ccn2": (0.90, 0.06),
}


def _expression() -> pd.DataFrame:
    """Mean expression, (types, genes), in units of a typical marker."""
    entries = [
        (cell_type, *(token if ":" in token else f"{token}:1").split(":"))
        for group, tokens in _MARKERS.items()
        for cell_type in _GROUPS.get(group, [group])
        for token in tokens.split()
    ]
    table = pd.DataFrame(entries, columns=["cell_type", "gene", "level"]).astype({"level": float})
    genes = table["gene"].unique()
    return table.groupby(["cell_type", "gene"])["level"].sum().unstack(fill_value=0.0).loc[CELL_TYPES, genes]


EXPRESSION = _expression()
GENES = [str(gene) for gene in EXPRESSION.columns]
COMPOSITION = np.array(list(_COMPOSITION.values()), dtype=float).T  # (niches, types)
COMPOSITION /= COMPOSITION.sum(axis=1, keepdims=True)


class Panel(NamedTuple):
    """Genes of an imaging platform."""

    genes: list[str]
    depth: float  # mean count of a cell, over cell types, without spill and background
    platform: int  # seed of the probe efficiencies


PANELS = {
    "full": Panel(GENES, 330.0, 0),
    "A": Panel([gene for i, gene in enumerate(GENES) if i % 3 != 2], 230.0, 0),
    "B": Panel([gene for i, gene in enumerate(GENES) if i % 3 == 2 or i % 4 == 0], 65.0, 1),
}

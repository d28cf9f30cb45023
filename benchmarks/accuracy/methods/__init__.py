"""One file per method: what it needs, and a function `label`.

`label(sections, n_domains, seed, **options)` gets sections with raw counts in X and coordinates in obsm["spatial"], and
returns for each the labels of its cells; the same label on two sections claims the same domain. A function `refused`
may tell of a section after that if the method refused it: nothing varies there beyond chance. Dependencies stand in
the file's first lines (PEP 723), and the method runs in an environment made from them; without `dependencies` it runs
in the interpreter of the benchmark. A table [tool.benchmark] there may say

    panels = "any"     sections may have different genes; otherwise they come with their common genes alone
    without-dependencies = ["package==1.0"]   installed as it is, where its own pins are too old
    needs = "weights"  this option must be the path of something that is there; otherwise the run is skipped
"""

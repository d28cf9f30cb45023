"""Execute the tutorials and store their outputs: ``python scripts/run_tutorials.py [NOTEBOOK ...]``.

Needs the sections of `stage_sc.datasets` in the folder that ``STAGE_SC_DATA`` names, in the cache, or the network.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
SECONDS = 600


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in its folder; progress bars, warnings and times of cells are not kept."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=place).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def main() -> None:
    """Execute the notebooks that the command line names, or all."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(TUTORIALS.glob("*.ipynb")):
        print(path.name)
        nbformat.write(execute(path), path)


if __name__ == "__main__":
    main()

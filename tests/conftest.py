"""Data that several test files read."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """Folder of the real sections with expert labels; its tests are skipped where it is absent."""
    folder = Path(__file__).parents[1] / ".." / "shared" / "data" / "dev"
    if not folder.is_dir():
        pytest.skip(f"no real sections at {folder}")
    return folder

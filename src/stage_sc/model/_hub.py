"""Models on the Hugging Face hub, by an address that always names the same file."""

from __future__ import annotations

import re

from stage_sc.model._checkpoint import load_checkpoint
from stage_sc.nn import Stage

PREFIX = "hf://"
FORM = "hf://OWNER/REPO@COMMIT/FILE.safetensors, and optionally #DIGEST"
ADDRESS = re.compile(r"hf://(?P<repo>[^/@#]+/[^/@#]+)(@(?P<revision>[^/#]*))?/(?P<file>[^#]+)(#(?P<digest>.*))?")


def load_from_hub(address: str) -> Stage:
    """Download a checkpoint, unless it has been downloaded before, and read it.

    The commit is given by its 40 digits. ``#DIGEST``, where given, must be the digest of the model, which
    `stage_sc.tl.stage_niches` writes to ``uns["stage"]["model"]``.
    """
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{address!r} does not name a model. Expected is {FORM}.")
    repo, revision, file, digest = found.group("repo", "revision", "file", "digest")
    if not re.fullmatch("[0-9a-f]{40}", revision or ""):
        raise ValueError(
            f"{address!r} names the revision {revision or 'by default'}, which can come to mean another file. Name the "
            f"commit by its 40 digits, as listed on the page of {repo!r}: {FORM}."
        )
    if digest is not None and not re.fullmatch("[0-9a-f]{16}", digest):
        raise ValueError(f"{address!r} ends with the digest {digest!r}, but digests have 16 digits from 0 to f.")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        if not (isinstance(error, ModuleNotFoundError) and error.name == "huggingface_hub"):
            raise ImportError(
                f"huggingface_hub is installed but cannot be imported ({error}): install it anew."
            ) from error
        raise ImportError(
            "Models by the name `hf://…` need huggingface_hub: run `pip install huggingface_hub`, or download the file "
            "yourself and pass its path."
        ) from error
    model = load_checkpoint(hf_hub_download(repo_id=repo, filename=file, revision=revision))
    if digest is not None and model.digest != digest:
        raise ValueError(f"{address!r} holds another model: its digest is {model.digest}, not {digest}.")
    return model

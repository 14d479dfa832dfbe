"""Owns finding the split of a data set by its name."""

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest, Split


def find_split(manifest: Manifest, split: str) -> Split:
    """The split of that name. Raises UserError naming those there are."""
    if split not in manifest.splits:
        names = ", ".join(sorted(manifest.splits))
        raise UserError(f"{manifest.directory} has no split {split!r}; it has {names or 'none'}")
    return manifest.splits[split]

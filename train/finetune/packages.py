"""The packages that fine-tuning needs beside those of pretraining: asked for before anything is read or trained."""

from __future__ import annotations

from importlib.util import find_spec

from train.errors import UserError

_INSTALLED_AS = {"sklearn": "scikit-learn"}


def require(*modules: str) -> None:
    """Raises UserError with the command that installs what is missing."""
    if missing := [_INSTALLED_AS.get(name, name) for name in modules if find_spec(name) is None]:
        raise UserError(f"fine-tuning needs {', '.join(missing)}: pip install {' '.join(missing)}")

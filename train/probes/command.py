"""`python -m train probe MODEL`: the probes on a finished model, an export or any local encoder of transformers.

The texts go through transformers' own padded attention, so that every architecture works.

Legend: N texts, W width, B texts of a batch, L tokens of the longest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.durable import write_whole
from train.config import Probes, ProbeSet
from train.errors import UserError
from train.finetune import model_folder
from train.probes.open import OPENERS, open_probes
from train.probes.probe import POOLINGS, Found, Probe, Vectors, measured

KINDS = tuple(OPENERS)
_BATCH = 64


def probe_model(model: Path, settings: Probes, output: Path | None = None) -> list[str]:
    """A table of every probe's measures; with `output` also as JSON. Raises UserError and DataError for mistakes."""
    probes = open_probes(settings)
    found = _measure(model, probes, settings.max_length)
    if output is not None:
        content = {"model": model_folder.identity(model), "settings": settings.model_dump(mode="json")}
        content["probes"] = {each.probe.name: _as_json(each) for each in found}
        write_whole(output, (json.dumps(content, indent=2) + "\n").encode())
    return table(found)


def probe_settings(paths: Mapping[str, Sequence[str]], max_texts: int, max_length: int) -> Probes:
    """The data sets of a command line by kind, named by their files and folders.

    Raises UserError where there is none, or two have one name.
    """
    if not any(paths.values()):
        raise UserError(f"nothing to measure: give {' or '.join(f'--{kind}' for kind in KINDS)}")
    named: dict[str, str] = {}
    for path in chain.from_iterable(paths.values()):
        name = _name(Path(path))
        if name in named:
            raise UserError(f"{path}: named {name}, like {named[name]}; measure it in a command of its own")
        named[name] = path
    sets = {kind: tuple(ProbeSet(name=_name(Path(path)), path=path) for path in given) for kind, given in paths.items()}
    return Probes.model_validate({**sets, "max_texts": max_texts, "max_length": max_length})


def table(found: Sequence[Found]) -> list[str]:
    """A line for each probe, with what knowing nothing gives."""
    rows = [["probe", "measure", "[CLS]", "mean", "trivial", "of"]]
    for each in found:
        numbers = [f"{value:.4f}" for value in (*each.values.values(), each.probe.trivial)]
        rows.append([each.probe.name, each.probe.metric, *numbers, each.probe.words])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(cells).rstrip() for cells in padded]


def _name(path: Path) -> str:
    stem = path.name.split(".")[0] if path.is_file() else path.resolve().name
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in stem) or "data"


def _as_json(found: Found) -> dict[str, Any]:
    values = {name: value if np.isfinite(value) else None for name, value in found.values.items()}
    return {"metric": found.probe.metric, **values, "trivial": found.probe.trivial, "of": found.probe.words}


def _measure(folder: Path, probes: Sequence[Probe], max_length: int) -> list[Found]:
    from transformers import AutoModel

    config = model_folder.open_config(folder)
    length = min(max_length, model_folder.longest_input(config))
    tokenizer = model_folder.open_tokenizer(folder, config, length)
    model = model_folder.load_model(AutoModel, folder, config).eval()
    if config.is_encoder_decoder:
        model = model.get_encoder()  # type: ignore[operator]
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for probe in probes:
        vectors_N2W = embed(model, tokenizer, probe.texts, length)
        found.append(measured(probe, {name: vectors_N2W[:, i] for i, name in enumerate(POOLINGS)}))
    return found


@torch.no_grad()
def embed(model: Any, tokenizer: Any, texts: Sequence[str], max_length: int) -> Vectors:
    """The last state of the first token and the mean over all tokens of each text, fp32 [N, 2, W]."""
    parts: dict[int, Vectors] = {}
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
    for start in range(0, len(order), _BATCH):
        numbers = order[start : start + _BATCH]
        batch = [texts[number] for number in numbers]
        inputs = tokenizer(batch, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device)
        hidden_BLW = model(**inputs).last_hidden_state.float()
        real_BL1 = inputs["attention_mask"][:, :, None].float()
        mean_BW = (hidden_BLW * real_BL1).sum(1) / real_BL1.sum(1)
        vectors_B2W = torch.stack([hidden_BLW[:, 0], mean_BW], dim=1).cpu().numpy()
        parts |= dict(zip(numbers, vectors_B2W, strict=True))
    return np.stack([parts[number] for number in range(len(texts))])

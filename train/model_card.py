"""README.md and bertmae.json of an export: what the model is, from which data, how it was trained, how to open it.

README.md is a model card as the hub of transformers reads it (YAML front matter, then Markdown); bertmae.json holds the
same facts for tools, such as the results of a fine-tuning, which quote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from train.config import Config
from train.export_facts import IDENTITY, export_facts

CARD = "README.md"
_OBJECTIVES = {
    "mlm": "masked language modelling",
    "mae": "masked autoencoding (the encoder never sees the dropped tokens, a decoder predicts them)",
    "latent-mae": "latent-mask autoencoding (a decoder predicts the tokens where states of the encoder are lost)",
    "joint": "masked language modelling and masked autoencoding at once",
    "retromae": "RetroMAE (masked language modelling, and a decoder that leans on the state of [CLS])",
    "dupmae": "DupMAE (RetroMAE, and the document's set of tokens from the other states)",
    "span-corruption": "span corruption (a decoder writes the missing spans)",
}
_NO_MLM_HEAD = ("mae", "latent-mae", "span-corruption")


def untrained_head(config: Config) -> str | None:
    """A sentence where the objective leaves the masked-language-model head as it was at the start."""
    if config.objective.name not in _NO_MLM_HEAD:
        return None
    return (
        f"The objective {config.objective.name} does not train the masked-language-model head: fill-mask on this "
        "model means nothing."
    )


def write_card(folder: Path, run: Path, config: Config, state: Mapping[str, Any], averaged: Sequence[int] = ()) -> None:
    """Write both files into the `folder` of an export; raises OSError.

    `run` has the metrics, `state` is that of the checkpoint, the newest one where the weights are the mean of those of
    the steps `averaged`. `config` is that of the last start: what the checkpoint says of its own comes first.
    """
    with suppress(ValidationError):  # of an older version, or of one that said nothing
        config = Config.model_validate(state.get("config"))
    facts = export_facts(folder, run, config, state, averaged)
    (folder / IDENTITY).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(config, facts), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# The page


def _card(config: Config, facts: Mapping[str, Any]) -> str:
    parts = [_front_matter(config, facts), _head(config, facts), _opening(config), _training(config, facts)]
    parts += [_losses(facts), _probes(facts), _limits(facts)]
    return "\n".join(part for part in parts if part)


def _front_matter(config: Config, facts: Mapping[str, Any]) -> str:
    """The keys that the hub knows. A licence is the user's to choose: a comment says where."""
    meta: dict[str, Any] = {"library_name": "transformers"}
    if languages := facts["data"]["languages"]:
        meta["language"] = languages
    if untrained_head(config) is None:
        meta["pipeline_tag"] = "fill-mask"
    else:
        meta["pipeline_tag"] = "feature-extraction"
    meta["tags"] = ["bertmae", "pretraining", config.objective.name, config.model.encoder.model_type]
    text = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True)
    return f"---\n{text}# license: yours to choose, as in `license: apache-2.0`; mind the terms of the data\n---\n"


def _head(config: Config, facts: Mapping[str, Any]) -> str:
    encoder = config.model.encoder
    many = f"{encoder.num_hidden_layers} layers x {encoder.hidden_size}"
    mean = f", the mean of the checkpoints of the steps {_words(facts['averaged_steps'])}" if _mean(facts) else ""
    lines = [
        f"# {facts['run']}",
        "",
        f"A {encoder.model_type} encoder ({many}, at most {encoder.max_position_embeddings} tokens), pretrained with "
        f"bertmae by {_OBJECTIVES[config.objective.name]}: step {facts['step']:,}, {facts['tokens_seen']:,} tokens "
        f"seen{mean}. It is the beginning of a fine-tuning (classification, named entities, questions, retrieval); by "
        "itself it does none of these.",
        "",
    ]
    if sentence := untrained_head(config):
        lines += [f"> **Warning.** {sentence}", ""]
    return "\n".join(lines)


def _mean(facts: Mapping[str, Any]) -> bool:
    return "averaged_steps" in facts


def _opening(config: Config) -> str:
    kind = "AutoModelForMaskedLM" if untrained_head(config) is None else "AutoModel"
    lines = [
        "## Open it",
        "",
        "```python",
        f"from transformers import {kind}, AutoTokenizer",
        'tokenizer = AutoTokenizer.from_pretrained("this/folder")',
        f'model = {kind}.from_pretrained("this/folder")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _training(config: Config, facts: Mapping[str, Any]) -> str:
    batch, optimizer = config.batch, config.optimizer
    rows = [
        ("run, step", f"{facts['run']}, {facts['step']:,} of {config.run.steps:,}"),
        ("tokens seen", f"{facts['tokens_seen']:,}"),
        *[("data", _set(entry)) for entry in facts["data"]["sets"]],
        ("languages", ", ".join(facts["data"]["languages"])),
        ("objective", _objective(config)),
        ("rows", f"{config.data.sequence_length} tokens, {batch.global_batch_size:,} a step"),
        ("optimizer", f"{optimizer.name}, learning rate {optimizer.learning_rate:g}, {config.schedule.name} schedule"),
        ("precision", config.engine.precision),
        ("seed", str(config.run.seed)),
        ("code", str(facts["code"])),
        ("versions", ", ".join(f"{name} {number}" for name, number in facts["versions"].items())),
        ("weights", f"`{facts['weights']}` (model.safetensors)"),
    ]
    lines = [f"| {name} | {value} |" for name, value in rows if value]
    return "\n".join(["## How it was trained", "", "| | |", "|---|---|", *lines, ""])


def _set(entry: Mapping[str, Any]) -> str:
    weight = f", weight {entry['weight']:g}" if entry["weight"] != 1 else ""
    return f"`{entry['path']}`, identity `{entry['identity']}`{weight}"


def _objective(config: Config) -> str:
    """The objective with what is masked, as far as it masks that way."""
    objective, words = config.objective, [str(config.objective.name)]
    if objective.name not in ("mae", "latent-mae"):
        words.append(f"mask ratio {objective.mask_ratio:g} of {objective.mask_unit}s")
    if objective.name in ("mae", "latent-mae", "joint"):
        words.append(f"drop ratio {objective.drop_ratio:g} of {objective.drop_unit}s")
    return ", ".join(words)


def _losses(facts: Mapping[str, Any]) -> str:
    """Training and validation side by side, in nats a target."""
    training, validation = facts.get("training", {}), facts.get("validation", {})
    names = [name for name in training if name.endswith("loss")]
    names += [name for name in validation if name.endswith(("loss", "accuracy")) and name not in names]
    if not names:
        return ""
    over = f"mean of the last {training['steps']} steps" if training else "none recorded"
    at = f"held-out documents, step {validation['step']:,}" if validation else "no held-out documents"
    lines = [
        f"| {name.replace('_', ' ')} | {_number(training, name)} | {_number(validation, name)} |" for name in names
    ]
    head = ["## Losses", "", f"| nats a target | training ({over}) | validation ({at}) |", "|---|---|---|"]
    return "\n".join([*head, *lines, ""])


def _number(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return ""
    return f"{values[name]:.1%}" if name.endswith("accuracy") else f"{values[name]:.4f}"


def _probes(facts: Mapping[str, Any]) -> str:
    found = {name: value for name, value in facts.get("probe", {}).items() if name != "step"}
    if not found:
        return ""
    lines = [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in found.items()]
    return "\n".join(
        [f"## Probes of the frozen encoder at step {facts['probe']['step']:,}", "", "| | |", "|---|---|", *lines, ""]
    )


def _limits(facts: Mapping[str, Any]) -> str:
    lines = [
        "## Before you use it",
        "",
        "- Licence: yours to set (`license`, at the top of this file); the data have terms of their own.",
        "- The model has the biases of its documents; nothing was done against them.",
    ]
    if _mean(facts):
        lines.append("- The losses are those of the run at the last averaged step; the mean itself was not measured.")
    return "\n".join([*lines, ""])


def _words(steps: Iterable[int]) -> str:
    return ", ".join(f"{step:,}" for step in steps)

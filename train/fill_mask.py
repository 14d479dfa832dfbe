"""The best five tokens for every [MASK] of a text, from an exported model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from train.errors import UserError

_BEST = 5


def fill_mask(folder: Path, texts: Sequence[str]) -> Iterator[str]:
    """For each text and each of its masks one line: the tokens with their probabilities. UserError for a bad input."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json, so no exported model (python -m train export RUN --output {folder})"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for text in texts:
        if tokenizer.mask_token not in text:
            raise UserError(f"no {tokenizer.mask_token} in the text {text!r}: put it where a token is to be guessed")
    model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True).eval()
    for text in texts:
        yield text
        for place, guesses in enumerate(_guesses(model, tokenizer, text), 1):
            words = ", ".join(f"{token} {share:.1%}" for token, share in guesses)
            yield f"  {tokenizer.mask_token} {place}: {words}"


@torch.no_grad()
def _guesses(model: torch.nn.Module, tokenizer: object, text: str) -> list[list[tuple[str, float]]]:
    limit = model.config.max_position_embeddings  # type: ignore[union-attr]
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit)  # type: ignore[operator]
    places = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[:, 0]  # type: ignore[attr-defined]
    best = model(**inputs).logits[0, places].softmax(-1).topk(_BEST)
    words = [tokenizer.convert_ids_to_tokens(ids) for ids in best.indices.tolist()]  # type: ignore[attr-defined]
    return [list(zip(row, shares, strict=True)) for row, shares in zip(words, best.values.tolist(), strict=True)]

"""Says it where a model's vocabulary does not know the language of the text that it is fine-tuned on."""

from __future__ import annotations

from collections.abc import Iterator

from train.finetune.task import Feature, Task

_MANY = 0.05  # of the tokens; ordinary text in a language of the vocabulary has well below 0.01


def unknown_in_words(task: Task) -> list[str]:
    """A sentence where many tokens of the training rows are the unknown one, which tells the model nothing."""
    unknown, special = task.tokenizer.unk_token_id, set(task.tokenizer.all_special_ids)
    counted = found = 0
    for feature in task.train:
        for ids in _ids(feature):
            found += ids.count(unknown)
            counted += sum(token == unknown or token not in special for token in ids)
    if unknown is None or found <= _MANY * counted:
        return []
    return [
        f"{found / counted:.0%} of the training tokens are unknown to the vocabulary ({task.tokenizer.unk_token}): "
        "the model cannot tell them apart; take one whose pretraining text was in this language."
    ]


def _ids(feature: Feature) -> Iterator[list[int]]:
    """One list of token ids, or one of each text where a row has two that are read apart."""
    for name, value in feature.items():
        if name.endswith("input_ids"):
            yield list(value)

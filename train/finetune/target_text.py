"""Tokens of the target language back to text: what the saved tokenizer of a translation model decodes by itself.

WordPiece forgets where spaces were. Chinese has none between its characters, English has one before most words and
none before most marks; the rules are kept in tokenizer.json, so that transformers alone decodes the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = "target_tokenizer"  # in that of the model
_WIDE = r"\p{Han}\p{Hiragana}\p{Katakana}\x{3000}-\x{303F}\x{FF00}-\x{FFEF}“”‘’…—·"
# What is matched goes, or becomes the text beside it.
_RULES = (
    (rf"(?<=[{_WIDE}])\s+|\s+(?=[{_WIDE}])", ""),  # 我 爱 你 。
    (r" (?=[.,!?:;%)\]}])", ""),
    (r"(?<=[(\[{$£€#]) ", ""),
    (r"(?<=\w) (['’]) (?=\w)", "'"),  # don ' t
    (r"(?<=\w) - (?=\w)", "-"),
    (r"(?<=\d[.:]) (?=\d)", ""),  # 3. 5
    (r"(?<=\d,) (?=\d{3}(?!\d))", ""),  # 1, 000
)
_NAMES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")


def with_spacing(tokenizer: Any) -> Any:
    """The same tokenizer, whose `decode` puts spaces where people do; only a WordPiece needs it."""
    from tokenizers import Regex, Tokenizer, decoders
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if json.loads(backend.to_str())["model"]["type"] != "WordPiece":
        return tokenizer
    rules = [decoders.Replace(Regex(pattern), text) for pattern, text in _RULES]
    backend.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *rules])
    names = {f"{name}_token": getattr(tokenizer, f"{name}_token") for name in _NAMES}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=False,
        **{name: token for name, token in names.items() if token is not None},
    )


def text_of(tokenizer: Any, ids: Sequence[Sequence[int]]) -> list[str]:
    """Each row of ids as text, without special tokens."""
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def open_target(folder: Path) -> Any:
    """The saved tokenizer of a model's target side; that of its source where it has none of its own."""
    from transformers import AutoTokenizer

    own = folder / FOLDER
    return AutoTokenizer.from_pretrained(
        own if own.is_dir() else folder, local_files_only=True, trust_remote_code=False
    )

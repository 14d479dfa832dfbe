"""Tokenizers: training WordPiece the same way every time, and loading a tokenizer folder or a BERT vocab.txt."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_pipeline.durable import write_folder
from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import SPECIALS

SPECIAL_TOKENS = {name: f"[{name.upper()}]" for name in SPECIALS}
SMALLEST_VOCABULARY = 64
MODEL_MAX_LENGTH = 512
PREFIX = "##"
_TOKENIZER_JSON = "tokenizer.json"
_CONFIG_JSON = "tokenizer_config.json"
_VOCAB_TXT = "vocab.txt"
# A tokenizer often lies in a model's folder: its weights are not ours to copy.
_FILES = (_TOKENIZER_JSON, _CONFIG_JSON, _VOCAB_TXT, "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True, slots=True)
class TokenizerFolder:
    """A tokenizer as the files of its folder, and what the pipeline has to know of it."""

    files: dict[str, bytes]  # what transformers.AutoTokenizer needs, by name
    vocabulary: list[str]  # token of every id
    special_ids: dict[str, int]

    @property
    def tokenizer_json(self) -> str:
        """The text of tokenizer.json."""
        return self.files[_TOKENIZER_JSON].decode()

    @property
    def checksum(self) -> str:
        """xxh3_128 of tokenizer.json, hex."""
        return xxhash.xxh3_128_hexdigest(self.files[_TOKENIZER_JSON])


def load_tokenizer(path: Path) -> TokenizerFolder:
    """The tokenizer in a folder (tokenizer.json, else vocab.txt) or in a BERT vocab.txt itself.

    Raises UserError when there is none, or when it is no WordPiece with BERT's special tokens.
    """
    if not path.exists():
        raise UserError(
            f"{path}: no such tokenizer; --tokenizer takes a folder with {_TOKENIZER_JSON}, or a {_VOCAB_TXT}"
        )
    if path.is_dir() and (path / _TOKENIZER_JSON).is_file():
        files = {name: _read(path / name) for name in _FILES if (path / name).is_file()}
        return _folder(path, files)
    vocab = path / _VOCAB_TXT if path.is_dir() else path
    if not vocab.is_file() or vocab.suffix != ".txt":
        raise UserError(f"{path}: neither a folder with {_TOKENIZER_JSON} or {_VOCAB_TXT} nor a {_VOCAB_TXT}")
    tokens = _vocab_tokens(vocab)
    return _bert_folder(vocab, tokens, _is_lowercase(vocab.parent, tokens))


def check_free(path: Path) -> None:
    """UserError when `path` holds something already, which a new tokenizer would replace."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path}: exists already; give another --output, or remove it first")


def save_tokenizer(tokenizer: TokenizerFolder, path: Path) -> None:
    """Write the folder, whole or not at all; UserError when `path` is taken or the system refuses."""
    check_free(path)
    write_folder(path, tokenizer.files)


def open_tokenizer(tokenizer_json: str) -> Tokenizer:
    """A tokenizer that takes text as text: a literal "[MASK]" is no special token, nothing is cut or padded."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def vocabulary_of(tokenizer: Tokenizer) -> list[str]:
    """The token of every id, added tokens included; an id that no token has gets an empty text."""
    ids = tokenizer.get_vocab(with_added_tokens=True)
    vocabulary = [""] * (max(ids.values()) + 1)
    for token, number in ids.items():
        vocabulary[number] = token
    return vocabulary


def token_dtype(vocabulary_size: int) -> npt.DTypeLike:
    """The smallest type that holds every id."""
    return np.uint16 if vocabulary_size <= 1 << 16 else np.uint32


def train_wordpiece(
    texts: Callable[[], Iterable[str]], vocabulary_size: int, min_frequency: int, cased: bool
) -> TokenizerFolder:
    """Learn a WordPiece vocabulary of at most `vocabulary_size` tokens; the same texts give the same bytes.

    `texts` is called twice. A character or piece met less than `min_frequency` times is left out. Raises UserError for
    a vocabulary too small for an alphabet, DataError when there is no text to learn from.
    """
    if vocabulary_size < SMALLEST_VOCABULARY:
        raise UserError(f"--vocab-size {vocabulary_size}: too small, at least {SMALLEST_VOCABULARY}")
    blank = _blank_tokenizer({}, lowercase=not cased)
    alphabet = _alphabet(blank, texts(), vocabulary_size // 2, min_frequency)
    if not alphabet:
        raise DataError(f"no character occurs {min_frequency} times: too little text to train a tokenizer")
    characters = [token for token in alphabet if len(token) == 1]
    # The trainer numbers the pieces it meets in the order of a hash table, another one in each run, and breaks ties by
    # these numbers. Naming all of them beforehand, as if they were special tokens, leaves nothing to chance.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary_size,
        min_frequency=min_frequency,
        special_tokens=[*SPECIAL_TOKENS.values(), *alphabet],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        continuing_subword_prefix=PREFIX,
        show_progress=False,
    )
    blank.train_from_iterator(texts(), trainer)
    return _bert_folder(Path(_TOKENIZER_JSON), blank.get_vocab(with_added_tokens=False), lowercase=not cased)


def _alphabet(blank: Tokenizer, texts: Iterable[str], size: int, min_frequency: int) -> list[str]:
    """The most frequent characters, then their continuing forms ("##a"), `size` tokens at most."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(blank.normalizer.normalize_str(text))
    characters: list[str] = []
    continuing: list[str] = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if character.isspace():
            continue
        forms = [PREFIX + character] if _continues_word(blank, character) else []
        if count < min_frequency or len(characters) + len(continuing) + 1 + len(forms) > size:
            break
        characters.append(character)
        continuing += forms
    return sorted(characters) + sorted(continuing)


def _continues_word(blank: Tokenizer, character: str) -> bool:
    """Whether `character` can stand inside a word: punctuation and Chinese characters are words of their own."""
    return len(blank.pre_tokenizer.pre_tokenize_str(blank.normalizer.normalize_str("a" + character))) == 1


def _blank_tokenizer(vocabulary: dict[str, int], lowercase: bool) -> Tokenizer:
    """BERT's WordPiece: every Chinese character alone, accents stripped exactly when lowercasing."""
    model = models.WordPiece(
        vocabulary, unk_token=SPECIAL_TOKENS["unk"], continuing_subword_prefix=PREFIX, max_input_chars_per_word=100
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lowercase
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)
    return tokenizer


def _bert_folder(origin: Path, vocabulary: dict[str, int], lowercase: bool) -> TokenizerFolder:
    """The folder of a BERT tokenizer with this vocabulary."""
    _special_ids(origin, vocabulary)
    tokenizer = _blank_tokenizer(vocabulary, lowercase)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    cls, sep = SPECIAL_TOKENS["cls"], SPECIAL_TOKENS["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, vocabulary[cls]), (sep, vocabulary[sep])],
    )
    return _folder(origin, {_TOKENIZER_JSON: tokenizer.to_str(pretty=True).encode()})


def _folder(origin: Path, files: dict[str, bytes]) -> TokenizerFolder:
    """`files` with what is known of them; a missing tokenizer_config.json is made."""
    try:
        tokenizer = Tokenizer.from_str(files[_TOKENIZER_JSON].decode())
    except Exception as error:  # tokenizers raises nothing narrower
        raise UserError(f"{origin}: {_TOKENIZER_JSON} is no tokenizer: {error}") from error
    if not isinstance(tokenizer.model, models.WordPiece):
        raise UserError(f"{origin}: a {type(tokenizer.model).__name__} tokenizer; only WordPiece is supported")
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    special_ids = _special_ids(origin, vocabulary)
    config = {_CONFIG_JSON: _transformers_config(files[_TOKENIZER_JSON])}
    return TokenizerFolder(config | files, vocabulary_of(tokenizer), special_ids)


def _special_ids(origin: Path, vocabulary: dict[str, int]) -> dict[str, int]:
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]
    if missing:
        raise UserError(f"{origin}: the vocabulary has no {' '.join(missing)}; a BERT vocabulary is needed")
    return {name: vocabulary[token] for name, token in SPECIAL_TOKENS.items()}


def _transformers_config(tokenizer_json: bytes) -> bytes:
    """The tokenizer_config.json with which transformers.AutoTokenizer opens the folder as a fast tokenizer."""
    normalizer = json.loads(tokenizer_json)["normalizer"] or {}
    config: dict[str, Any] = {f"{name}_token": token for name, token in SPECIAL_TOKENS.items()}
    config |= {"model_max_length": MODEL_MAX_LENGTH, "tokenizer_class": "PreTrainedTokenizerFast"}
    if normalizer.get("type") == "BertNormalizer":
        config |= {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": normalizer["lowercase"],
            "strip_accents": normalizer["strip_accents"],
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
        }
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def _vocab_tokens(path: Path) -> dict[str, int]:
    """Token -> id from a BERT vocab.txt: one token a line, the line number is the id."""
    try:
        lines = _read(path).decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8, so no vocabulary") from error
    return {line.removesuffix("\r"): number for number, line in enumerate(lines)}


def _is_lowercase(folder: Path, vocabulary: Iterable[str]) -> bool:
    """What tokenizer_config.json beside the vocab.txt says, else: whether lowercasing changes no ordinary token."""
    config = folder / _CONFIG_JSON
    if config.is_file():
        try:
            return bool(json.loads(_read(config)).get("do_lower_case", True))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{config}: not a JSON object: {error}") from error
    ordinary = (token for token in vocabulary if not token.startswith(("[", "<")))
    return all(token == token.lower() for token in ordinary)

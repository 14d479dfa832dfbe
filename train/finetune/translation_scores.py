"""BLEU and chrF of translations, as sacreBLEU defines them (Post 2018; Papineni et al. 2002; Popović 2015)."""

from __future__ import annotations

from collections.abc import Sequence

from train.finetune.answer_scores import is_chinese, names_chinese


class Scorer:
    """The metrics of one target language, with what is right."""

    def __init__(self, references: Sequence[str], language: str, lowercased: bool) -> None:
        """`lowercased`: the vocabulary has no capitals, so that BLEU without them is told as well."""
        from sacrebleu.metrics import BLEU, CHRF

        self.tokenizer = "zh" if names_chinese(language) or is_chinese(references) else "13a"
        bleu, chrf = BLEU(tokenize=self.tokenizer), CHRF()
        self._metrics = {"bleu": bleu, "chrf": chrf}
        if lowercased and self.tokenizer != "zh":  # the few Latin letters of Chinese decide nothing
            self._metrics["bleu_lowercase"] = BLEU(tokenize=self.tokenizer, lowercase=True)
        self._references = [list(references)]

    def score(self, translations: Sequence[str]) -> dict[str, float]:
        """{"bleu", "chrf"} of the whole set, 0 to 100, and "bleu_lowercase" where it was asked for."""
        return {
            name: float(metric.corpus_score(list(translations), self._references).score)
            for name, metric in self._metrics.items()
        }

    def signatures(self) -> dict[str, str]:
        """sacreBLEU's own words for what was measured; `score` must have been called."""
        return {name: str(metric.get_signature()) for name, metric in self._metrics.items()}

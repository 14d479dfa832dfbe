"""Whether a run learns, judged by its validations: a loss that stays where frequencies alone lead, or that grows.

    plateau     the last 3 validations, all after the warm-up, have a head whose loss is above 0.97 x the entropy of the
                token frequencies: the model predicts frequencies only
    divergence  the last 3 validation losses are all above 1.1 x the lowest one before them

Each is said once a start; a start knows the validations of its own only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

NEAR_FREQUENCIES = 0.97
ABOVE_LOWEST = 1.1
IN_A_ROW = 3
_OF_TOKENS = ("mlm", "reconstruction")  # heads that predict tokens of their places


@dataclass(slots=True)
class Learning:
    """Looks at one validation after the other."""

    unigram_entropy: float  # nats
    warmup_steps: int
    _near: dict[str, int] = field(default_factory=dict)  # validations in a row, by head
    _lowest: float = float("inf")  # of all before those of `_above`
    _above: int = 0
    _said: set[str] = field(default_factory=set)

    def frequencies(self, record: Mapping[str, float]) -> dict[str, float]:
        """For a validation's heads that predict tokens, what their losses stand beside: frequencies alone, in nats."""
        heads = [head for head in _OF_TOKENS if f"validation_{head}_loss" in record]
        return {f"validation_{head}_frequencies_loss": round(self.unigram_entropy, 4) for head in heads}

    def judge(self, step: int, record: Mapping[str, float]) -> list[tuple[str, str]]:
        """(kind, sentence) of what this validation shows, under its names "validation_..."."""
        found = [*self._plateau(step, record), *self._divergence(record.get("validation_loss"))]
        new = [(kind, words) for kind, words in found if kind not in self._said]
        self._said |= {kind for kind, _ in new}
        return new

    def _plateau(self, step: int, record: Mapping[str, float]) -> list[tuple[str, str]]:
        for head in _OF_TOKENS:
            loss = record.get(f"validation_{head}_loss")
            is_near = loss is not None and step > self.warmup_steps and loss > NEAR_FREQUENCIES * self.unigram_entropy
            self._near[head] = self._near.get(head, 0) + 1 if is_near else 0
            if self._near[head] >= IN_A_ROW:
                words = (
                    f"{head}: the model predicts frequencies only: held-out loss {loss:.3f} in {IN_A_ROW} validations, "
                    f"frequencies alone give {self.unigram_entropy:.3f} nats (docs/monitoring.md)"
                )
                return [("plateau", words)]
        return []

    def _divergence(self, loss: float | None) -> list[tuple[str, str]]:
        if loss is None:
            return []
        if loss <= ABOVE_LOWEST * self._lowest:
            self._above, self._lowest = 0, min(self._lowest, loss)
        else:  # NaN, too
            self._above += 1
        if self._above < IN_A_ROW:
            return []
        words = f"held-out loss {loss:.3f} in the last of {IN_A_ROW} validations above {ABOVE_LOWEST} x the lowest, "
        return [("divergence", words + f"{self._lowest:.3f} (docs/monitoring.md)")]

"""Translation: BLEU and chrF by sacreBLEU (Post 2018), and Chinese punctuation in its own width."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.seq2seq_config import TranslationConfig
from trainer.tasks.examples import Outputs, Record
from trainer.tasks.seq2seq import Seq2Seq
from trainer.tasks.task import Prediction

_HAN = r"\u3400-\u9fff\U00020000-\U0003ffff"
_NARROW = re.compile(rf"(?<=[{_HAN}])[,:;?!()]+|\((?=[{_HAN}])")
_WIDE = str.maketrans(",:;?!()", "，：；？！（）")
_BLEU_TOKENIZERS = {"spaced": "13a", "chinese": "zh"}


def require_sacrebleu() -> Any:
    """`sacrebleu`; UserError naming the extra where it is not installed."""
    try:
        import sacrebleu
    except ImportError:
        raise UserError("scoring translations needs the package sacrebleu; pip install 'bertline[tasks]'") from None
    return sacrebleu


class Translation(Seq2Seq):
    """The task; scores are from 0 to 100."""

    metric = "bleu"
    metric_names: tuple[str, ...] = ("bleu", "chrf")

    def __init__(self, config: TranslationConfig, data: TaskDataConfig) -> None:
        super().__init__(config, data, term="translation")
        self._script = config.script

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`text`, and `score`, its log-probability over the length penalty."""
        found = super().prediction(record, outputs)
        return {**found, "text": widened(found["text"])} if self._script == "chinese" else found

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """BLEU and chrF over all records, with every reference there is."""
        sacrebleu = require_sacrebleu()
        texts = [prediction["text"] for prediction in predictions]
        # sacreBLEU takes the first references of all texts, then the second ones, None where a text has fewer.
        most = max(len(record.target) for record in records)
        references = [[dict(enumerate(record.target)).get(place) for record in records] for place in range(most)]
        tokenizer = _BLEU_TOKENIZERS[self._script]
        return {
            "bleu": float(sacrebleu.corpus_bleu(texts, references, tokenize=tokenizer).score),
            "chrf": float(sacrebleu.corpus_chrf(texts, references).score),
        }


def widened(text: str) -> str:
    """Chinese text with its punctuation in full width, which NFKC had made narrow: `早,好` becomes `早，好`."""
    return _NARROW.sub(lambda found: found[0].translate(_WIDE), text)

"""Sentence embeddings: texts that belong together get vectors that point the same way (Reimers and Gurevych 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.encoder_config import EncoderConfig
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import SentenceEmbeddingConfig
from trainer.tasks.choice import encode_texts
from trainer.tasks.classification_scores import number_metrics
from trainer.tasks.examples import Example, Outputs, Record
from trainer.tasks.framing import frame
from trainer.tasks.model import TaskHead, TaskModel, count_of, mean_rows
from trainer.tasks.rows import TrainingRows
from trainer.tasks.task import Prediction
from trainer.tasks.text_tokenizer import TextTokenizer

_CHUNK = 1024
_DEPTH = 10


class EmbeddingHead(TaskHead):
    """The mean of a text's token states, of length 1; it has no weights."""

    def __init__(self, *, group_size: int, temperature: float) -> None:
        super().__init__()
        self.group_size = group_size
        self.temperature = temperature

    def loss(self, hidden: Tensor, row_counts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy of each pair's second text among those of its group, by cosine over temperature; summed.

        Pairs lie group after group, first and second text in turn. `targets` are the numbers of the second texts: one
        that stands in its group twice is not held against itself (Henderson et al. 2017, section 4.4).
        """
        vectors = self.outputs(hidden, row_counts)["vectors"].view(-1, self.group_size, 2, hidden.shape[1])
        scores = vectors[:, :, 0] @ vectors[:, :, 1].transpose(1, 2) / self.temperature
        texts = targets.view(-1, self.group_size)
        own = torch.eye(self.group_size, dtype=torch.bool, device=hidden.device)
        same = (texts[:, :, None] == texts[:, None, :]) & ~own
        scores = scores.masked_fill(same, -math.inf)
        right = torch.arange(self.group_size, device=hidden.device).repeat(len(texts))
        return F.cross_entropy(scores.flatten(0, 1), right, reduction="sum"), count_of(len(targets), like=scores)

    def outputs(self, hidden: Tensor, row_counts: Tensor) -> dict[str, Tensor]:
        """`vectors` fp32 [texts, hidden]."""
        return {"vectors": F.normalize(mean_rows(hidden, row_counts).float(), dim=1)}


class SentenceEmbedding:
    """The task; it has no labels. To be predicted, every text is an example by itself."""

    term = "sentence_embedding"
    labels: tuple[str, ...] = ()
    lower_is_better: frozenset[str] = frozenset()

    def __init__(self, config: SentenceEmbeddingConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._data = data
        of_pairs = ("retrieval_accuracy", "mrr_at_10")
        self.metric_names: tuple[str, ...] = of_pairs if config.score is None else ("spearman", "pearson")
        self.metric = self.metric_names[0]

    def check(self, records: Sequence[Record]) -> None:
        """Nothing is left to check: the reader knows whether a pair has a score."""

    def create_model(self, config: EncoderConfig) -> TaskModel:
        """Encoder and head, weights still to be set."""
        head = EmbeddingHead(group_size=self._config.group_size, temperature=self._config.temperature)
        return TaskModel(config, head, term=self.term)

    def examples(self, records: Sequence[Record], tokenizer: TextTokenizer) -> list[Example]:
        """[CLS] text [SEP] for each text of each record, in their order."""
        ids = encode_texts(records, tokenizer)
        found = []
        for number, record in enumerate(records):
            for text in record.inputs:
                framed = frame([ids[text]], tokenizer=tokenizer, data=self._data, where=record.where)
                rows = np.arange(len(framed.input_ids), dtype=np.int64)
                found.append(Example(number, *framed[:2], rows, 1, targets=None, cut_tokens=framed.cut_tokens))
        return found

    def training_rows(self, records: Sequence[Record], tokenizer: TextTokenizer, *, seed: int) -> TrainingRows:
        """A row for each pair; a group's rows stay together, so that no layout changes what a pair is held against."""
        texts = self.examples(records, tokenizer)
        seconds = list(dict.fromkeys(record.inputs[1] for record in records))
        numbers = {text: number for number, text in enumerate(seconds)}
        return TrainingRows(
            [
                _joined(first, second, number=numbers[record.inputs[1]])
                for record, first, second in zip(records, texts[::2], texts[1::2], strict=True)
            ],
            drawn_by=f"groups of {self._config.group_size}",
            group_size=self._config.group_size,
        )

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`embedding`, of length 1; of a pair `embeddings`, and their cosine `similarity`."""
        vectors = np.asarray(outputs["vectors"], dtype=np.float64)
        values = [[round(value, 6) for value in vector] for vector in vectors.tolist()]
        if len(values) == 1:
            return {"embedding": values[0]}
        return {"similarity": float(vectors[0] @ vectors[1]), "embeddings": values}

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """Of scored pairs the correlation of cosine and score; else how well each first text finds its second one."""
        if self._config.score is not None:
            found = number_metrics(
                [record.target for record in records], [prediction["similarity"] for prediction in predictions]
            )
            return {name: found[name] for name in self.metric_names}
        vectors = np.array([prediction["embeddings"] for prediction in predictions], dtype=np.float32)
        ranks, losses = _retrieve([record.inputs[1] for record in records], vectors, self._config.temperature)
        return {
            "loss": float(losses.mean()),
            "retrieval_accuracy": float((ranks == 1).mean()),
            "mrr_at_10": float(np.where(ranks <= _DEPTH, 1.0 / ranks, 0.0).mean()),
        }


def _joined(first: Example, second: Example, *, number: int) -> Example:
    lengths = (len(first), len(second))
    return Example(
        first.record,
        np.concatenate([first.input_ids, second.input_ids]),
        np.concatenate([first.token_type_ids, second.token_type_ids]),
        rows=np.arange(sum(lengths), dtype=np.int64),
        predictions=1,
        targets=np.array([number], dtype=np.int64),
        cut_tokens=first.cut_tokens + second.cut_tokens,
        sequences=lengths,
        row_counts=lengths,
    )


def _retrieve(
    seconds: Sequence[str], vectors: npt.NDArray[np.float32], temperature: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each pair's second text among all different ones by cosine to the first: its rank from 1, and -log p.

    vectors: [pairs, 2, hidden]. Texts with equal cosines are counted as if the right one stood behind the others.
    """
    places: dict[str, int] = {}
    for pair, text in enumerate(seconds):
        places.setdefault(text, pair)
    different = vectors[list(places.values()), 1]
    numbers = {text: number for number, text in enumerate(places)}
    own = np.array([numbers[text] for text in seconds])
    ranks, losses = [], []
    for start in range(0, len(seconds), _CHUNK):
        scores = (vectors[start : start + _CHUNK, 0] @ different.T).astype(np.float64) / temperature
        right = np.take_along_axis(scores, own[start : start + _CHUNK, None], axis=1)
        ranks.append((scores >= right).sum(axis=1).astype(np.float64))
        losses.append(np.log(np.exp(scores - right).sum(axis=1)))
    return np.concatenate(ranks), np.concatenate(losses)

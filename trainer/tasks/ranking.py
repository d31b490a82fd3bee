"""Ranking: documents in the order in which they fit a query, learnt against documents of other queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_pipeline.hashing import derive_key
from trainer.errors import UserError
from trainer.finetune_config import TaskDataConfig
from trainer.matching_config import RankingConfig
from trainer.tasks.choice import ChoiceTask, encode_texts, mean_loss, probabilities
from trainer.tasks.examples import Example, Outputs, Record
from trainer.tasks.multiple_choice import texts_of_list
from trainer.tasks.rows import TrainingRows, draw_others
from trainer.tasks.tables import read_table
from trainer.tasks.task import Prediction
from trainer.tasks.text_tokenizer import TextTokenizer

_DEPTH = 10


class RankingReader:
    """Reads (query, document, document, ...) records; the target is 0, the first document being the right one."""

    def __init__(self, config: RankingConfig, data: TaskDataConfig) -> None:
        self._config = config
        self._columns = data.columns

    def read(self, path: Path, *, labelled: bool) -> list[Record]:
        """Every query with the documents to be ranked; UserError with file and line for a bad one.

        Labelled queries have their own document and candidates drawn from the file's others, the same in every run.
        """
        rows = read_table(path, columns=self._columns)
        if not labelled:
            return [
                Record(row.where, (row.text(self._config.query), *texts_of_list(row, self._config.documents, least=1)))
                for row in rows
            ]
        found = [(row.where, row.text(self._config.query), row.text(self._config.document)) for row in rows]
        documents = list(dict.fromkeys(document for _, _, document in found))
        if (candidates := self._config.candidates) > len(documents):
            raise UserError(
                f"{path}: {len(documents)} different documents, and task.candidates={candidates} needs as many; lower "
                "the latter"
            )
        numbers = {document: number for number, document in enumerate(documents)}
        records = []
        for place, (where, query, document) in enumerate(found):
            key = derive_key("ranking-candidates", place)
            others = draw_others(key, own=numbers[document], count=candidates - 1, total=len(documents))
            records.append(Record(where, (query, document, *(documents[other] for other in others)), 0))
        return records

    def from_line(self, line: str, *, where: str) -> Record:
        """An unlabelled record from a line: the query and its documents, with tabs between."""
        texts = tuple(part.strip() for part in line.split("\t"))
        if len(texts) < 2 or not all(texts):
            raise UserError(f"{where}: the line must be a query and one document or more, with tabs between")
        return Record(where, texts)


class Ranking(ChoiceTask):
    """The task; it has no labels."""

    metric = "mrr_at_10"

    def __init__(self, config: RankingConfig, data: TaskDataConfig) -> None:
        super().__init__(data, term="ranking", dropout=config.dropout)
        self._config = config
        self.metric_names = (self.metric, *(f"recall_at_{length}" for length in config.recall_at))

    def training_rows(self, records: Sequence[Record], tokenizer: TextTokenizer, *, seed: int) -> TrainingRows:
        """A row for each query, in which its document competes with others that (seed, epoch, row) decide."""
        documents = list(dict.fromkeys(record.inputs[1] for record in records))
        numbers = {document: number for number, document in enumerate(documents)}
        negatives = self._config.negatives
        if negatives >= len(documents):
            raise UserError(
                f"{self._data.train}: {len(documents)} different documents, of which task.negatives={negatives} others "
                "cannot be drawn; lower it"
            )
        ids = encode_texts(records, tokenizer)

        def group(number: int, others: Sequence[int]) -> Example:
            record = records[number]
            texts = [record.inputs[1], *(documents[other] for other in others)]
            return self.group(number, record, texts, right=0, ids=ids, tokenizer=tokenizer)

        def draw(number: int, epoch: int) -> Example:
            key = derive_key("ranking-negatives", seed, epoch, number)
            own = numbers[records[number].inputs[1]]
            return group(number, draw_others(key, own=own, count=negatives, total=len(documents)))

        alone = [group(number, ()) for number in range(len(records))]
        return TrainingRows(alone, draw=draw, drawn_by=f"{negatives} negatives")

    def prediction(self, record: Record, outputs: Outputs) -> Prediction:
        """`ranking`: each `document` with its number `candidate` and its probability `score`, the best first."""
        scores = probabilities(outputs)
        order = sorted(range(len(scores)), key=lambda candidate: (-scores[candidate], candidate))
        return {
            "ranking": [
                {"document": record.inputs[1 + candidate], "candidate": candidate, "score": scores[candidate]}
                for candidate in order
            ]
        }

    def metrics(self, records: Sequence[Record], predictions: Sequence[Prediction]) -> Mapping[str, float]:
        """The mean of 1 / rank, 0 from rank 11 on; recall at the recipe's lengths; the loss.

        Documents with equal scores are counted as if the right one stood behind the others.
        """
        ranks, shares = [], []
        for record, prediction in zip(records, predictions, strict=True):
            scores = {entry["candidate"]: entry["score"] for entry in prediction["ranking"]}
            shares.append(scores[record.target])
            ranks.append(sum(score >= scores[record.target] for score in scores.values()))
        recalls = {
            f"recall_at_{length}": sum(rank <= length for rank in ranks) / len(ranks)
            for length in self._config.recall_at
        }
        mrr = sum(1.0 / rank for rank in ranks if rank <= _DEPTH) / len(ranks)
        return {"loss": mean_loss(shares), self.metric: mrr, **recalls}

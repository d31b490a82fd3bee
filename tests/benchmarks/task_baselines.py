"""Simple baselines on a fine-tuning recipe's own files, scored as the recipe's task scores: what a model must beat.

    python -m tests.benchmarks.task_baselines movie_sentiment spam chinese_segmentation chinese_ner debian_ranking
    python -m tests.benchmarks.task_baselines english_chinese_translation debian_summaries chinese_decomposition

Texts: TF-IDF of words and pairs of words into logistic regression. Segmentation: forward maximum matching with the
training words. Entities: longest match of the training entities, each with its most frequent type. Ranking: the cosine
of TF-IDF vectors. Texts from texts: `tests.benchmarks.writing_baselines`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.benchmarks.writing_baselines import first_sentence, nearest_translation, neighbouring_character
from trainer.errors import UserError
from trainer.finetune_config import FineTuneConfig
from trainer.recipe import load_finetune_recipe
from trainer.tasks.choose import learn_task, reader_for
from trainer.tasks.examples import Record
from trainer.tasks.tag_schemes import spans, words_of_bmes
from trainer.tasks.task import Prediction


def logistic_regression(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    """scikit-learn's defaults, but for pairs of words and enough iterations to converge."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    model.fit([" ".join(record.inputs) for record in train], [record.target for record in train])
    return [{"label": label} for label in model.predict([" ".join(record.inputs) for record in test])]


def nearest_by_words(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    """Candidates in the order of their cosine to the query, by scikit-learn's TF-IDF of the training texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(sublinear_tf=True).fit([text for record in train for text in record.inputs[:2]])
    found = []
    for record in test:
        query, *candidates = vectors.transform(record.inputs)
        scores = [float(query.multiply(candidate).sum()) for candidate in candidates]
        order = sorted(range(len(scores)), key=lambda candidate: -scores[candidate])
        found.append({"ranking": [{"candidate": candidate, "score": scores[candidate]} for candidate in order]})
    return found


def maximum_matching(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    """The longest word of the training files that begins here, else one character."""
    words = {word for record in train for word in words_of_bmes(record.inputs, record.target)}
    longest = max(map(len, words))
    return [{"words": [*match_longest("".join(record.inputs), words, longest=longest)]} for record in test]


def match_longest(text: str, words: Iterable[str], *, longest: int) -> Iterable[str]:
    """`text` cut from its start into the longest of `words`, and single characters where none begins."""
    start = 0
    while start < len(text):
        ends = range(min(len(text), start + longest), start + 1, -1)
        end = next((end for end in ends if text[start:end] in words), start + 1)
        yield text[start:end]
        start = end


def dictionary_entities(train: Sequence[Record], test: Sequence[Record]) -> list[Prediction]:
    """BIO tags of the longest training entities that occur, each with the type it mostly had."""
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for record in train:
        for span in spans(record.target):
            types["".join(record.inputs[span.start : span.end])][span.type] += 1
    longest = max(map(len, types))
    return [{"tags": _tags(record, types, longest=longest)} for record in test]


def _tags(record: Record, types: Mapping[str, Counter[str]], *, longest: int) -> list[str]:
    tags: list[str] = []
    for part in match_longest("".join(record.inputs), types, longest=longest):
        kind = types[part].most_common(1)[0][0] if part in types else None
        tags += ["O"] * len(part) if kind is None else [f"B-{kind}", *[f"I-{kind}"] * (len(part) - 1)]
    return tags


def baseline(config: FineTuneConfig) -> dict[str, float]:
    """The test file's scores of the task's baseline."""
    reader, test_file = reader_for(config), config.data.test or config.data.validation
    train, test = (reader.read(Path(path), labelled=True) for path in (config.data.train, test_file))
    methods = {
        "classification": logistic_regression,
        "segmentation": maximum_matching,
        "tagging": dictionary_entities,
        "translation": nearest_translation,
        "summarization": first_sentence,
        "decomposition": neighbouring_character,
        "ranking": nearest_by_words,
    }
    if config.task.name not in methods:
        raise UserError(f"{config.task.name} has no baseline here; there are some for {', '.join(methods)}")
    task = learn_task(config, train)
    scores = task.metrics(test, methods[config.task.name](train, test))
    return {name: scores[name] for name in task.metric_names}


def main(recipes: Sequence[str]) -> None:
    """Print a line for each recipe."""
    for name in recipes:
        begun_s = time.monotonic()
        scores = " · ".join(f"{key} {value:.4f}" for key, value in baseline(load_finetune_recipe(name)).items())
        print(f"{name}: {scores} ({time.monotonic() - begun_s:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The training step's peer: Hugging Face's Trainer over BertForMaskedLM, which takes one step whenever it is asked.

Run as `python hf_trainer.py FOLDER` in an environment of its own; it imports nothing of this project. FOLDER, written
by `tests.benchmarks.peer_process`, holds settings.json, rows.npz and tokenizer/. It prints its versions as one line;
then each line of its input asks for one step, answered by that step's number of tokens that are not padding.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

_PACKAGES = ("torch", "transformers", "accelerate")
_MORE_STEPS_THAN_ANY_RUN = 1_000_000


class CountingCollator:
    """A collator that remembers how many tokens each of its batches had; Trainer collates a batch ahead."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.tokens: deque[int] = deque()
        self._collate = collate

    def __call__(self, examples: list[Any]) -> Any:
        self.tokens.append(sum(len(example["input_ids"]) for example in examples))
        return self._collate(examples)


class OneStepAtATime(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Before a step, waits for a line of `requests`; after it, writes its tokens to `answers`."""

    def __init__(self, requests: TextIO, answers: TextIO, *, tokens: deque[int]) -> None:
        self._requests = requests
        self._answers = answers
        self._tokens = tokens

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._answer(" · ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self._requests.readline():
            raise EOFError

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._answer(str(self._tokens.popleft()))

    def _answer(self, text: str) -> None:
        print(text, file=self._answers, flush=True)


def read_rows(path: Path, *, as_lists: bool) -> list[dict[str, Any]]:
    """The rows of an .npz with `tokens`, end to end, and `lengths`; as lists, as `datasets` gives them, or tensors."""
    with np.load(path) as stored:
        ends = np.cumsum(stored["lengths"])[:-1]
        rows = np.split(stored["tokens"].astype(np.int64), ends)
    return [{"input_ids": row.tolist() if as_lists else torch.from_numpy(row)} for row in rows]


def train(folder: Path, *, requests: TextIO, answers: TextIO) -> None:
    """Take one step for each line of `requests`, until they end."""
    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    collator = CountingCollator(DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15))
    arguments = TrainingArguments(
        output_dir=str(folder / "output"),
        per_device_train_batch_size=settings["batch_rows"],
        max_steps=_MORE_STEPS_THAN_ANY_RUN,
        learning_rate=1e-4,
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        use_cpu=settings["use_cpu"],
        dataloader_drop_last=True,
        dataloader_pin_memory=not settings["use_cpu"],
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=BertForMaskedLM(BertConfig(**settings["model"])),
        args=arguments,
        data_collator=collator,
        train_dataset=read_rows(folder / "rows.npz", as_lists=settings["rows_as_lists"]),
        callbacks=[OneStepAtATime(requests, answers, tokens=collator.tokens)],
    )
    with contextlib.suppress(EOFError):
        trainer.train()


if __name__ == "__main__":
    # Whatever the libraries print must not get between the answers.
    own_output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    train(Path(sys.argv[1]), requests=sys.stdin, answers=own_output)

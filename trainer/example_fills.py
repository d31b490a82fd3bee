"""Example fills: what a checkpoint's model puts in the place of held-out tokens, as Markdown for a person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from data_pipeline.batch import IGNORED_LABEL, Batch
from data_pipeline.tokenizer import Tokenizer
from trainer.checkpoint_files import CheckpointReader
from trainer.config import Config
from trainer.model.create import create_model
from trainer.model.weights import load_weights

SHOWN_ROWS = 4
_SHOWN_TOKENS = 64
_GUESSES = 4


def example_fills(checkpoint: CheckpointReader, *, config: Config, rows: Batch, tokenizer: Tokenizer) -> str:
    """Masked rows with the likeliest tokens of each place, computed on this process's processor; one rank calls it.

    By the saved weights rather than the engine's, in which every rank would have to take part. Rows are cut to their
    first 64 tokens: enough to read, and few enough for logits of a whole vocabulary.
    """
    network = create_model(config.model, seed=config.seed, candidates=config.objective.candidates)
    load_weights(network, checkpoint.evaluation_weights(), source=str(checkpoint.folder))
    shown: dict[str, Any] = {name: array[:, :_SHOWN_TOKENS].copy() for name, array in rows.model_inputs().items()}
    inputs = {name: torch.from_numpy(array) for name, array in shown.items() if "labels" not in name}
    with torch.no_grad():
        logits = network.eval().logits(**inputs)
    return fills_as_markdown(replace(rows, **shown), logits, tokenizer=tokenizer)


def fills_as_markdown(rows: Batch, logits: Tensor, *, tokenizer: Tokenizer) -> str:
    """Each row's text with numbered places, and a table: what was given and written there, what is predicted.

    `logits` are [B, S, vocab]. A row in which nothing is predicted is left out.
    """
    pieces = tokenizer.pieces()
    lines: list[str] = []
    for number in range(len(rows.input_ids)):
        places = (rows.labels[number] != IGNORED_LABEL).nonzero()[0].tolist()
        if places:
            lines += [_row_text(rows, number, places=places, tokenizer=tokenizer, pieces=pieces), ""]
            lines += ["| place | given | written | predicted |", "|---|---|---|---|"]
            lines += _table(rows, number, places=places, logits=logits, pieces=pieces)
            lines.append("")
    return "\n".join(lines)


def _row_text(rows: Batch, number: int, *, places: list[int], tokenizer: Tokenizer, pieces: list[str]) -> str:
    numbers = {place: count for count, place in enumerate(places, start=1)}
    framing = {tokenizer.cls_id: "", tokenizer.sep_id: " ¶ "}
    text = ""
    for place, token in enumerate(rows.input_ids[number].tolist()):
        if place in numbers:
            text += f" **[{numbers[place]}]**"
        elif rows.document_ids[number, place]:
            text += framing.get(token, _shown(pieces[token]))
    return f"**Row {rows.row_ids[number]}.** {text.strip()}"


def _table(rows: Batch, number: int, *, places: list[int], logits: Tensor, pieces: list[str]) -> Iterator[str]:
    for count, place in enumerate(places, start=1):
        given, written = int(rows.input_ids[number, place]), int(rows.labels[number, place])
        best = logits[number, place].float().softmax(dim=-1).topk(min(_GUESSES, logits.shape[-1]))
        guesses = ", ".join(
            f"**{_shown(pieces[token]).strip()}** {rate:.0%}"
            if token == written
            else f"{_shown(pieces[token])} {rate:.0%}"
            for token, rate in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        )
        yield f"| {count} | {_shown(pieces[given])} | {_shown(pieces[written])} | {guesses.strip()} |"


def _shown(piece: str) -> str:
    """A piece as text, with what Markdown would take for its own escaped; a lone word start stays visible."""
    text = piece.replace("▁", " ") if piece.strip("▁") else piece
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", text)

"""`make demo`: from raw text to an exported encoder that fills in masked words, by the same commands as any run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import UserError, run_command

RUN_DIR = Path("runs/demo")
_GOAL_NATS = 0.5
# Words a reader of these addresses can guess, [MASK] in the place of each.
_SENTENCES = (
    ("I have the honor to submit my annual [MASK] to the Congress.", "message"),
    ("The United [MASK] of America is at peace with all nations.", "States"),
    ("The report of the Secretary of the [MASK] will be laid before you.", "Treasury"),
    ("We must work together for the good of the American [MASK].", "people"),
    ("During the last fiscal [MASK] the receipts were larger than the expenditures.", "year"),
)


def main() -> int:
    """Pretrain, evaluate, load the export with transformers, and say what came out; exit code 1 below the goal."""
    started = time.monotonic()
    scripts = Path(sys.executable).parent
    _say("1/3  pretraining with 2 processes, ZeRO-2 (tokenizer and shards are made first, once)")
    # The launcher's own lines are about itself; errors still come through.
    _run([scripts / "deepspeed", "--log_level", "error", "--num_gpus", "2", "--module", "trainer", "pretrain", "demo"])
    trained_s = time.monotonic() - started
    _say("2/3  evaluating on held-out documents")
    figures = json.loads(_run([sys.executable, "-m", "trainer", "evaluate", RUN_DIR, "--json"], capture=True))
    _say("3/3  loading the export with transformers and filling in masked words")
    _fill_masks(RUN_DIR / "export")
    return _conclude(figures, trained_s=trained_s)


def _say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _run(command: Sequence[object], *, capture: bool = False) -> str:
    # Without a GPU the launcher would warn, in each of its processes, that it found none.
    environment = os.environ if shutil.which("nvidia-smi") else {"DS_ACCELERATOR": "cpu", **os.environ}
    done = subprocess.run(
        [str(part) for part in command],
        env=environment,
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            f"`{' '.join(map(str, command))}` ended with exit code {done.returncode}; its own line says why"
        )
    return done.stdout or ""


def _fill_masks(export: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertForMaskedLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = BertForMaskedLM.from_pretrained(export).eval()
    for sentence, word in _SENTENCES:
        inputs = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        at = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
        best = logits[0, at].softmax(dim=-1).topk(4)
        guesses = ", ".join(
            f"{tokenizer.convert_ids_to_tokens(int(token)).replace('▁', ' ').strip() or '▁'} {rate:.0%}"
            for rate, token in zip(best.values, best.indices, strict=True)
        )
        print(f"   {sentence}\n      {guesses}   (written: {word})")


def _conclude(figures: dict[str, float], *, trained_s: float) -> int:
    gain = figures["unigram_entropy"] - figures["loss"]
    print(
        f"\nheld-out MLM loss    {figures['loss']:.3f} nats"
        f"\nunigram entropy      {figures['unigram_entropy']:.3f} nats of the same tokens: the loss is {gain:.3f} below"
        f"\nmasked accuracy      {figures['accuracy']:.1%}, where the most frequent token alone gives "
        f"{figures['most_frequent_rate']:.1%}"
        f"\npretraining took     {trained_s:.0f} s, start and data preparation included"
        f"\n\nrun folder           {RUN_DIR}"
        f"\nexport               {RUN_DIR / 'export'}   (transformers: AutoModelForMaskedLM.from_pretrained)"
        f"\nTensorBoard          {Path(sys.executable).parent / 'tensorboard'} --logdir {RUN_DIR / 'tensorboard'}"
        f"\ntrain again          remove {RUN_DIR}"
    )
    if gain < _GOAL_NATS:
        print(f"\nthe loss is less than {_GOAL_NATS} nats below the unigram entropy: the demo missed its goal")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))

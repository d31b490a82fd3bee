"""`trainer check` tells the memory of a run beforehand: here it is held against the run itself."""

import re
import sys

import pytest
from launching import run, trainer_command

from trainer.metrics import read_records

RECIPE = """
name: run
seed: 5
data:
  shards: {shards}
  lanes: 32
  max_seq_len: 128
model:
  hidden_size: 256
  num_layers: 4
  num_heads: 4
  intermediate_size: 1024
  max_positions: 128
optimizer:
  ema_decay: 0.9
schedule:
  warmup_steps: 1
train:
  steps: 6
  global_batch_size: 32
  micro_batch_size: 32
  log_every_steps: 1
engine:
  ds_config: zero1
  precision: fp32
evaluation: null
export: false
"""


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_memory_of_a_run_is_foretold_within_15_percent(shards, tmp_path, dropout):
    (tmp_path / "run.yaml").write_text(RECIPE.format(shards=shards))
    rates = [f"model.{part}_dropout={dropout}" for part in ("hidden", "attention")]
    settings = ["run.yaml", *(word for rate in rates for word in ("--set", rate))]
    run(trainer_command("pretrain", *settings, processes=1, launcher="alone"), cwd=tmp_path)
    measured = read_records(tmp_path / "runs" / "run" / "metrics.jsonl")[-1]["memory/peak_gib"]
    output = run([sys.executable, "-m", "trainer", "check", *settings], cwd=tmp_path)
    found = re.search(r"^memory +([\d.]+) GiB a process", output, flags=re.MULTILINE)
    assert found
    assert float(found[1]) == pytest.approx(measured, rel=0.15)

"""A fine-tuned run's model, read back for one process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainer.config import ModelConfig
from trainer.encoder_config import BiLSTMConfig, EncoderConfig
from trainer.export import choose_checkpoint, plain_weights
from trainer.finetune_config import FineTuneConfig
from trainer.model.weights import load_weights
from trainer.run_folder import load_finetuned
from trainer.task_start import TOKENIZER_DIR
from trainer.tasks.choose import known_task, with_tokenizer
from trainer.tasks.model import TaskModel
from trainer.tasks.task import Task
from trainer.tasks.text_tokenizer import TextTokenizer, load_texts


@dataclass(frozen=True)
class TrainedTask:
    """A checkpoint's task with its model, fp32 on the host; `shape` is the encoder's."""

    config: FineTuneConfig
    checkpoint: Path
    task: Task
    tokenizer: TextTokenizer
    shape: EncoderConfig
    model: TaskModel


def load_trained(run_dir: Path, *, which: str) -> TrainedTask:
    """Read one of a run's checkpoints; UserError where `run_dir` is no fine-tuned run."""
    config = load_finetuned(run_dir)
    source = choose_checkpoint(run_dir, which=which)
    tokenizer = load_texts(run_dir / TOKENIZER_DIR)
    task = with_tokenizer(known_task(config, source.state["labels"]), tokenizer)
    values = source.state["model"]
    shape: EncoderConfig = BiLSTMConfig(**values) if config.start.encoder == "bilstm" else ModelConfig(**values)
    model = task.create_model(shape)
    load_weights(model, plain_weights(source, config), source=str(source.folder))
    return TrainedTask(config, source.folder, task, tokenizer, shape, model)

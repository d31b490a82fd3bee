"""The arithmetic that training a model takes, counted in FLOPs."""

from __future__ import annotations

from trainer.config import ModelConfig
from trainer.encoder_config import BiLSTMConfig
from trainer.model.encoder import feed_forward_flops


def model_flops(
    config: ModelConfig,
    *,
    tokens: int,
    sum_squared_document_lengths: int,
    predicted_tokens: int,
    paired_sequences: int = 0,
) -> int:
    """FLOPs of one forward and backward pass over `tokens` real tokens; padding and recomputation do not count.

    With h = hidden_size, i = intermediate_size, L = num_layers, V = vocab_size, one multiply and add
    as 2 FLOPs, and documents of lengths n_d, the forward pass takes

        (L - 1) × tokens × (8h² + 4hi) + L × 4h × Σ n_d²
        + tokens × 6h² + (predicted_tokens + paired_sequences) × (2h² + 4hi)
        + predicted_tokens × (2h² + 2hV) + paired_sequences × (2h² + 4h)

    for the query, key, value and output projections (8h²), the feed-forward layers (4hi), the scores
    and the weighted sum of attention (4h Σ n_d²); the last layer's output projection and feed-forward
    layers, which only the predicted tokens and the first tokens of pairs go through; the head's
    transform and its decoder; the pooler and the pair head. The backward pass takes twice as much
    (Chowdhery et al. 2022, appendix B). Counting the last layer in full, as is usual, would claim work
    that is not done. In family modernbert a gated feed-forward layer takes 6hi, and local attention at
    most 4h min(Σ n_d², (local_window + 1) × tokens). ValueError when vocab_size is not set.
    """
    if config.vocab_size is None:
        raise ValueError("model_flops needs a model config whose vocab_size is resolved from the tokenizer")
    hidden = config.hidden_size
    head = predicted_tokens * (2 * hidden**2 + 2 * hidden * config.vocab_size)
    pair_head = paired_sequences * (2 * hidden**2 + 4 * hidden)
    return 3 * (head + pair_head) + encoder_flops(
        config,
        tokens=tokens,
        sum_squared_document_lengths=sum_squared_document_lengths,
        last_layer_tokens=predicted_tokens + paired_sequences,
    )


def recomputed_flops(
    config: ModelConfig, *, tokens: int, sum_squared_document_lengths: int, predicted_tokens: int, paired_sequences: int
) -> int:
    """FLOPs that activation checkpointing adds: each layer's forward pass once more, the heads' not."""
    flops = encoder_flops(
        config,
        tokens=tokens,
        sum_squared_document_lengths=sum_squared_document_lengths,
        last_layer_tokens=predicted_tokens + paired_sequences,
    )
    return flops // 3


def encoder_flops(
    config: ModelConfig, *, tokens: int, sum_squared_document_lengths: int, last_layer_tokens: int
) -> int:
    """The encoder's part of `model_flops`: all terms but the heads', the last layer for `last_layer_tokens`."""
    hidden, feed_forward = config.hidden_size, feed_forward_flops(config)
    per_token, last_layer = 8 * hidden**2 + feed_forward, 2 * hidden**2 + feed_forward
    projections = (config.num_layers - 1) * tokens * per_token + tokens * 6 * hidden**2 + last_layer_tokens * last_layer
    seen_globally = seen_locally = sum_squared_document_lengths
    global_layers = config.num_layers
    if config.family == "modernbert":
        global_layers = -(-config.num_layers // config.global_every)
        seen_locally = min(sum_squared_document_lengths, (config.local_window + 1) * tokens)
    seen = global_layers * seen_globally + (config.num_layers - global_layers) * seen_locally
    attention = 4 * hidden * seen
    return 3 * (projections + attention)


def bilstm_flops(config: BiLSTMConfig, *, tokens: int) -> int:
    """FLOPs of one forward and backward pass of the recurrent encoder over `tokens` real tokens.

    Four gates of both directions, each from a layer's input and the state before: 8 × hidden × (input + hidden / 2).
    """
    inputs = config.embedding_size + (config.num_layers - 1) * config.hidden_size
    return 3 * tokens * 8 * config.hidden_size * (inputs + config.num_layers * config.hidden_size // 2)

"""Where an encoder is cut into pipeline stages so that none takes much longer than the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from trainer.config import ModelConfig
from trainer.model.encoder import feed_forward_flops, vocab_size

# Measured on one core in fp32, forward and backward, at the shapes of bert_mini and bert_base: what the embeddings
# take of a layer's time (0.03 to 0.06), and the head's time a FLOP over a layer's (1.10 to 1.21).
_EMBEDDINGS_FACTOR = 0.04
_HEAD_FACTOR = 1.15


def unit_costs(config: ModelConfig, *, tokens: int, predicted_tokens: int) -> list[float]:
    """Cost of each unit of a model for one micro-batch, in FLOPs of a layer: embeddings, layers, head.

    Forward and backward together, as in `trainer.flops` but for attention's scores, which are small where documents
    are. The last layer and the head work on predicted tokens only.
    """
    hidden, feed_forward = config.hidden_size, feed_forward_flops(config)
    layer = tokens * (8 * hidden**2 + feed_forward)
    last_layer = tokens * 6 * hidden**2 + predicted_tokens * (2 * hidden**2 + feed_forward)
    head = _HEAD_FACTOR * predicted_tokens * (2 * hidden**2 + 2 * hidden * vocab_size(config))
    return [_EMBEDDINGS_FACTOR * layer, *[float(layer)] * (config.num_layers - 1), float(last_layer), head]


def balanced_bounds(costs: Sequence[float], *, num_stages: int) -> list[int]:
    """Cut units into `num_stages` runs, none empty, so that the dearest is as cheap as can be.

    Stage k holds the units bounds[k] to bounds[k + 1] - 1. Of equal cuts the one with the shortest first stages is
    taken, for these hold the most micro-batches at a time. ValueError where there are fewer units than stages.
    """
    if num_stages > len(costs):
        raise ValueError(f"{len(costs)} units cannot fill {num_stages} stages")
    sums = [0.0, *accumulate(costs)]
    # best[n] is, for the stages so far, (cost of the dearest, bounds) over the first n units.
    best = {n: (sums[n], [0, n]) for n in range(1, len(costs) + 1)}
    for stages in range(2, num_stages + 1):
        best = {
            n: min((max(best[cut][0], sums[n] - sums[cut]), [*best[cut][1], n]) for cut in range(stages - 1, n))
            for n in range(stages, len(costs) + 1)
        }
    return best[len(costs)][1]

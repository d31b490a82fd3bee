"""A linear-chain conditional random field over tag scores (Lafferty et al. 2001)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConditionalRandomField(nn.Module):
    """Scores of neighbouring tags, of first and of last tags; batches are [sentences, words, tags] with a mask."""

    def __init__(self, num_tags: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.zeros(num_tags, num_tags))
        """[from, to]."""
        self.ends = nn.Parameter(torch.zeros(2, num_tags))
        """Scores of the first tag and of the last."""

    def forward(self, scores: Tensor, mask: Tensor, tags: Tensor | None = None) -> Tensor:
        """-log p(tags | scores), summed over sentences; without `tags` the likeliest ones.

        `tags` int64 and `mask` bool are [sentences, words]. Both are asked of this method, and not of others, because
        ZeRO-3 gathers a module's weights where it is called.
        """
        if tags is None:
            return self._decode(scores, mask)
        return (self._log_partition(scores, mask) - self._path_score(scores, tags, mask)).sum()

    def _path_score(self, scores: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        emitted = scores.gather(2, tags[..., None]).squeeze(2)
        moved = self.transitions[tags[:, :-1], tags[:, 1:]]
        last = tags.gather(1, mask.sum(1, keepdim=True) - 1).squeeze(1)
        inner = (emitted * mask).sum(1) + (moved * mask[:, 1:]).sum(1)
        return inner + self.ends[0][tags[:, 0]] + self.ends[1][last]

    def _log_partition(self, scores: Tensor, mask: Tensor) -> Tensor:
        # unbind, not slices: the gradient of each slice would be a zero tensor of the whole batch.
        first, *others = scores.unbind(1)
        forward = self.ends[0] + first
        for of_word, is_word in zip(others, mask[:, 1:, None].unbind(1), strict=True):
            step = torch.logsumexp(forward[:, :, None] + self.transitions, dim=1) + of_word
            forward = torch.where(is_word, step, forward)
        return torch.logsumexp(forward + self.ends[1], dim=1)

    def _decode(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The likeliest tags, int64 [sentences, words], any number behind a sentence's end (Viterbi 1967)."""
        best = self.ends[0] + scores[:, 0]
        origins = []
        stay = torch.arange(scores.shape[2], device=scores.device).expand_as(best)
        for word in range(1, scores.shape[1]):
            value, origin = (best[:, :, None] + self.transitions).max(dim=1)
            real = mask[:, word, None]
            best = torch.where(real, value + scores[:, word], best)
            origins.append(torch.where(real, origin, stay))
        path = [(best + self.ends[1]).argmax(dim=1)]
        for origin in reversed(origins):
            path.append(origin.gather(1, path[-1][:, None]).squeeze(1))
        return torch.stack(path[::-1], dim=1)

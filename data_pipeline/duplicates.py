"""Exact duplicates among documents: each text as a digest, and a table of the digests that were seen."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint64]

_DIGEST_BYTES = 16
_FIRST_SLOTS = 1 << 16
_FULLEST = 0.8
_GROWTH = 1.5


def text_digests(documents: Sequence[str]) -> Digests:
    """128 bits of each text, uint64 [documents, 2]: equal for texts that differ in white space or Unicode form alone.

    A text is taken in Unicode's form NFC with each run of white space as one blank and none at its ends. That two of
    10**9 different texts fall together has a chance of 10**-21.
    """
    digests = b"".join(
        hashlib.blake2b(
            " ".join(unicodedata.normalize("NFC", text).split()).encode(), digest_size=_DIGEST_BYTES
        ).digest()
        for text in documents
    )
    return np.frombuffer(digests, "<u8").reshape(-1, 2).astype(np.uint64, copy=False)


class SeenTexts:
    """The digests seen so far, in a table with open addressing: 20 to 30 bytes a text, 50 for a moment as it grows."""

    def __init__(self) -> None:
        self._slots = np.zeros((_FIRST_SLOTS, 2), np.uint64)
        self._held = 0

    @property
    def num_bytes(self) -> int:
        """The memory of the table."""
        return self._slots.nbytes

    def add(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Remember these digests; gives which of them are new, bool [digests]: of equal ones the first is."""
        # All zeros marks a free slot, so that digest, were it ever to come, counts as its neighbour.
        digests = np.where(digests.any(axis=1, keepdims=True), digests, np.uint64(1))
        new = np.zeros(len(digests), np.bool_)
        distinct = np.unique(digests, axis=0, return_index=True)[1]
        while self._held + len(distinct) > _FULLEST * len(self._slots):
            self._grow()
        new[distinct] = self._insert(digests[distinct])
        self._held += int(new.sum())
        return new

    def _insert(self, digests: Digests) -> npt.NDArray[np.bool_]:
        """Put digests, all different, into the table; gives which were not there yet."""
        new = np.zeros(len(digests), np.bool_)
        slots = digests[:, 0] % np.uint64(len(self._slots))
        waiting = np.arange(len(digests))
        while len(waiting):
            wanted, slot = digests[waiting], slots[waiting]
            free = ~self._slots[slot].any(axis=1)
            # Of several that meet at one free slot the last written stays, and the others go on to the next.
            self._slots[slot[free]] = wanted[free]
            settled = (self._slots[slot] == wanted).all(axis=1)
            new[waiting[free & settled]] = True
            waiting = waiting[~settled]
            slots[waiting] = (slots[waiting] + np.uint64(1)) % np.uint64(len(self._slots))
        return new

    def _grow(self) -> None:
        held = self._slots[self._slots.any(axis=1)]
        self._slots = np.zeros((int(len(self._slots) * _GROWTH), 2), np.uint64)
        self._insert(held)

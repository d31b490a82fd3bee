"""sentencepiece's `nmt_nfkc` normalisation, rebuilt from the parts of Hugging Face's `tokenizers`."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

# A character that the charsmap deletes, and that no Unicode normalisation reaches across.
_BARRIER = "\x01"
# NFKC would make it "~" and sentencepiece does not, so it is set aside meanwhile as a noncharacter.
_FULLWIDTH_TILDE, _SET_ASIDE = "\uff5e", "\ufffe"


def read_charsmap(blob: bytes) -> dict[str, str]:
    """Every rule of a sentencepiece `precompiled_charsmap`: sequence of characters -> replacement.

    The blob is a length, a double-array trie (Aoe 1989; darts-clone's bit layout) over UTF-8 bytes, and
    the replacements, each ending in a zero byte.
    """
    (trie_bytes,) = struct.unpack_from("<I", blob)
    units = struct.unpack_from(f"<{trie_bytes // 4}I", blob, 4)
    replacements = blob[4 + trie_bytes :]

    @cache  # the trie shares its subtrees: a fifth of its places are distinct
    def children(base: int) -> list[tuple[int, int]]:
        nodes = ((byte, base ^ byte) for byte in range(1, 256))
        return [(byte, node) for byte, node in nodes if node < len(units) and units[node] & 0x800000FF == byte]

    rules: dict[str, str] = {}
    stack = [(_children_base(0, units[0]), b"")]
    while stack:
        base, prefix = stack.pop()
        for byte, node in children(base):
            key, below = prefix + bytes([byte]), _children_base(node, units[node])
            if units[node] & 0x100:
                start = units[below] & 0x7FFFFFFF
                rules[key.decode()] = replacements[start : replacements.index(0, start)].decode()
            stack.append((below, key))
    return rules


def _children_base(node: int, unit: int) -> int:
    return node ^ ((unit >> 10) << ((unit & 0x200) >> 6))


def barrier_pattern(rules: Iterable[str]) -> str:
    """A regular expression of the places where NFKC would join or reorder characters that no rule joins.

    A rule of several characters is a head and tails (a letter and its accents, a syllable's jamo). A barrier
    goes before a mark that is no tail, before a tail after what is no head, and between tails that follow
    each other in no rule. Never at the very start, where an insertion breaks the offsets of `tokenizers`.
    """
    sequences = [rule for rule in rules if len(rule) > 1]
    heads = {rule[0] for rule in sequences}
    tails = {character for rule in sequences for character in rule[1:]}
    followers: dict[str, set[str]] = defaultdict(set)
    for rule in sequences:
        for left, right in pairwise(rule[1:]):
            followers[left].add(right)
    lefts_by_followers: dict[frozenset[str], set[str]] = defaultdict(set)
    for left in tails - heads:
        lefts_by_followers[frozenset(followers[left])].add(left)
    places = [f"(?![{_ranges(tails)}])", f"(?<![{_ranges(heads | tails)}])"]
    for allowed, lefts in sorted(lefts_by_followers.items(), key=lambda item: min(item[1])):
        places.append(f"(?<=[{_ranges(lefts)}])(?=[{_ranges(tails - allowed)}])")
    return rf"(?=[\p{{M}}{_ranges(tails)}])(?!\A)(?:{'|'.join(places)})"


@lru_cache(maxsize=2)  # a second of work, and nearly every model has the same charsmap
def _barriers_of(charsmap: bytes) -> str:
    return barrier_pattern(read_charsmap(charsmap))


def _ranges(characters: Iterable[str]) -> str:
    points = sorted(map(ord, characters))
    starts = [point for place, point in enumerate(points) if not place or points[place - 1] != point - 1]
    ends = [point for place, point in enumerate(points) if place + 1 == len(points) or points[place + 1] != point + 1]
    return "".join(rf"\x{{{start:X}}}-\x{{{end:X}}}" for start, end in zip(starts, ends, strict=True))


def build_normalizer(charsmap: bytes) -> Any:
    """A `tokenizers` normalizer equal to sentencepiece's for `nmt_nfkc` with `remove_extra_whitespaces`.

    sentencepiece replaces the longest rule at each place of the text. `Precompiled` looks rules up a grapheme
    at a time, by their shortest prefix: it leaves most rules of several characters unapplied and drops marks
    (huggingface/tokenizers issues 2116, 2334). Here NFKC applies these rules, barriers keep it from doing
    more, and `Precompiled` is left with single characters. What remains different are compositions younger
    than the Unicode tables of `tokenizers`. Leading blanks become one, which is then the word-start mark.
    """
    from tokenizers import Regex, normalizers

    return normalizers.Sequence(
        [
            normalizers.Replace(Regex(_barriers_of(charsmap)), _BARRIER),
            normalizers.Replace(_FULLWIDTH_TILDE, _SET_ASIDE),
            normalizers.NFKC(),
            normalizers.Precompiled(charsmap),
            normalizers.Replace(_SET_ASIDE, _FULLWIDTH_TILDE),
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r" \z"), ""),
        ]
    )

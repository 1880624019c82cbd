"""BLAKE3 as its specification describes it, for small inputs; slow, and independent of what is tested with it."""

from __future__ import annotations

import struct

_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_MASK = 0xFFFFFFFF
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))


def _compress(value: tuple, block: bytes, counter: int, flags: int) -> tuple:
    words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
    state = [*value, *_IV[:4], counter & _MASK, counter >> 32, len(block), flags]
    for _ in range(7):
        for n, (a, b, c, d) in enumerate(_COLUMNS + _DIAGONALS):
            for word, first, second in ((words[2 * n], 16, 12), (words[2 * n + 1], 8, 7)):
                state[a] = (state[a] + state[b] + word) & _MASK
                mixed = state[d] ^ state[a]
                state[d] = (mixed >> first | mixed << (32 - first)) & _MASK
                state[c] = (state[c] + state[d]) & _MASK
                mixed = state[b] ^ state[c]
                state[b] = (mixed >> second | mixed << (32 - second)) & _MASK
        words = [words[n] for n in _PERMUTATION]
    return tuple(state[n] ^ state[n + 8] for n in range(8))


def _chunk(data: bytes, counter: int, root: int) -> tuple:
    value: tuple = _IV
    blocks = [data[n : n + 64] for n in range(0, len(data), 64)] or [b""]
    for n, block in enumerate(blocks):
        flags = _CHUNK_START * (n == 0)
        if n == len(blocks) - 1:
            flags |= _CHUNK_END | root
        value = _compress(value, block, counter, flags)
    return value


def _tree(data: bytes, first: int, root: int) -> tuple:
    if len(data) <= 1024:
        return _chunk(data, first, root)
    # The left subtree has the largest power of two of chunks that leaves something for the right.
    chunks = 1 << ((len(data) - 1) // 1024).bit_length() - 1
    left = _tree(data[: chunks * 1024], first, 0)
    right = _tree(data[chunks * 1024 :], first + chunks, 0)
    return _compress(_IV, struct.pack("<16I", *left, *right), 0, _PARENT | root)


def blake3(data: bytes) -> bytes:
    return struct.pack("<8I", *_tree(data, 0, _ROOT))

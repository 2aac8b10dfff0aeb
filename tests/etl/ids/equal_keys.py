"""Two strings of one 64-bit key, computed backwards through XXH64: nothing is patched and no search is long."""

from __future__ import annotations

__all__ = ["another_of_the_same_key"]

_PRIME_1, _PRIME_2, _PRIME_4 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x85EBCA77C2B2AE63
_PRIME_5, _MASK = 0x27D4EB2F165667C5, 2**64 - 1
_INVERSE_1, _INVERSE_2 = pow(_PRIME_1, -1, 2**64), pow(_PRIME_2, -1, 2**64)
_PRINTABLE = set(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.~!*")


def another_of_the_same_key(string: str, seed: int = 0, start: int = 0, printable: bool = True) -> bytes:
    """16 other bytes with the key of a string of 16 bytes; a larger `start` finds yet others."""
    first, second = (int.from_bytes(half, "little") for half in (string[:8].encode(), string[8:].encode()))
    begin = (seed + _PRIME_5 + 16) & _MASK
    # The second word enters by exclusive or: for any first word there is one that leads to the same state.
    wanted = _step(begin, first) ^ _round(second)
    while True:
        begins = f"{start:08d}".encode()
        ends = _unround(_step(begin, int.from_bytes(begins, "little")) ^ wanted).to_bytes(8, "little")
        if begins != string[:8].encode() and (set(ends) <= _PRINTABLE or not printable):
            return begins + ends
        start += 1


def _rotate(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (64 - bits))) & _MASK


def _round(word: int) -> int:
    return _rotate(word * _PRIME_2 & _MASK, 31) * _PRIME_1 & _MASK


def _unround(word: int) -> int:
    return _rotate(word * _INVERSE_1 & _MASK, 33) * _INVERSE_2 & _MASK


def _step(state: int, word: int) -> int:
    return (_rotate(state ^ _round(word), 27) * _PRIME_1 + _PRIME_4) & _MASK

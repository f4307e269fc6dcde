"""A decoder written from docs/file-format.md, in plain Python integers. It shares no code with the package."""

import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
from safetensors import safe_open

PARTS = ("weight_bits", "weight_0", "bias_0", "weight_1", "bias_1", "weight_2", "bias_2", "medians", "thresholds")


class Words:
    """The range decoder of section 3."""

    def __init__(self, data: bytes) -> None:
        self.words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
        self.range = 2**64 - 1
        self.offset = self.next() << 32 | self.next()

    def next(self) -> int:
        return self.words.pop(0) if self.words else 0

    def symbol(self, frequencies: list[int]) -> int:
        scale = self.range // 2**24
        quantile = self.offset // scale
        assert quantile < 2**24
        left = 0
        i = 0
        while quantile >= left + frequencies[i]:
            left += frequencies[i]
            i += 1
        self.offset -= scale * left
        self.range = scale * frequencies[i]
        if self.range < 2**32:
            self.range *= 2**32
            self.offset = self.offset * 2**32 + self.next()
        return i

    def number(self, bits: int) -> int:
        return self.symbol([2 ** (24 - bits)] * 2**bits)


class Decoder:
    """From a codec file and a compressed file to the symbols of z and y."""

    def __init__(self, codec: Path) -> None:
        with safe_open(codec, framework="np") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            self.architecture = json.loads(file.metadata()["architecture"])
        name, self.N, self.M = (self.architecture[key] for key in ("name", "N", "M"))
        self.hyperprior = name == "hyperprior"
        digest = hashlib.sha256(f"{name} {self.N} {self.M}\n".encode())
        for kind in ("latent", "gaussian") if self.hyperprior else ("latent",):
            for part in ("frequencies", "starts", "minimums"):
                digest.update(self.tensors[f"tables.{kind}.{part}"].astype("<i4").tobytes())
        if self.hyperprior:
            for part in PARTS:
                digest.update(self.tensors[f"exact.{part}"].astype("<i8").tobytes())
        self.fingerprint = digest.digest()[:4]

    def decode(self, data: bytes) -> tuple[np.ndarray, np.ndarray, int, int]:
        assert data[:3] == b"HYP"
        assert data[3] >> 4 == 1
        assert zlib.crc32(data[:8] + data[12:]) == int.from_bytes(data[8:12], "little")
        assert data[4:8] == self.fingerprint
        self.binary = {0: False, 1: True}[data[3] & 15]
        at, numbers = 14, []
        for _ in range(3):
            number, shift = 0, 0
            while True:
                number |= (data[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if data[at - 1] < 128:
                    break
            numbers.append(number)
        width, height, words = numbers
        h, w = math.ceil(height / 16), math.ceil(width / 16)
        z = np.zeros((0, 0, 0), np.int32)
        if self.hyperprior:
            shape = (self.N, math.ceil(h / 4), math.ceil(w / 4))
            channels = np.broadcast_to(np.arange(self.N)[:, None, None], shape)
            z = self.chunk(Words(data[at : at + 4 * words]), channels.reshape(-1).tolist(), "latent").reshape(shape)
            tables = self.tables_of_y(z)[:, :h, :w]
        else:
            tables = np.broadcast_to(np.arange(self.M)[:, None, None], (self.M, h, w))
        y = np.zeros((self.M, h, w), np.int32)
        stream = Words(data[at + 4 * words :])
        for top in range(0, h, 64):
            for left in range(0, w, 64):
                part = tables[:, top : top + 64, left : left + 64]
                symbols = self.chunk(stream, part.reshape(-1).tolist(), "gaussian" if self.hyperprior else "latent")
                y[:, top : top + 64, left : left + 64] = symbols.reshape(part.shape)
        check = zlib.crc32(z.astype("<i4").tobytes() + y.astype("<i4").tobytes()) & 0xFFFF
        assert check == int.from_bytes(data[12:14], "little")
        return z, y, height, width

    def chunk(self, stream: Words, tables: list[int], kind: str) -> np.ndarray:
        starts, minimums = (self.tensors[f"tables.{kind}.{part}"].tolist() for part in ("starts", "minimums"))
        frequencies = self.tensors[f"tables.{kind}.frequencies"].tolist()
        of = {t: frequencies[starts[t] : starts[t + 1]] for t in set(tables)}
        entries = [0] * len(tables)
        if self.binary:
            bits = [math.ceil(math.log2(len(of[t]))) for t in tables]
            for b in range(max(bits) - 1, -1, -1):
                for i, t in enumerate(tables):
                    if bits[i] > b:
                        first = entries[i]  # the bits above b, the others zero
                        lower = sum(of[t][first : first + 2**b])
                        upper = sum(of[t][first + 2**b : first + 2 * 2**b])
                        q = min(max(2**24 * lower // (lower + upper), 1), 2**24 - 1)
                        entries[i] += stream.symbol([q, 2**24 - q]) << b
        else:
            for t in sorted(set(tables)):
                for i, table in enumerate(tables):
                    if table == t:
                        entries[i] = stream.symbol(of[t])
        symbols = []
        for entry, t in zip(entries, tables, strict=True):
            symbol = minimums[t] + entry
            if entry == len(of[t]) - 1:
                n, below, m = stream.number(6), stream.number(1), 0
                for shift in range(0, n - 1, 16):
                    m += stream.number(min(16, n - 1 - shift)) << shift
                m += 1 << (n - 1)
                symbol = minimums[t] - m if below else minimums[t] + entry + m - 1
            symbols.append(symbol)
        return np.array(symbols, dtype=np.int64).astype(np.int32)

    def tables_of_y(self, z: np.ndarray) -> np.ndarray:
        exact = {part: self.tensors[f"exact.{part}"].astype(object) for part in PARTS if part != "weight_bits"}
        bits = self.tensors["exact.weight_bits"].tolist()

        def clamp(values: np.ndarray) -> np.ndarray:
            return np.clip(values, -(2**24 - 1), 2**24 - 1)

        v = clamp(z.astype(object) * 2**12 + exact["medians"][:, None, None])
        for layer in range(2):
            n, rows, columns = v.shape
            out = np.zeros((n, 2 * rows + 3, 2 * columns + 3), dtype=object)  # row i of the result is row i + 2 here
            for p in range(5):
                for q in range(5):
                    share = np.tensordot(exact[f"weight_{layer}"][:, :, p, q].T, v, 1)
                    out[:, p : p + 2 * rows : 2, q : q + 2 * columns : 2] += share
            a = out[:, 2 : 2 + 2 * rows, 2 : 2 + 2 * columns] + exact[f"bias_{layer}"][:, None, None]
            v = clamp((np.maximum(a, 0) + 2 ** bits[layer] // 2) // 2 ** bits[layer])
        _, rows, columns = v.shape
        padded = np.zeros((len(v), rows + 2, columns + 2), dtype=object)
        padded[:, 1:-1, 1:-1] = v
        a = np.zeros((self.M, rows, columns), dtype=object) + exact["bias_2"][:, None, None]
        for p in range(3):
            for q in range(3):
                a = a + np.tensordot(exact["weight_2"][:, :, p, q], padded[:, p : p + rows, q : q + columns], 1)
        return np.searchsorted(exact["thresholds"].astype(np.int64), a.astype(np.int64), side="left")

"""Mutated files: each gives a FormatError or the exact image, in bounded time and memory.

By a seeded loop in a process of its own with a limit on its memory: two thousand by default, as many as MUTATIONS says
otherwise. Half are files as damage makes them; half get a fingerprint and a checksum that agree again, so that the
decoder itself has to cope. Of those some are images: a forged width that leaves the number of latents as it was crops
the image elsewhere, as a real one would.
"""

import json
import os
import subprocess
import sys

import pytest

from hyperprior.coding.codec import Codec
from tests.conftest import leaves, lively_model

SCRIPT = """
import json, random, resource, sys, time, zlib
import numpy as np
from hyperprior.coding.codec import Codec
from hyperprior.coding.container import FormatError
import torch

torch.set_num_threads(1)
codec = Codec.load(sys.argv[1])
files = [open(path, "rb").read() for path in sys.argv[3:]]
images = [codec.decompress(data) for data in files]
limit = 4 << 30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
rng = random.Random(0)
outcomes, slowest = {}, 0.0

def mutated(data):
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        kind = rng.randrange(5)
        at = rng.randrange(len(data)) if data else 0
        if kind == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2 and data:
            data[at:at + rng.randrange(1, 20)] = rng.randbytes(rng.randrange(20))
        elif kind == 3:
            other = rng.choice(files)
            data[at:] = other[rng.randrange(len(other)):]
        elif kind == 4 and data:
            data[rng.randrange(min(len(data), 20))] = rng.randrange(256)
    return bytes(data)

for number in range(int(sys.argv[2])):
    which = rng.randrange(len(files))
    data = mutated(files[which])
    resealed = number % 2 and len(data) > 12
    if resealed:
        data = b"HYP" + bytes([0x10 | data[3] & 1]) + codec.fingerprint + bytes(4) + data[12:]
        data = data[:8] + zlib.crc32(data[:8] + data[12:]).to_bytes(4, "little") + data[12:]
    start = time.perf_counter()
    try:
        image = codec.decompress(data)
        outcome = "another image" if any(image.shape == other.shape for other in images) else "another size"
        if any(np.array_equal(image, other) for other in images):
            outcome = "exact"
    except FormatError as error:
        assert "\\n" not in str(error), error
        outcome = type(error).__name__
    slowest = max(slowest, time.perf_counter() - start)
    key = ("resealed " if resealed else "") + outcome
    outcomes[key] = outcomes.get(key, 0) + 1
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"outcomes": outcomes, "slowest_s": slowest, "peak_mib": peak}))
"""


COUNT = int(os.environ.get("MUTATIONS", "2000"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["factorized", "hyperprior"])
def test_mutated_files_give_a_named_error_or_the_exact_image(tmp_path, name):
    codec = Codec.from_model(lively_model(name))
    codec.save(tmp_path / "codec.safetensors")
    paths = []
    for number, (size, coder) in enumerate([((40, 56), "range"), ((33, 17), "binary"), ((100, 90), "range")]):
        paths.append(tmp_path / f"{number}.hyp")
        paths[-1].write_bytes(codec.compress(leaves(*size, seed=number), coder))
    count = COUNT // 2
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "codec.safetensors"), str(count), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    print(name, done.stdout)
    result = json.loads(done.stdout)
    outcomes = result["outcomes"]
    assert result["peak_mib"] < 600  # of which torch alone takes half
    assert sum(outcomes.values()) == count
    # As damage comes: never another image.
    assert not {"another image", "another size"} & set(outcomes)
    assert outcomes["DamagedFileError"] > count / 4
    assert {"NotCompressedImageError", "LaterVersionError"} <= set(outcomes)
    # With the file's checksum forged, the 16 bits of the symbols' let one in 65,536 through.
    assert outcomes["resealed DamagedFileError"] > count / 4
    assert outcomes.get("resealed another image", 0) <= 1
    assert outcomes["resealed ImageSizeError"] > 0

"""Writes blocks.bin and blocks.json: random blocks of each type and the values that `gguf` gives them.

usage: python make_blocks.py      needs: pip install gguf

The blocks are random bytes, but for scales, whose f16 are kept finite (subnormal, zero and negative
ones among them). blocks.bin holds, for each type in the order of blocks.json, first the blocks and then
their values as f32.
"""
import json
import pathlib
import numpy as np
import gguf
from gguf import GGMLQuantizationType as T

here = pathlib.Path(__file__).parent
random = np.random.default_rng(20)
# type: (blocks, where its f16 lie)
types = {T.Q8_0: (6, [0]), T.Q4_0: (6, [0]), T.Q4_K: (3, [0, 2]), T.Q5_K: (3, [0, 2]), T.Q6_K: (3, [208])}
listed, data = [], b""
for kind, (n, halves) in types.items():
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    raw = random.integers(0, 256, (n, size), dtype=np.uint8)
    for at in halves:
        scales = (random.standard_normal(n) * 0.01).astype(np.float16)
        scales[0] = np.float16(3e-7) if at == 0 else np.float16(0)
        raw[:, at : at + 2] = scales.view(np.uint8).reshape(n, 2)
    values = gguf.quants.dequantize(raw, kind).astype(np.float32)
    assert values.shape == (n, columns)
    listed.append({"type": kind.name, "blocks": n, "columns": columns, "bytes": size, "at": len(data)})
    data += raw.tobytes() + values.tobytes()
(here / "blocks.bin").write_bytes(data)
(here / "blocks.json").write_text(json.dumps(listed, indent=1) + "\n")

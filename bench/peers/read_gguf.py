"""What Python's `gguf` finds in a file, as one JSON object: fields, tensors, hashes of their values.

usage: python read_gguf.py FILE.gguf      needs: pip install gguf
"""

import hashlib
import json
import sys

import gguf
import numpy as np

reader = gguf.GGUFReader(sys.argv[1])
fields = {}
for name, field in reader.fields.items():
    if name.startswith("GGUF."):
        continue
    types = [kind.name.lower() for kind in field.types]
    # JSON has no f32: as f64 they are exact.
    fields[name] = {"types": types, "value": field.contents()}
tensors = []
for tensor in reader.tensors:
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        values = np.ascontiguousarray(tensor.data, dtype=np.float32)
    else:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    tensors.append(
        {
            "name": tensor.name,
            "type": tensor.tensor_type.name,
            "shape": [int(n) for n in reversed(tensor.shape)],
            "offset": int(tensor.data_offset),
            "bytes": int(tensor.n_bytes),
            "values": hashlib.sha256(values.tobytes()).hexdigest(),
        }
    )
print(json.dumps({"fields": fields, "tensors": tensors}))

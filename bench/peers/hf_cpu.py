"""HF transformers on the CPU beside us, asked by lines on stdin as node_llama.mjs is.

usage: python hf_cpu.py MODEL_FOLDER THREADS DTYPE      needs torch and transformers
"""

import json
import sys
import time

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

transformers.logging.set_verbosity_error()
folder, threads, dtype = sys.argv[1:4]
torch.set_num_threads(int(threads))


class Clock(BaseStreamer):
    """When each token came; generate() puts the prompt first."""

    def __init__(self):
        self.times = []

    def put(self, _):
        self.times.append(time.perf_counter())

    def end(self):
        pass


started = time.perf_counter()
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
model.generation_config.eos_token_id = None
load_s = time.perf_counter() - started
name = f"transformers {transformers.__version__}"
print(json.dumps({"peer": name, "load_s": load_s}), flush=True)

for line in sys.stdin:
    asked = json.loads(line)
    prompt, n = asked["prompt"], asked["new_tokens"] + 1
    clock = Clock()
    ids = torch.tensor([prompt])
    began = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n,
        min_new_tokens=n,
        do_sample=False,
        streamer=clock,
    )
    first = clock.times[1]
    answer = {"prefill_s": first - began, "decode_s": clock.times[-1] - first}
    print(json.dumps({**answer, "tokens": out[0, len(prompt) :].tolist()}), flush=True)

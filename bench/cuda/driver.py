"""Loads kernels by the driver API, launches them, times them in CUDA graphs and writes JSON lines."""
import ctypes as C
import json
import os
import subprocess
import sys
import time
import torch

cuda = C.CDLL("libcuda.so.1")
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("CUDA_BUILD", os.path.join(ROOT, ".cuda-build"))
NVCC = ["nvcc", "-fatbin", "-std=c++17", "-O3", "-gencode", "arch=compute_90a,code=sm_90a",
        "-gencode", "arch=compute_80,code=compute_80"]
torch.cuda.init()
torch.zeros(1, device="cuda")
torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def ok(code, what):
    if code != 0:
        text = C.c_char_p()
        cuda.cuGetErrorString(code, C.byref(text))
        raise RuntimeError(f"{what}: {code} {text.value.decode() if text.value else ''}")


class Attr(C.Structure):
    _fields_ = [("id", C.c_int), ("pad", C.c_int), ("value", C.c_uint32 * 16)]


class Config(C.Structure):
    _fields_ = [("grid", C.c_uint * 3), ("block", C.c_uint * 3), ("smem", C.c_uint),
                ("stream", C.c_void_p), ("attrs", C.POINTER(Attr)), ("n_attrs", C.c_uint)]


class Module:
    """Compiled and loaded with the first kernel that is asked for."""

    def __init__(self, stem, folder="kernels"):
        self.stem, self.source = stem, os.path.join(ROOT, folder, stem + ".cu")
        self.handle, self.cache = None, {}

    def load(self):
        os.makedirs(BUILD, exist_ok=True)
        path = os.path.join(BUILD, self.stem + ".fatbin")
        if not os.path.exists(path):
            subprocess.run(NVCC + [self.source, "-o", path], check=True)
        self.image = open(path, "rb").read()
        self.handle = C.c_void_p()
        ok(cuda.cuModuleLoadData(C.byref(self.handle), self.image), f"load {self.stem}")

    def fn(self, name, smem=0):
        if self.handle is None:
            self.load()
        if name not in self.cache:
            f = C.c_void_p()
            ok(cuda.cuModuleGetFunction(C.byref(f), self.handle, name.encode()), f"find {name}")
            self.cache[name] = [f, 0]
        f, have = self.cache[name]
        if smem > 48 * 1024 - 16384 and smem > have:
            ok(cuda.cuFuncSetAttribute(f, 8, smem), f"shared memory of {name}: {smem}")
            self.cache[name][1] = smem
        return f

    def launch(self, name, grid, block, args, smem=0, cluster=0, pdl=True):
        f = self.fn(name, smem)
        attrs, n = (Attr * 2)(), 0
        if pdl:
            attrs[n].id, attrs[n].value[0] = 6, 1
            n += 1
        if cluster:
            attrs[n].id = 4
            attrs[n].value[0], attrs[n].value[1], attrs[n].value[2] = cluster, 1, 1
            n += 1
        g = tuple(grid) + (1,) * (3 - len(grid))
        cfg = Config((C.c_uint * 3)(*g), (C.c_uint * 3)(block, 1, 1), smem,
                     torch.cuda.current_stream().cuda_stream, attrs, n)
        ptrs = (C.c_void_p * len(args))(*[C.cast(C.byref(a), C.c_void_p) for a in args])
        ok(cuda.cuLaunchKernelEx(C.byref(cfg), f, ptrs, None), f"launch {name}")


def clusters(module, name, size, block, smem):
    """Clusters of a kernel that the chip runs at once."""
    attrs = (Attr * 1)()
    attrs[0].id = 4
    attrs[0].value[0], attrs[0].value[1], attrs[0].value[2] = size, 1, 1
    cfg = Config((C.c_uint * 3)(size * 256, 1, 1), (C.c_uint * 3)(block, 1, 1), smem, None, attrs, 1)
    n = C.c_int()
    ok(cuda.cuOccupancyMaxActiveClusters(C.byref(n), module.fn(name, smem), C.byref(cfg)), "clusters")
    return n.value


def ptr(t):
    return t.data_ptr() if t is not None else None


def tensor_map(t, rows, cols, box_cols, box_rows, stride=None, swizzle=3, item=2, once=False):
    """A map of a matrix of bf16 (or bytes) with `rows` x `cols` whose rows lie `stride` elements apart. `once`: as
    read once, so that L2 asks for no more than what is missing."""
    stride = (stride or t.stride(0)) * item
    return encode(t, t.data_ptr(), (cols, rows), (stride,), (box_cols, box_rows), swizzle, item, 0 if once else 3)


def pairs_map(one, other):
    """Of two matrices alike, eight rows of each in turns, those first that lie first in memory; boxes of 128 bytes x 64
    rows of each."""
    (rows, cols), item = one.shape, one.element_size()
    first, last = sorted((one.data_ptr(), other.data_ptr()))
    strides = (cols * item, last - first, cols * item * 8)
    return encode((one, other), first, (cols, 8, 2, rows // 8), strides, (128 // item, 8, 2, 8), 3, item, 0)


def encode(keep, at, sizes, strides, box, swizzle, item, promotion):
    raw = (C.c_uint8 * 256)()
    base = C.addressof(raw)
    aligned = (base + 63) & ~63
    m = (C.c_uint8 * 128).from_buffer(raw, aligned - base)
    m.keep = (raw, keep)
    n = len(sizes)
    ok(cuda.cuTensorMapEncodeTiled(
        m, 9 if item == 2 else 0, n, C.c_void_p(at), (C.c_uint64 * n)(*sizes), (C.c_uint64 * (n - 1))(*strides),
        (C.c_uint32 * n)(*box), (C.c_uint32 * n)(*[1] * n), 0, swizzle, promotion, 0), "tensor map")
    return m


def graph_us(body, per_replay, replays=15):
    """Median microseconds of one of `per_replay` units of work that `body` enqueues."""
    s = torch.cuda.Stream()
    with torch.cuda.stream(s):
        body()
        torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g, stream=s):
            body()
        torch.cuda.synchronize()
        start = time.monotonic()
        while time.monotonic() - start < 0.03:  # clocks rise and caches settle
            g.replay()
            torch.cuda.synchronize()
        times = []
        for _ in range(replays):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            g.replay()
            b.record()
            b.synchronize()
            times.append(a.elapsed_time(b) * 1e3)
    times.sort()
    return times[len(times) // 2] / per_replay


def error(out, ref):
    """Relative error ||out - ref|| / ||ref||; infinite when anything is not finite."""
    out, ref = out.double(), ref.double()
    if not torch.isfinite(out).all():
        return float("inf")
    return ((out - ref).norm() / ref.norm().clamp_min(1e-30)).item()


FAILED = []
NAME = torch.cuda.get_device_name()
SMS = torch.cuda.get_device_properties(0).multi_processor_count
LOG = open(os.path.join(os.environ.get("OUT", "/tmp"), "results.jsonl"), "a")


def check(name, err, limit):
    good = err <= limit
    if not good:
        FAILED.append(name)
    if not good or os.environ.get("VERBOSE"):
        print(f"{'ok  ' if good else 'FAIL'} {name}: {err:.2e} (limit {limit:.0e})", flush=True)
    return good


def report(what, **fields):
    line = {"what": what, **{k: round(v, 4) if isinstance(v, float) else v for k, v in fields.items()},
            "gpu": NAME, "commit": os.environ.get("COMMIT", ""),
            "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])}
    LOG.write(json.dumps(line) + "\n")
    LOG.flush()
    print(what, " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in fields.items()),
          flush=True)


def peaks():
    """Read and copy bandwidth in TB/s, of this run."""
    m = Module("peaks")
    n = 1 << 31
    a = torch.randint(0, 255, (n,), dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    out = torch.zeros(1, device="cuda")
    best = 0
    for per_sm in (2, 4, 32):
        us = graph_us(lambda: m.launch("peak_read", (SMS * per_sm,), 512,
                      [C.c_void_p(ptr(a)), C.c_size_t(n // 16), C.c_void_p(ptr(out))], pdl=False), 1)
        best = max(best, n / us / 1e6)
    copies = [graph_us(lambda: b.copy_(a), 1)]
    for per_sm in (2, 4, 32):
        copies.append(graph_us(lambda: m.launch("peak_copy", (SMS * per_sm,), 512,
                      [C.c_void_p(ptr(a)), C.c_void_p(ptr(b)), C.c_size_t(n // 16)], pdl=False), 1))
    copy = 2 * n / min(copies) / 1e6
    report("peaks", read_tbs=best, copy_tbs=copy)
    return best, copy


def finish(what):
    torch.cuda.synchronize()
    print(f"{what}: {len(FAILED)} failed {FAILED[:12]}", flush=True)
    sys.exit(1 if FAILED else 0)

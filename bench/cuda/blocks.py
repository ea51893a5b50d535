"""linear with weights in blocks: against float64 of their exact values, then shares of read bandwidth and rates."""
import ctypes as C
import sys
import numpy as np
import torch
import blocks_reference as R
import driver as d
import linear_gemm
from rowwise import norm as rms

DECODE, GEMM, PLAIN = d.Module("blocks_decode"), d.Module("blocks_gemm_sm90"), d.Module("blocks")
ROOM = 115712
STEP_BYTES = {k: step // cols * size * 16 for k, (cols, size, step) in R.TYPES.items()}
STAGES = {"q8_0": (4, 3), "q4_0": (8, 4), "q4_k": (4, 3), "q5_k": (3, 2), "q6_k": (3, 2)}
MODES = {"": 0, "rms": 1, "gated": 2, "swiglu": 0, "rms_swiglu": 1}
P, I = C.c_void_p, C.c_int


class Args(C.Structure):
    _fields_ = [(n, P) for n in ("w", "w2", "x", "gate", "norm", "bias", "residual", "out")] + \
               [(n, I) for n in ("batch", "n", "k", "x_stride", "gate_stride", "residual_stride", "out_stride")] + \
               [("eps", C.c_float), ("mode", I), ("swiglu", I), ("out_f32", I)]


class GemmArgs(C.Structure):
    _fields_ = [(n, P) for n in ("w", "w2", "bias", "residual", "out")] + \
               [(n, I) for n in ("m", "n", "k", "residual_stride", "out_stride", "swiglu", "out_f32")]


class RowsArgs(C.Structure):
    _fields_ = [(n, P) for n in ("table", "ids", "out")] + [(n, I) for n in ("width", "table_rows", "out_stride")]


class LinearArgs(C.Structure):
    _fields_ = [(n, P) for n in ("x", "w", "bias", "residual", "out")] + \
               [(n, I) for n in ("m", "n", "k", "x_stride", "residual_stride", "out_stride")]


def smem(kind, batch, k, several):
    """Dynamic bytes, and whether two blocks fit a multiprocessor."""
    bytes_ = 8 * STEP_BYTES[kind] * STAGES[kind][several] + batch * (2 * k + k // 4)
    return bytes_, bytes_ + (10496 if several else 2688) <= ROOM


def gemv(kind, x, w, n, out, mode="", w2=None, gate=None, norm=None, bias=None, residual=None, several=None):
    batch, k = x.shape
    several = batch > 1 or not smem(kind, 1, k, False)[1] if several is None else several
    a = Args(d.ptr(w), d.ptr(w2), d.ptr(x), d.ptr(gate), d.ptr(norm), d.ptr(bias), d.ptr(residual), d.ptr(out), batch, n, k,
             x.stride(0), gate.stride(0) if gate is not None else 0, residual.stride(0) if residual is not None else 0,
             out.stride(0), 1e-5, MODES[mode], int(w2 is not None), int(out.dtype == torch.float32))
    DECODE.launch(f"blocks_decode_{'rows_' if several else ''}{kind}", (min((n + 15) // 16, 2 * d.SMS),), 256, [a],
                  smem(kind, batch, k, several)[0])


def tokens_for(m, n, swiglu):
    tiles = (n + (63 if swiglu else 127)) // (64 if swiglu else 128)
    if m > 128:
        return 256 if tiles * ((m + 255) // 256) >= d.SMS * 3 // 4 else 128
    return next(t for t in (16, 64, 128) if t >= m)


def prepare(kind, x, w, n, out, w2=None, bias=None, residual=None, tokens=None):
    m, k = x.shape
    t = tokens or tokens_for(m, n, w2 is not None)
    a = GemmArgs(d.ptr(w), d.ptr(w2), d.ptr(bias), d.ptr(residual), d.ptr(out), m, n, k,
                 residual.stride(0) if residual is not None else 0, out.stride(0), int(w2 is not None), int(out.dtype == torch.float32))
    ranks, rows = 1 if t == 256 else 4, 64 if w2 is not None else 128
    grid = (ranks * ((n + rows - 1) // rows), (m + t - 1) // t)
    maps = [d.tensor_map(x, m, k, 64, t)]
    return lambda: GEMM.launch(f"blocks_gemm_{t}_{kind}", grid, 384 if t >= 128 else 288, maps + [a],
                               231424 if t >= 128 else 114688, cluster=4 if ranks == 4 else 0)


def rnd(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def nan(*shape, f32=False):
    return torch.full(shape, float("nan"), device="cuda", dtype=torch.float32 if f32 else torch.bfloat16)


def test(small):
    rng = np.random.default_rng(torch.seed() % 1000003)
    silu = torch.nn.functional.silu
    for kind in R.TYPES:
        for n, k in ((8, 256), (40, 768), (264, 2560)) + (() if small else ((4096, 4096), (1032, 14336))):
            blocks = [R.random_blocks(kind, n, k, rng) for _ in range(2)]
            w, w2 = [torch.from_numpy(R.pack(kind, b)).cuda() for b in blocks]
            v, v2 = [torch.from_numpy(R.values(kind, b)).cuda() for b in blocks]
            table = nan(n + 2, k, f32=True)
            ids = torch.tensor(list(range(n)) + [-1, n], device="cuda", dtype=torch.int32)
            PLAIN.launch(f"block_rows_{kind}_f32", (n + 2,), 128, [RowsArgs(d.ptr(w), d.ptr(ids), d.ptr(table), k, n, k)])
            torch.cuda.synchronize()
            d.check(f"{kind} values {n}x{k}", 0.0 if torch.equal(table[:n], v) and not table[n:].any() else 1.0, 0)
            norm, bias = torch.rand(k, device="cuda") + 0.5, torch.randn(n, device="cuda")
            full, gates, residuals = rnd(300, k), rnd(300, k), rnd(300, n)
            v, v2 = v.double(), v2.double()
            nrm = lambda y: y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
            for batch in (1, 2, 3, 4):
                x, gate, res = full[:batch], gates[:batch], residuals[:batch]
                x64, n64 = x.double(), nrm(x.double())
                cases = {"plain": (dict(bias=bias, residual=res), x64 @ v.T + bias.double() + res.double()),
                         "rms": (dict(mode="rms", norm=norm), n64 @ v.T),
                         "swiglu": (dict(mode="rms_swiglu", norm=norm, w2=w2), silu(n64 @ v.T) * (n64 @ v2.T)),
                         "gated": (dict(mode="gated", norm=norm, gate=gate, residual=res),
                                   nrm(x64 * silu(gate.double())) @ v.T + res.double()),
                         "f32": (dict(), x64 @ v.T)}
                for name, (kw, ref) in cases.items():
                    out = nan(batch, n, f32=name == "f32")
                    if smem(kind, batch, k, batch > 1)[0] > 220000:
                        continue
                    gemv(kind, x, w, n, out, **kw)
                    torch.cuda.synchronize()
                    limit = 3e-6 if name == "f32" else 1e-2 if n * batch > 64 else 0.1
                    d.check(f"{kind} gemv {name} {batch} {n}x{k}", d.error(out, ref), limit)
                    one = torch.full_like(out[:1], float("nan"))
                    kw1 = {a: (b[batch - 1:batch] if a in ("gate", "residual") else b) for a, b in kw.items()}
                    gemv(kind, x[batch - 1:batch], w, n, one, **kw1)
                    torch.cuda.synchronize()
                    d.check(f"{kind} gemv {name} same bits {batch} {n}x{k}", 0.0 if torch.equal(one[0], out[-1]) else 1.0, 0)
            one, bits = full.double() @ v.T, {}
            two = silu(one) * (full.double() @ v2.T)
            for m, tokens in ((1, None), (5, 16), (17, 64), (64, 64), (65, 128), (129, 128), (129, 256), (300, 256)):
                cases = {"plain": (dict(bias=bias, residual=residuals[:m]), one[:m] + bias.double() + residuals[:m].double()),
                         "swiglu": (dict(w2=w2), two[:m]), "f32": (dict(), one[:m])}
                for name, (kw, ref) in cases.items():
                    out = nan(m, n, f32=name == "f32")
                    prepare(kind, full[:m], w, n, out, tokens=tokens, **kw)()
                    torch.cuda.synchronize()
                    d.check(f"{kind} gemm {name} {m}/{tokens} {n}x{k}", d.error(out, ref), 1e-2 if m * n > 64 else 0.1)
                    key = (name, tokens == 256)
                    bits.setdefault(key, out[0].clone())
                    d.check(f"{kind} gemm {name} {m}/{tokens} {n}x{k} same bits", 0.0 if torch.equal(bits[key], out[0]) else 1.0, 0)
            if n * k < 1e6:
                for x, f32 in ((full[:70], True), (full[:70], False), (full[:70].float(), True)):
                    res, out = residuals[:70].to(x.dtype), nan(70, n, f32=f32)
                    names = ["f32" if t.dtype == torch.float32 else "bf16" for t in (x, out)]
                    PLAIN.launch(f"blocks_linear_{names[0]}_{kind}_{names[1]}", ((n + 63) // 64, 2), 256,
                                 [LinearArgs(d.ptr(x), d.ptr(w), d.ptr(bias), d.ptr(res), d.ptr(out), 70, n, k, k, n, n)])
                    torch.cuda.synchronize()
                    d.check(f"{kind} plain {names} {n}x{k}", d.error(out, one[:70] + bias.double() + res.double()), 3e-6 if f32 else 5e-3)


SHAPES = {"in_proj": (16768, 4096), "out_proj": (4096, 8192), "gate_up": (14336, 4096), "down": (4096, 14336),
          "lm_head": (128256, 4096)}
KINDS = ("q8_0", "q4_k", "q6_k", "q5_k", "q4_0")


def bench_decode(read, batches=(1, 2, 4)):
    for kind in KINDS:
        for batch in batches if kind in ("q8_0", "q4_k") else (1,):
            for name, (n, k) in SHAPES.items():
                one = R.bytes_of(kind, n, k) * (2 if name == "gate_up" else 1)
                copies = max(2, int(4e8 // one))
                ws = [R.random_packed(kind, n, k, torch) for _ in range(copies * (2 if name == "gate_up" else 1))]
                x, gate, norm, res = rnd(batch, k), rnd(batch, k), torch.rand(k, device="cuda") + 0.5, rnd(batch, n)
                out = torch.empty(batch, n, device="cuda", dtype=torch.float32 if name == "lm_head" else torch.bfloat16)
                kw = {"in_proj": dict(mode="rms", norm=norm), "out_proj": dict(mode="gated", norm=norm, gate=gate, residual=res),
                      "gate_up": dict(mode="rms_swiglu", norm=norm), "down": dict(residual=res), "lm_head": dict(mode="rms", norm=norm)}[name]
                if smem(kind, batch, k, batch > 1)[0] > 220000:
                    continue

                def go():
                    for i in range(copies):
                        gemv(kind, x, ws[i], n, out, w2=ws[copies + i] if name == "gate_up" else None, **kw)
                us = d.graph_us(go, copies, 9)
                d.report(f"blocks_decode {kind} {name}", batch=batch, us=us, share_read=one / us / 1e6 / read)
                del ws


def bench_gemm(read, rows=(16, 64, 128, 256, 512, 2048, 8192)):
    for kind in ("q4_k", "q8_0", "q6_k"):
        for m in rows:
            if kind == "q6_k" and m not in (16, 2048):
                continue
            total, floor, peer = 0, 0, 0
            for name in ("in_proj", "out_proj", "gate_up", "down"):
                n, k = SHAPES[name]
                two = name == "gate_up"
                one = R.bytes_of(kind, n, k) * (2 if two else 1)
                copies = max(1, int(4e8 // one)) if m <= 512 else 1
                ws = [R.random_packed(kind, n, k, torch) for _ in range(copies * (2 if two else 1))]
                x, out, res = rnd(m, k), torch.empty(m, n, device="cuda", dtype=torch.bfloat16), rnd(m, n)
                go = [prepare(kind, x, ws[i], n, out, w2=ws[copies + i] if two else None, residual=None if two else res) for i in range(copies)]
                reps = max(1, 8 // copies) if m < 8192 else 1
                us = d.graph_us(lambda: [f() for _ in range(reps) for f in go], copies * reps, 7)
                flop = 2.0 * m * n * k * (2 if two else 1)
                extra = {}
                if kind == "q4_k" and m >= 128:
                    w = [rnd(n, k, scale=k ** -0.5) for _ in range(2)]
                    other = linear_gemm.prepare(x, w[0], out, w2=w[1] if two else None, residual=None if two else res)
                    extra["bf16_us"] = d.graph_us(lambda: [other() for _ in range(reps)], reps, 7)
                    peer += extra["bf16_us"]
                total, floor = total + us, floor + max(one / read / 1e6, flop / 7.5e8)
                d.report(f"blocks_gemm {kind} {name}", rows=m, us=us, tflops=flop / us / 1e6, share_read=one / us / 1e6 / read, **extra)
                del ws, go
            d.report(f"blocks_gemm {kind} layer", rows=m, us=total, over_floor=total / floor, bf16_us=peer)


def q4_k_m(n, k, count=[0]):
    """Our mix: more bits around the state space and for every other down projection."""
    count[0] += k == 14336
    return {(16768, 4096): "q5_k", (4096, 8192): "q6_k", (128256, 4096): "q6_k"}.get((n, k), "q6_k" if k == 14336 and count[0] % 2 else "q4_k")


def bench_step(read, copy):
    """The whole decode step of decode_step.py with weights in blocks."""
    import decode_step
    kinds, bf16_linear, bf16_weight = {}, decode_step.linear, decode_step.weight

    def linear(x, w, out, norm=None, gate=None, w2=None, residual=None, spare=None):
        kind, n = kinds[w.data_ptr()]
        several = x.shape[0] > 1
        if x.shape[0] <= 4 and smem(kind, x.shape[0], x.shape[1], several)[0] < 220000:
            mode = ("gated" if gate is not None else "rms" if norm is not None else "") + ("_swiglu" if w2 is not None else "")
            return gemv(kind, x, w, n, out, mode=mode.strip("_"), w2=w2, gate=gate, norm=norm, residual=residual)
        if norm is not None:
            rms(x, norm, spare[:, :x.shape[1]], gate)
            x = spare[:, :x.shape[1]]
        prepare(kind, x, w, n, out, w2=w2, residual=residual)()
    for name, choose in (("q8_0", lambda n, k: "q8_0"), ("q4_k_m", q4_k_m)):
        def weight(n, k):
            kind = choose(n, k)
            w = R.random_packed(kind, n, k, torch)
            kinds[w.data_ptr()] = (kind, n)
            return w
        decode_step.weight, decode_step.linear = weight, linear
        m = decode_step.Model()
        for batch in (1, 4, 16, 64):
            m.states(batch)
            us = d.graph_us(m.step, 1)
            state = batch * 29 * 128 * 65536
            floor = m.bytes / read / 1e6 + state / copy / 1e6
            d.report(f"decode step {name}", batch=batch, us=us, tokens_s=batch / us * 1e6, weights_gb=m.bytes / 1e9,
                     over_floor=us / floor, share_read=(m.bytes + state) / us / 1e6 / read)
        del m
    decode_step.weight, decode_step.linear = bf16_weight, bf16_linear


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        read, copy = d.peaks()
        bench_step(read, copy)
        bench_decode(read)
        bench_gemm(read)
    d.finish("blocks")

"""linear in e4m3: rows and their scales, products against float64 of the rounded values, then beside bf16."""
import ctypes as C
import sys
import torch
import driver as d
import linear_batch
import linear_gemm
from rowwise import norm as rms

M, BATCH = d.Module("linear_fp8_sm90"), d.Module("linear_fp8_batch_sm90")
P, I = C.c_void_p, C.c_int


class Args(C.Structure):
    _fields_ = linear_gemm.Args._fields_ + [(n, P) for n in ("x_scale", "w_scale", "w2_scale")]


class RowsArgs(C.Structure):
    _fields_ = [(n, P) for n in ("x", "gate", "norm", "out", "scale")] + \
               [(n, I) for n in ("k", "x_stride", "gate_stride", "out_stride", "mode")] + [("eps", C.c_float)]


def rows(x, out, scale, norm=None, gate=None):
    mode = 2 if gate is not None else 1 if norm is not None else 0
    thousands = 4 if x.shape[1] <= 4096 else 8 if x.shape[1] <= 8192 else 16
    M.launch(f"fp8_rows_{thousands}_sm90", (x.shape[0],), 256 if thousands == 4 else 512,
             [RowsArgs(d.ptr(x), d.ptr(gate), d.ptr(norm), d.ptr(out), d.ptr(scale), x.shape[1], x.stride(0),
                       gate.stride(0) if gate is not None else 0, out.stride(0), mode, 1e-5)])


def to_rows(x, **kw):
    out, scale = torch.empty(x.shape, device="cuda", dtype=torch.uint8), torch.empty(x.shape[0], device="cuda")
    rows(x, out, scale, **kw)
    return out, scale


def value(pair):
    return pair[0].view(torch.float8_e4m3fn).double() * pair[1].double()[:, None]


def prepare(x, w, out, w2=None, bias=None, residual=None, wide=None, split=1):
    m, k, n = x[0].shape[0], x[0].shape[1], w[0].shape[0]
    if wide is None:
        wide = ((m + 255) // 256) * ((n * (2 if w2 is not None else 1) + 255) // 256) >= d.SMS // 2 * 3 // 4
    box = 128 if wide or split > 1 else 64
    two = w2 if w2 is not None else w
    maps = [d.tensor_map(x[0], m, k, 128, 128, item=1), d.tensor_map(w[0], n, k, 128, box, item=1),
            d.tensor_map(two[0], n, k, 128, box, item=1)]
    a = Args(d.ptr(bias), d.ptr(residual), m, n, k, residual.stride(0) if residual is not None else 0,
             d.ptr(out), out.stride(0), d.ptr(linear_gemm.SUMS), d.ptr(x[1]), d.ptr(w[1]), d.ptr(two[1]))
    tile = box if w2 is not None else 2 * box
    pairs = ((m + 255) // 256) * ((n + tile - 1) // tile) * split
    kind = f"split_{split}" if split > 1 else 2 * box
    if kind == 256 and w2 is None and bias is None and residual is None:
        kind = "256_bare"
    name = f"gemm_{'swiglu_' if w2 is not None else ''}{kind}_e4m3"
    keep = (x, w, two)
    return lambda: keep and M.launch(name, (2 * min(d.SMS // 2, pairs),), 384, maps + [a], 230656, cluster=2)


class BatchArgs(C.Structure):
    _fields_ = [("of", linear_batch.Args)] + [(n, P) for n in ("x_scale", "w_scale", "w2_scale")]


def batch(x, w, out, tokens, w2=None, bias=None, residual=None):
    two = w2 if w2 is not None else w
    of = linear_batch.arguments(x[0], w[0], out, None if w2 is None else w2[0], bias, residual)
    a = BatchArgs(of, d.ptr(x[1]), d.ptr(w[1]), d.ptr(two[1]))
    maps = linear_batch.maps(x[0], w[0], None if w2 is None else w2[0], tokens)
    name = f"fp8_batch_{'swiglu_' if w2 is not None else ''}{tokens}"
    BATCH.launch(name, (d.SMS,), linear_batch.threads(tokens), maps + [a], linear_batch.smem(tokens) + 8 * tokens)


def rnd(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def test(small):
    silu = torch.nn.functional.silu
    for m, k in ((1, 8), (3, 4096), (5, 1136), (4, 8192), (2, 16384)):
        x, gate, norm = rnd(m, k), rnd(m, k), torch.rand(k, device="cuda") + 0.5
        nrm = lambda y: y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
        for name, kw, ref in (("plain", dict(), x.double()), ("rms", dict(norm=norm), nrm(x.double())),
                              ("gated", dict(norm=norm, gate=gate), nrm(x.double() * silu(gate.double())))):
            got = to_rows(x, **kw)
            d.check(f"rows {name} {m}x{k}", d.error(value(got), ref), 4e-2)
            top = ref.abs().amax(-1) / 448
            d.check(f"rows {name} scale {m}x{k}", d.error(got[1], top), 5e-3)
            again = to_rows(x[-1:], **{a: b[-1:] if a == "gate" else b for a, b in kw.items()})
            d.check(f"rows {name} same bits {m}x{k}", 0.0 if torch.equal(got[0][-1], again[0][0]) else 1.0, 0)
    zero = to_rows(torch.zeros(2, 64, device="cuda").bfloat16())
    d.check("rows of zeros", 0.0 if not zero[0].any() and not zero[1].any() else 1.0, 0)
    for m, n, k in ((1, 8, 16), (2, 200, 80), (130, 264, 4096), (257, 136, 1136)) + (() if small else ((1134, 4096, 14336),)):
        x, w, w2 = to_rows(rnd(m, k)), to_rows(rnd(n, k, scale=k ** -0.5)), to_rows(rnd(n, k, scale=k ** -0.5))
        bias, res = torch.randn(n, device="cuda"), rnd(m, n)
        one, two = value(x) @ value(w).T, value(x) @ value(w2).T
        for name, kw, ref in (("plain", dict(), one), ("all", dict(bias=bias, residual=res), one + bias.double() + res.double()),
                              ("swiglu", dict(w2=w2), silu(one) * two)):
            bits = []
            for wide in (True, False):
                out = torch.full((m, n), float("nan"), device="cuda", dtype=torch.bfloat16)
                prepare(x, w, out, wide=wide, **kw)()
                torch.cuda.synchronize()
                d.check(f"fp8 {name} {m}x{n}x{k} wide={wide}", d.error(out, ref), 8e-3)
                bits.append(out)
            d.check(f"fp8 {name} {m}x{n}x{k} other tile", 0.0 if torch.equal(*bits) else 1.0, 0)
            for split in linear_gemm.splits(m, n, k // 2) if name != "swiglu" else []:
                out = torch.full((m, n), float("nan"), device="cuda", dtype=torch.bfloat16)
                prepare(x, w, out, split=split, **kw)()
                torch.cuda.synchronize()
                d.check(f"fp8 split {split} {name} {m}x{n}x{k}", d.error(out, ref), 8e-3)
            bits = []
            for tokens in (8, 16, 32, 64, 128):
                out = torch.full((m, n), float("nan"), device="cuda", dtype=torch.bfloat16)
                batch(x, w, out, tokens, **kw)
                torch.cuda.synchronize()
                d.check(f"fp8 batch {name} {m}x{n}x{k} of {tokens}", d.error(out, ref), 8e-3)
                bits.append(out)
            same = all(torch.equal(bits[0], other) for other in bits[1:])
            d.check(f"fp8 batch {name} {m}x{n}x{k} other tile", 0.0 if same else 1.0, 0)
        if name == "swiglu" and k >= 4096:
            out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            prepare(x, w, out)()
            d.report("fp8 error", k=k, of_products=d.error(out, one), bf16_rounding=d.error(one.bfloat16(), one))


SHAPES = {"in_proj": (16768, 4096), "out_proj": (4096, 8192), "gate_up": (14336, 4096), "down": (4096, 14336)}


def bench():
    """A Mamba layer's products with what stands in front of each, e4m3 and bf16 in turn."""
    for m in (2048, 8192):
        total = [0, 0]
        for name, (n, k) in SHAPES.items():
            two, flop = name == "gate_up", 2.0 * m * n * k * (2 if name == "gate_up" else 1)
            x, gate, norm, xn = rnd(m, k), rnd(m, k), torch.rand(k, device="cuda") + 0.5, rnd(m, k)
            kw = {"out_proj": dict(norm=norm, gate=gate), "down": {}}.get(name, dict(norm=norm))
            w16 = [rnd(n, k, scale=k ** -0.5) for _ in range(2 if two else 1)]
            w8, x8 = [to_rows(w) for w in w16], to_rows(x)
            res, out = None if two else rnd(m, n), torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            g8 = prepare(x8, w8[0], out, w2=w8[1] if two else None, residual=res)
            g16 = linear_gemm.prepare(xn, w16[0], out, w2=w16[1] if two else None, residual=res)
            front8 = lambda: rows(x, x8[0], x8[1], **kw)
            front16 = lambda: rms(x, norm, xn, gate if name == "out_proj" else None) if kw else None
            us = [[], [], [], []]
            for _ in range(2):
                for i, go in enumerate((g8, g16, front8, front16)):
                    us[i].append(d.graph_us(lambda: [go() for _ in range(4)], 4, 7) if go is not front16 or kw else 0.0)
            us = [min(u) for u in us]
            total[0], total[1] = total[0] + us[0] + us[2], total[1] + us[1] + us[3]
            d.report(f"fp8 {name}", rows=m, us=us[0], tflops=flop / us[0] / 1e6, rows_us=us[2], bf16_us=us[1],
                     bf16_tflops=flop / us[1] / 1e6, bf16_norm_us=us[3], ratio=us[1] / us[0])
            del x, gate, xn, w16, w8, x8
        d.report("fp8 layer", rows=m, us=total[0], bf16_us=total[1], ratio=total[1] / total[0])


def bench_batch():
    """A batch's products: share of read bandwidth."""
    read, _ = d.peaks()
    for m in (16, 64, 128):
        for name, (n, k) in SHAPES.items():
            two = name == "gate_up"
            one = n * k * (2 if two else 1)
            copies = max(2, int(1.0e9 // one))
            ws = [to_rows(rnd(n, k, scale=k ** -0.5)) for _ in range(copies)]
            x, out = to_rows(rnd(m, k)), torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            us = d.graph_us(lambda: [batch(x, w, out, m, w2=ws[i - 1] if two else None) for i, w in enumerate(ws)], copies)
            d.report(f"fp8 batch {name}", rows=m, us=us, share_read=one / us / 1e6 / read)


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    if "batch" in sys.argv:
        bench_batch()
    d.finish("linear_fp8")

"""linear for many rows: against float64 at ugly sizes, then beside cuBLAS in the same run."""
import ctypes as C
import sys
import torch
import driver as d
import linear_batch

M = d.Module("linear_gemm_sm90")
SMEM = 230656


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("bias", "residual")] + \
               [(n, C.c_int) for n in ("m", "n", "k", "residual_stride")] + \
               [("out", C.c_void_p), ("out_stride", C.c_int), ("sums", C.c_void_p)]


SUMS = torch.empty(d.SMS // 2 * 2 * 128 * 256, device="cuda")


def prepare(x, w, out, w2=None, bias=None, residual=None, wide=None, parts=False, box=None, split=1):
    m, k, n = x.shape[0], x.shape[1], w.shape[0]
    if wide is None:  # narrow tiles where wide ones would leave clusters without work
        tiles = ((m + 255) // 256) * ((n * (2 if w2 is not None else 1) + 255) // 256)
        wide = tiles >= d.SMS // 2 * 3 // 4 and not parts
    box = box or (96 if parts and w2 is not None else 128 if wide or split > 1 else 64)
    maps = [d.tensor_map(x, m, k, 64, 128), d.tensor_map(w, n, k, 64, box),
            d.tensor_map(w2 if w2 is not None else w, n, k, 64, box)]
    a = Args(d.ptr(bias), d.ptr(residual), m, n, k, residual.stride(0) if residual is not None else 0,
             d.ptr(out), out.stride(0), d.ptr(SUMS))
    tile = box if w2 is not None else 2 * box
    pairs = ((m + 255) // 256) * ((n + tile - 1) // tile) * split
    kind = ("parts" if w2 is None else f"parts_{2 * box}") if parts else f"split_{split}" if split > 1 else 2 * box
    if kind == 256 and bias is None and residual is None and w2 is None and out.dtype == torch.bfloat16:
        kind = "256_bare"
    name = f"gemm_{'swiglu_' if w2 is not None else ''}{kind}_sm90_{'f32' if out.dtype == torch.float32 else 'bf16'}"
    return lambda: M.launch(name, (2 * min(d.SMS // 2, pairs),), 384, maps + [a], SMEM, cluster=2)


def splits(m, n, k):
    """The numbers of parts of k that all run at once."""
    tiles = ((m + 255) // 256) * ((n + 255) // 256)
    return [s for s in (2, 4) if tiles * s <= d.SMS // 2 and k >= 1024]


def rnd(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def test(small):
    shapes = [(1, 8, 8), (2, 200, 72), (129, 264, 128), (130, 256, 4096), (151, 1024, 200), (257, 136, 64),
              (200, 1000, 1096), (300, 520, 1032)]
    if not small:
        shapes += [(1134, 16768, 4096), (4128, 4096, 8192), (3, 4096, 14336), (2048, 4096, 14336)]
    for m, n, k in shapes:
        x, w, w2, res = rnd(m, k), rnd(n, k, scale=k ** -0.5), rnd(n, k, scale=k ** -0.5), rnd(m, n)
        bias = torch.randn(n, device="cuda")
        up = (lambda t: t.double()) if m * n * k < 4e9 else (lambda t: t.float())
        one = up(x) @ up(w).T
        cases = {"plain": (dict(), one), "bias residual": (dict(bias=bias, residual=res), one + up(bias) + up(res)),
                 "swiglu": (dict(w2=w2), torch.nn.functional.silu(one) * (up(x) @ up(w2).T))}
        for name, (kw, ref) in cases.items():
            out = torch.full((m, n), float("nan"), device="cuda", dtype=torch.bfloat16)
            prepare(x, w, out, **kw)()
            torch.cuda.synchronize()
            d.check(f"gemm {name} {m}x{n}x{k}", d.error(out, ref), 5e-3)
            again = torch.full_like(out, float("nan"))
            prepare(x, w, again, wide=False, **kw)()
            d.check(f"gemm {name} {m}x{n}x{k} other tile", 0.0 if torch.equal(out, again) else 1.0, 0)
            if name == "swiglu":
                again = torch.full_like(out, float("nan"))
                prepare(x, w, again, box=112, **kw)()
                d.check(f"gemm {name} {m}x{n}x{k} tile of 112", 0.0 if torch.equal(out, again) else 1.0, 0)
            again = torch.full_like(out, float("nan"))
            prepare(x, w, again, parts=True, **kw)()
            few = torch.full_like(out, float("nan"))
            linear_batch.prepare(x, w, few, **kw)()
            torch.cuda.synchronize()
            d.check(f"gemm parts {name} {m}x{n}x{k}", d.error(again, ref), 5e-3)
            d.check(f"gemm parts {name} {m}x{n}x{k} as a batch", 0.0 if torch.equal(again, few) else 1.0, 0)
            prepare(x, w, again.fill_(float("nan")), parts=True, box=64, **kw)()
            d.check(f"gemm parts {name} {m}x{n}x{k} other tile", 0.0 if torch.equal(again, few) else 1.0, 0)
            for split in splits(m, n, k) if name != "swiglu" else []:
                for _ in range(3):  # the counters go on
                    again = torch.full_like(out, float("nan"))
                    prepare(x, w, again, split=split, **kw)()
                torch.cuda.synchronize()
                d.check(f"gemm split {split} {name} {m}x{n}x{k}", d.error(again, ref), 5e-3)
                if split == 4:
                    d.check(f"gemm split {name} {m}x{n}x{k} as a batch", 0.0 if torch.equal(again, few) else 1.0, 0)
            if name != "swiglu":
                wide = torch.full((m, n), float("nan"), device="cuda")
                prepare(x, w, wide, wide=True, **kw)()
                torch.cuda.synchronize()
                d.check(f"gemm f32 {name} {m}x{n}x{k}", d.error(wide, ref), 1e-4 if m * n * k < 4e9 else 1e-3)
                d.check(f"gemm f32 {name} {m}x{n}x{k} rounded", 0.0 if torch.equal(wide.bfloat16(), out) else 1.0, 0)
            if m > 1:
                last = torch.full_like(out[:1], float("nan"))
                kw = {a: (b[m - 1:] if a == "residual" else b) for a, b in kw.items()}
                prepare(x[m - 1:].clone(), w, last, **kw)()
                d.check(f"gemm {name} {m}x{n}x{k} row alone", 0.0 if torch.equal(out[-1], last[0]) else 1.0, 0)


SHAPES = {"in_proj": (16768, 4096), "out_proj": (4096, 8192), "gate_up": (28672, 4096), "down": (4096, 14336),
          "lm_head": (128256, 4096)}


def bench():
    d.report("clusters at once", of_2=d.clusters(M, "gemm_256_sm90_bf16", 2, 384, SMEM))
    for m in [int(a) for a in sys.argv if a.isdigit()] or (128, 256, 512, 2048, 8192):
        for name, (n, k) in SHAPES.items():
            if m <= 512 and name == "lm_head":
                continue
            x, w = rnd(m, k), rnd(n, k, scale=k ** -0.5)
            out = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            flop, reps = 2.0 * m * n * k, max(1, min(8, int(4e12 // (2.0 * m * n * k))))
            go = prepare(x, w, out)
            rounds = []
            for _ in range(2):  # in turn, so that the clock treats both alike
                us = d.graph_us(lambda: [go() for _ in range(reps)], reps, 7)
                peer = d.graph_us(lambda: [torch.matmul(x, w.T, out=out) for _ in range(reps)], reps, 7)
                rounds.append((us, peer))
            us, peer = min(r[0] for r in rounds), min(r[1] for r in rounds)
            extra = {}
            if m <= 512:
                for wide in (False, True):
                    other = prepare(x, w, out, wide=wide)
                    extra["wide_us" if wide else "narrow_us"] = d.graph_us(lambda: [other() for _ in range(reps)], reps, 7)
            for parts in splits(m, n, k):
                split = prepare(x, w, out, split=parts)
                extra[f"split_{parts}_us"] = d.graph_us(lambda: [split() for _ in range(reps)], reps, 7)
            if m > 128:
                parts = prepare(x, w, out, parts=True)
                extra["parts_us"] = d.graph_us(lambda: [parts() for _ in range(reps)], reps, 7)
            if name == "gate_up" and m > 128:
                half = torch.empty(m, n // 2, device="cuda", dtype=torch.bfloat16)
                fused = prepare(x, w[:n // 2], half, w2=w[n // 2:])
                extra["fused_swiglu_us"] = d.graph_us(lambda: [fused() for _ in range(reps)], reps, 7)
                fused = prepare(x, w[:n // 2], half, w2=w[n // 2:], box=112)
                extra["fused_swiglu_224_us"] = d.graph_us(lambda: [fused() for _ in range(reps)], reps, 7)
            d.report(f"gemm {name}", rows=m, us=us, tflops=flop / us / 1e6, cublas_us=peer,
                     cublas_tflops=flop / peer / 1e6, ratio=peer / us, **extra)
            del x, w, out


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("linear_gemm")

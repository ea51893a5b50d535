"""linear for the rows of a decoded batch: against float64, the same bits at any batch, then time beside cuBLAS."""
import ctypes as C
import sys
import torch
import driver as d

M = d.Module("linear_batch_sm90")


SUMS = torch.empty(d.SMS * 4 * 128 * 128, device="cuda")


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("bias", "residual", "out", "sums")] + \
               [(n, C.c_int) for n in ("m", "n", "k", "residual_stride", "out_stride", "up_first", "pushes")]


def maps(x, w, w2, tokens):
    item, (m, k), n = x.element_size(), x.shape, w.shape[0]
    weights = d.tensor_map(w, n, k, 128 // item, 128, item=item, once=True) if w2 is None else d.pairs_map(w, w2)
    return [d.tensor_map(x, m, k, 128 // item, tokens, item=item), weights]


def arguments(x, w, out, w2=None, bias=None, residual=None):
    return Args(d.ptr(bias), d.ptr(residual), d.ptr(out), d.ptr(SUMS), x.shape[0], w.shape[0], x.shape[1],
                residual.stride(0) if residual is not None else 0, out.stride(0),
                int(w2 is not None and w2.data_ptr() < w.data_ptr()))


def smem(tokens):
    stage = 16384 + tokens * 128
    return 1536 + (224256 - 1536) // stage * stage


def threads(tokens):
    return 384 if tokens == 128 else 320


def blocks(m, n, two, tokens):
    """No more than the fullest needs beside it."""
    parts = 4 * -(-n // (64 if two else 128)) * -(-m // tokens)
    return -(-parts // -(-parts // d.SMS))


def prepare(x, w, out, w2=None, bias=None, residual=None, tokens=None):
    tokens = tokens or next((t for t in (8, 16, 32, 64) if t >= x.shape[0]), 128)
    args = maps(x, w, w2, tokens) + [arguments(x, w, out, w2, bias, residual)]
    name = f"linear_batch_{'swiglu_' if w2 is not None else ''}{tokens}_{'f32' if out.dtype == torch.float32 else 'bf16'}"
    grid = (blocks(x.shape[0], w.shape[0], w2 is not None, tokens),)
    return lambda: M.launch(name, grid, threads(tokens), args, smem(tokens))


def rnd(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def test(small):
    for n, k in ((8, 8), (200, 72), (136, 520)) + (() if small else ((4096, 8192), (1000, 14336))):
        full = rnd(257, k)
        w, w2, bias, res = rnd(n, k, scale=k ** -0.5), rnd(n, k, scale=k ** -0.5), torch.randn(n, device="cuda"), rnd(257, n)
        one = full.double() @ w.double().T
        two = torch.nn.functional.silu(one) * (full.double() @ w2.double().T)
        bits = {}
        for m in (1, 2, 3, 16, 20, 33, 64, 129, 257):
            cases = {"plain": (dict(bias=bias, residual=res[:m]), one[:m] + bias.double() + res[:m].double(), torch.bfloat16),
                     "swiglu": (dict(w2=w2), two[:m], torch.bfloat16), "f32": (dict(), one[:m], torch.float32)}
            for name, (kw, ref, dtype) in cases.items():
                out = torch.full((m, n), float("nan"), device="cuda", dtype=dtype)
                prepare(full[:m], w, out, **kw)()
                torch.cuda.synchronize()
                d.check(f"batch {name} {m}x{n}x{k}", d.error(out, ref), 1e-2 if m * n > 64 else 0.1)
                if name not in bits:
                    bits[name] = out[0].clone()
                d.check(f"batch {name} {m}x{n}x{k} same bits", 0.0 if torch.equal(bits[name], out[0]) else 1.0, 0)


SHAPES = {"in_proj": (16768, 4096), "out_proj": (4096, 8192), "gate_up": (14336, 4096), "down": (4096, 14336)}


def bench():
    read, _ = d.peaks()
    total = {}
    for m in [int(a) for a in sys.argv if a.isdigit()] or (1, 8, 16, 64, 128, 256):
        for name, (n, k) in SHAPES.items():
            two = name == "gate_up"
            one = n * k * 2 * (2 if two else 1)
            copies = max(2, int(1.0e9 // one))
            ws = [rnd(n, k, scale=k ** -0.5) for _ in range(copies)]
            ws2 = [rnd(n, k, scale=k ** -0.5) for _ in range(copies)] if two else [None] * copies
            x, out = rnd(m, k), torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
            go = [prepare(x, w, out, w2=w2) for w, w2 in zip(ws, ws2)]
            us = d.graph_us(lambda: [f() for f in go], copies)

            def cublas():
                for w, w2 in zip(ws, ws2):
                    torch.nn.functional.linear(x, w)
                    if two:
                        torch.nn.functional.linear(x, w2)
            peer = d.graph_us(cublas, copies)
            total[m] = total.get(m, 0) + us
            floor = max(one / read / 1e6, 2.0 * m * one / 2 / 7e8)
            d.report(f"linear_batch {name}", rows=m, us=us, share_read=one / us / 1e6 / read, cublas_us=peer, over_floor=us / floor)
            del ws, ws2, go
    for m, us in total.items():
        floor = 278.5e6 * 2 / read / 1e6
        d.report("linear_batch layer", rows=m, us=us, over_bytes=us / floor)


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("linear_batch")

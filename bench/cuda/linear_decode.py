"""linear for 1 to 8 rows: against float64 at ugly sizes, then share of read bandwidth beside cuBLAS."""
import ctypes as C
import sys
import torch
import driver as d
from rowwise import norm as rms

M = d.Module("linear_decode")
SLOTS, PER_SM = (5, 4), 2
ROOM = 115712 - 8832  # dynamic shared memory with which two blocks fit a multiprocessor


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("w", "w2", "x", "gate", "norm", "bias", "residual", "out")] + \
               [(n, C.c_int) for n in ("batch", "n", "k", "x_stride", "gate_stride", "residual_stride",
                                       "out_stride")] + [("eps", C.c_float)]


def gemv(x, w, out, mode="", w2=None, gate=None, norm=None, bias=None, residual=None, variant=None,
         per_sm=None):
    per_sm = per_sm or PER_SM
    batch, k, n = x.shape[0], w.shape[1], w.shape[0]
    f32 = out.dtype == torch.float32
    x_bytes = batch * (k + 32) * 2
    if variant is None:  # x staged in shared memory, or read from L2 as it goes (0)
        variant = next((s for s in SLOTS if x_bytes + s * 16384 <= ROOM), 0)
    middle = "" if not mode else "_" + mode
    kind = f"gemv_{variant}{middle}" if variant else f"gemv_6_direct{middle}"
    smem = variant * 16384 + x_bytes if variant else 6 * 16384
    rows = 8 if "swiglu" in mode else 16
    tiles = (n + rows - 1) // rows
    a = Args(d.ptr(w), d.ptr(w2), d.ptr(x), d.ptr(gate), d.ptr(norm), d.ptr(bias), d.ptr(residual),
             d.ptr(out), batch, n, k, x.stride(0), gate.stride(0) if gate is not None else 0,
             residual.stride(0) if residual is not None else 0, out.stride(0), 1e-5)
    M.launch(f"{kind}_{'f32' if f32 else 'bf16'}", (min(tiles, per_sm * d.SMS),), 256, [a], smem)


def rnd(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def test(small):
    torch.manual_seed(torch.seed() % 1000003)
    shapes = [(1, 8), (16, 64), (17, 72), (130, 200), (151, 1134 // 8 * 8), (129, 4096), (333, 7168)]
    if not small:
        shapes += [(4128, 8192), (1134, 14336), (4096, 4096)]
    for n, k in shapes:
        for batch in (1, 2, 3, 5, 8):
            x, gate, w, w2 = rnd(batch, k), rnd(batch, k), rnd(n, k, scale=k ** -0.5), rnd(n, k, scale=k ** -0.5)
            norm, bias, res = torch.rand(k, device="cuda") + 0.5, torch.randn(n, device="cuda"), rnd(batch, n)
            x64, w64 = x.double(), w.double()
            nrm = lambda v: v * (v.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
            cases = {
                "plain": (dict(bias=bias, residual=res), x64 @ w64.T + bias.double() + res.double()),
                "rms": (dict(mode="rms", norm=norm), nrm(x64) @ w64.T),
                "swiglu": (dict(mode="rms_swiglu", norm=norm, w2=w2),
                           torch.nn.functional.silu(nrm(x64) @ w64.T) * (nrm(x64) @ w2.double().T)),
                "gated": (dict(mode="gated", norm=norm, gate=gate, residual=res),
                          nrm(x64 * torch.nn.functional.silu(gate.double())) @ w64.T + res.double()),
                "plain swiglu": (dict(mode="swiglu", w2=w2), torch.nn.functional.silu(x64 @ w64.T) * (x64 @ w2.double().T)),
                "logits": (dict(mode="rms", norm=norm), nrm(x64) @ w64.T)}
            for name, (kw, ref) in cases.items():
                if kw.get("mode") and 65536 + batch * (k + 32) * 2 > ROOM:
                    continue
                out = torch.full((batch, n), float("nan"), device="cuda",
                                 dtype=torch.float32 if name == "logits" else torch.bfloat16)
                gemv(x, w, out, **kw)
                d.check(f"gemv {name} batch {batch} {n}x{k}", d.error(out, ref), 1e-2 if n * batch > 64 else 0.1)
                one = torch.full_like(out, float("nan"))
                kw1 = {a: (b[batch - 1:batch] if a in ("gate", "residual") else b) for a, b in kw.items()}
                gemv(x[batch - 1:batch], w, one[:1], **kw1)
                d.check(f"gemv {name} same bits {batch} {n}x{k}", 0.0 if torch.equal(one[0], out[-1]) else 1.0, 0)


SHAPES = {"in_proj": (16768, 4096), "out_proj": (4096, 8192), "gate_up": (14336, 4096), "down": (4096, 14336),
          "lm_head": (128256, 4096)}


def bench():
    read, _ = d.peaks()
    for batch in (1, 2, 4, 8):
        for name, (n, k) in SHAPES.items():
            one = n * k * 2 * (2 if name == "gate_up" else 1)
            copies = max(2, int(1.0e9 // one))
            ws = [rnd(n, k, scale=k ** -0.5) for _ in range(copies)]
            ws2 = [rnd(n, k, scale=k ** -0.5) for _ in range(copies)] if name == "gate_up" else [None] * copies
            x, gate, norm = rnd(batch, k), rnd(batch, k), torch.rand(k, device="cuda") + 0.5
            res = rnd(batch, n)
            out = torch.empty(batch, n, device="cuda", dtype=torch.float32 if name == "lm_head" else torch.bfloat16)
            kw = {"in_proj": dict(mode="rms", norm=norm), "out_proj": dict(mode="gated", norm=norm, gate=gate, residual=res),
                  "gate_up": dict(mode="rms_swiglu", norm=norm), "down": dict(residual=res),
                  "lm_head": dict(mode="rms", norm=norm)}[name]
            if batch > 2 and kw.get("mode"):  # the norm as a kernel of its own
                mode = "swiglu" if "swiglu" in kw["mode"] else ""
                xn, gt, residual = torch.empty_like(x), kw.get("gate"), kw.get("residual")

                def ours():
                    for w, w2 in zip(ws, ws2):
                        rms(x, norm, xn, gt)
                        gemv(xn, w, out, mode=mode, w2=w2, residual=residual)
            else:
                def ours():
                    for w, w2 in zip(ws, ws2):
                        gemv(x, w, out, w2=w2, **kw)

            def cublas():
                for w, w2 in zip(ws, ws2):
                    torch.nn.functional.linear(x, w)
                    if w2 is not None:
                        torch.nn.functional.linear(x, w2)
            us, peer = d.graph_us(ours, copies), d.graph_us(cublas, copies)
            report = dict(batch=batch, us=us, share_read=one / us / 1e6 / read, cublas_us=peer,
                          cublas_share=one / peer / 1e6 / read)
            d.report(f"linear_decode {name}", **report)
            del ws, ws2
    # A whole token's linears in a row: 6 layers of Mamba + MLP.
    x, big, hid = rnd(1, 4096), rnd(1, 16768), rnd(1, 14336)
    norm, norm2 = torch.rand(4096, device="cuda") + 0.5, torch.rand(8192, device="cuda") + 0.5
    L = 6
    layers = [(rnd(16768, 4096, scale=0.01), rnd(4096, 8192, scale=0.01), rnd(14336, 4096, scale=0.01),
               rnd(14336, 4096, scale=0.01), rnd(4096, 14336, scale=0.01)) for _ in range(L)]

    one = sum(w.numel() for w in layers[0]) * 2
    global SLOTS
    for slots, v, per in (((4,), None, 2), ((5, 4), None, 2)):
        SLOTS = slots

        def chain():
            for wi, wo, wg, wu, wd in layers:
                o = dict(variant=v, per_sm=per)
                gemv(x, wi, big, mode="rms", norm=norm, **o)
                gemv(big[:, 8192:16384], wo, x, mode="gated", norm=norm2, gate=big[:, :8192], residual=x, **o)
                gemv(x, wg, hid, mode="rms_swiglu", w2=wu, norm=norm, **o)
                gemv(hid, wd, x, residual=x, **o)
        us = d.graph_us(chain, L)
        d.report(f"linear_decode chain of a layer, slots {slots}, {per} blocks", us=us, share_read=one / us / 1e6 / read)


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("linear_decode")

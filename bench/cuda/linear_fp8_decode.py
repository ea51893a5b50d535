"""linear with e4m3 weights for 1 to 8 rows, and the plain way: against float64 of the exact weights at ugly sizes;
then share of read bandwidth."""
import ctypes as C
import sys
import torch
import driver as d
from linear_decode import rnd, SHAPES

M = d.Module("linear_fp8")
ROOM = 115712 - 8832
silu = torch.nn.functional.silu


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("w", "w2", "x", "gate", "norm", "bias", "residual", "out")] + \
               [(n, C.c_int) for n in ("batch", "n", "k", "x_stride", "gate_stride", "residual_stride", "out_stride")] + \
               [("eps", C.c_float)] + [(n, C.c_int) for n in ("mode", "swiglu", "out_f32")]


class Plain(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("x", "w", "bias", "residual", "out")] + \
               [(n, C.c_int) for n in ("m", "n", "k", "x_stride", "residual_stride", "out_stride")]


def weight(n, k):
    """Random e4m3 numbers of every exponent with scales, as they lie in memory, and what they mean."""
    numbers = torch.randint(0, 256, (n, k), device="cuda", dtype=torch.uint8)
    numbers[(numbers & 0x7f) == 0x7f] = 0
    scales = (torch.rand(n, device="cuda") + 0.5) * k ** -0.5 / 100
    whole = (n + 15) // 16 * 16
    memory = torch.zeros(whole * 4 + whole * k, device="cuda", dtype=torch.uint8)
    memory[:n * 4] = scales.view(torch.uint8)
    memory[whole * 4:whole * 4 + n * k] = numbers.flatten()
    return memory, (numbers.view(torch.float8_e4m3fn).double() * scales.double()[:, None])


def gemv(x, w, n, out, mode=0, w2=None, gate=None, norm=None, bias=None, residual=None):
    batch, k = x.shape
    x_bytes = batch * ((k + 1023) // 1024 * 1024 + 8) * 2
    slots = next((s for s in (5, 4) if x_bytes + s * 16384 <= ROOM), 0)
    name = f"fp8_decode_{slots}" if slots else "fp8_decode_6_direct"
    rows = 8 if w2 is not None else 16
    a = Args(d.ptr(w), d.ptr(w2), d.ptr(x), d.ptr(gate), d.ptr(norm), d.ptr(bias), d.ptr(residual), d.ptr(out),
             batch, n, k, x.stride(0), gate.stride(0) if gate is not None else 0,
             residual.stride(0) if residual is not None else 0, out.stride(0), 1e-5, mode, int(w2 is not None),
             int(out.dtype == torch.float32))
    smem = slots * 16384 + x_bytes if slots else 6 * 16384
    M.launch(name, (min((n + rows - 1) // rows, 2 * d.SMS),), 256, [a], smem)


def test(small):
    shapes = [(1, 16), (16, 64), (17, 80), (130, 208), (151, 1136), (129, 4096)] + ([] if small else [(1134, 14336)])
    for n, k in shapes:
        (w, w64), (w2, w264) = weight(n, k), weight(n, k)
        for batch in (1, 2, 3, 5, 8):
            x, gate, norm = rnd(batch, k), rnd(batch, k), torch.rand(k, device="cuda") + 0.5
            bias, res, x64 = torch.randn(n, device="cuda"), rnd(batch, n), x.double()
            nrm = lambda v: v * (v.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
            cases = {
                "plain": (dict(bias=bias, residual=res), x64 @ w64.T + bias.double() + res.double()),
                "rms": (dict(mode=1, norm=norm), nrm(x64) @ w64.T),
                "rms swiglu": (dict(mode=1, norm=norm, w2=w2), silu(nrm(x64) @ w64.T) * (nrm(x64) @ w264.T)),
                "gated": (dict(mode=2, norm=norm, gate=gate, residual=res), nrm(x64 * silu(gate.double())) @ w64.T + res.double()),
                "swiglu": (dict(w2=w2), silu(x64 @ w64.T) * (x64 @ w264.T)),
                "logits": (dict(), x64 @ w64.T)}
            for name, (kw, ref) in cases.items():
                if kw.get("mode") and 65536 + batch * ((k + 1023) // 1024 * 1024 + 8) * 2 > ROOM:
                    continue
                out = torch.full((batch, n), float("nan"), device="cuda", dtype=torch.float32 if name == "logits" else torch.bfloat16)
                gemv(x, w, n, out, **kw)
                limit = 1e-5 if name == "logits" else 1e-2 if n * batch > 64 else 0.1
                d.check(f"fp8 gemv {name} batch {batch} {n}x{k}", d.error(out, ref), limit)
                one = torch.full_like(out, float("nan"))
                kw1 = {a: (b[batch - 1:batch] if a in ("gate", "residual") else b) for a, b in kw.items()}
                gemv(x[batch - 1:batch], w, n, one[:1], **kw1)
                d.check(f"fp8 gemv {name} same bits {batch} {n}x{k}", 0.0 if torch.equal(one[0], out[-1]) else 1.0, 0)
    for m, n, k in ((1, 1, 1), (3, 130, 151), (129, 65, 1134)):
        for T, OUT, tag in ((torch.float32, torch.float32, "f32_f32"), (torch.bfloat16, torch.float32, "bf16_f32"), (torch.bfloat16, torch.bfloat16, "bf16_bf16")):
            w, w64 = weight(n, k)
            x, bias, res = torch.randn(m, k, device="cuda").to(T), torch.randn(n, device="cuda"), torch.randn(m, n, device="cuda").to(T)
            out = torch.full((m, n), float("nan"), device="cuda", dtype=OUT)
            M.launch(f"fp8_linear_{tag}", ((n + 63) // 64, (m + 63) // 64), 256,
                     [Plain(d.ptr(x), d.ptr(w), d.ptr(bias), d.ptr(res), d.ptr(out), m, n, k, k, n, n)])
            torch.cuda.synchronize()
            d.check(f"fp8 plain {tag} {m}x{n}x{k}", d.error(out, x.double() @ w64.T + bias.double() + res.double()),
                    1e-5 if OUT == torch.float32 else 5e-3)


def bench():
    read, _ = d.peaks()
    for batch in (1, 2, 8):
        for name, (n, k) in SHAPES.items():
            two = name == "gate_up"
            one = n * k * (2 if two else 1)
            copies = max(2, int(1.0e9 // one))
            ws = [weight(n, k)[0] for _ in range(copies)]
            ws2 = [weight(n, k)[0] if two else None for _ in range(copies)]
            x, gate, norm, res = rnd(batch, k), rnd(batch, k), torch.rand(k, device="cuda") + 0.5, rnd(batch, n)
            out = torch.empty(batch, n, device="cuda", dtype=torch.bfloat16)
            kw = {"in_proj": dict(mode=1, norm=norm), "out_proj": dict(mode=2, norm=norm, gate=gate, residual=res),
                  "gate_up": dict(mode=1, norm=norm), "down": dict(residual=res), "lm_head": dict()}[name]
            if batch > 2 and "mode" in kw:
                kw = dict(residual=kw.get("residual"))
            us = d.graph_us(lambda: [gemv(x, w, n, out, w2=w2, **kw) for w, w2 in zip(ws, ws2)], copies)
            d.report(f"linear_fp8_decode {name}", batch=batch, us=us, share_read=one / us / 1e6 / read)
            del ws, ws2


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("linear_fp8_decode")

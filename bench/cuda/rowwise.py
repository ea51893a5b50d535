"""conv1d, norms, qkv_rope: against float64, then share of copy bandwidth."""
import ctypes as C
import sys
import torch
import driver as d

CONV, NORM, ROPE = d.Module("conv1d"), d.Module("norm"), d.Module("rope")
silu = torch.nn.functional.silu


class ConvArgs(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("x", "out", "w", "bias", "state", "seq_of_token", "seq_start", "past_len",
                                          "slots")] + [("slot_stride", C.c_longlong)] + \
               [(n, C.c_int) for n in ("rows", "channels", "x_stride", "out_stride", "activation", "width", "sequences",
                                         "keeps", "run")]


class NormArgs(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("x", "gate", "weight", "out")] + \
               [(n, C.c_int) for n in ("width", "groups", "x_stride", "gate_stride", "out_stride")] + [("eps", C.c_float)]


class RopeArgs(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("qkv", "cos", "sin", "q_out", "k_pages", "v_pages", "seq_of_token",
                                          "seq_start", "past_len", "pages")] + [("page_stride", C.c_longlong)] + \
               [(n, C.c_int) for n in ("heads", "kv_heads", "head_dim", "freqs", "stride", "q_stride", "cos_stride",
                                         "sin_stride", "max_pages")]


def packed(lens, past):
    dev = "cuda"
    return dict(start=torch.tensor([0] + lens, device=dev).cumsum(0).int(), past=torch.tensor(past, device=dev).int(),
                of=torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(lens)).int().to(dev),
                slots=torch.randperm(len(lens), device=dev).int(), lens=lens)


def conv(p, which, width, x, out, w, b, state, keeps=False, run=None):
    rows, ch = x.shape
    run = run or (48 if rows >= 4096 else 24 if rows >= 1024 else 16)
    a = ConvArgs(d.ptr(x), d.ptr(out), d.ptr(w), d.ptr(b), d.ptr(state), d.ptr(p["of"]), d.ptr(p["start"]),
                 d.ptr(p["past"]), d.ptr(p["slots"]), state.stride(0), rows, ch, x.stride(0),
                 out.stride(0) if out is not None else 0, 1, width, len(p["lens"]), keeps, run)
    grid = ((ch + 127) // 128 * ((rows + 4 * run - 1) // (4 * run)),) if which == "" else ((ch // (4 if which == "_update" else 1) + 255) // 256, len(p["lens"]))
    CONV.launch(f"conv1d{which}_w{width}_bf16", grid, 128 if which == "" else 256, [a])


def test_conv(small):
    for lens, past, ch in (([1], [0], 8), ([2, 0, 1, 33, 3], [0] * 5, 264), ([63, 0, 66], [0] * 3, 1032), ([2, 0, 1, 33], [5, 0, 1, 2], 264), ([31, 65, 3, 1], [0, 3, 0, 129], 1032)) + \
            (() if small else (([1134, 151, 2, 129, 2680], [0, 64, 2, 1, 0], 8448),)):
        for width in (2, 3, 4):
            p = packed(lens, past)
            wide = torch.randn(sum(lens), ch + 16, device="cuda").bfloat16()
            x, w = wide[:, 8:8 + ch], torch.randn(ch, width, device="cuda") * 0.5
            b, state = torch.randn(ch, device="cuda"), torch.randn(len(lens), width, ch, device="cuda")
            ref, new = torch.zeros(sum(lens), ch, dtype=torch.float64, device="cuda"), state.double()
            row = 0
            for s, n in enumerate(lens):
                slot, pa = p["slots"][s].item(), past[s]
                old = torch.stack([new[slot, (pa - k) % width] if pa >= k else torch.zeros_like(new[slot, 0])
                                   for k in range(width, 0, -1)])
                full = torch.cat([old, x[row:row + n].double()])
                for t in range(n):
                    ref[row + t] = b.double() + (full[t + 1:t + 1 + width] * w.double().T).sum(0)
                if n:
                    for k in range(1, width + 1):
                        new[slot, (pa + n - k) % width] = full[-k]
                row += n
            out = torch.full((sum(lens), ch), float("nan"), device="cuda", dtype=torch.bfloat16)
            start = state.clone()
            keeps = not any(past)
            conv(p, "", width, x, out, w, b, state, keeps)
            d.check(f"conv1d {lens} w{width}", d.error(out, silu(ref)), 4e-3)
            for run in (8, 16, 24, 48):
                other, kept = torch.full_like(out, float("nan")), start.clone()
                conv(p, "", width, x, other, w, b, kept, keeps, run)
                same = torch.equal(other, out) and torch.equal(kept, state)
                d.check(f"conv1d {lens} w{width} runs of {run}, same bits", 0.0 if same else 1.0, 0)
            if not keeps:
                conv(p, "_state", width, x, out, w, b, state)
            d.check(f"conv1d_state {lens} w{width}", d.error(state, new), 1e-6)
            if all(n == 1 for n in lens):
                out.fill_(float("nan"))
                conv(p, "_update", width, x, out, w, b, start)
                d.check(f"conv1d_update {lens} w{width}", d.error(out, silu(ref)), 4e-3)
                d.check(f"conv1d_update state {lens} w{width}", d.error(start, new), 1e-6)


def norm(x, w, out, gate=None, groups=1):
    a = NormArgs(d.ptr(x), d.ptr(gate), d.ptr(w), d.ptr(out), x.shape[1], groups, x.stride(0),
                 gate.stride(0) if gate is not None else 0, out.stride(0), 1e-5)
    pieces = next(p for p in (1, 2, 4, 8) if p * 2048 >= x.shape[1] // groups)
    NORM.launch(f"rms_norm_{'gated_' if gate is not None else ''}{pieces}_bf16", (x.shape[0], groups), 256, [a])


def test_norm():
    for rows, width, groups in ((1, 8, 1), (3, 48, 2), (130, 1136, 1), (151, 4096, 1), (129, 8192, 2), (70, 8192, 1), (5, 14336, 1)):
        wide = torch.randn(rows, 2 * width, device="cuda").bfloat16()
        x, gate, w = wide[:, :width], wide[:, width:], torch.rand(width, device="cuda") + 0.5
        for g in (None, gate):
            v = x.double() * (silu(g.double()) if g is not None else 1)
            grouped = v.view(rows, groups, -1)
            ref = (grouped * (grouped.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).view(rows, width) * w.double()
            out = torch.full((rows, width), float("nan"), device="cuda", dtype=torch.bfloat16)
            norm(x, w, out, g, groups)
            d.check(f"rms_norm gated={g is not None} {rows}x{width}/{groups}", d.error(out, ref), 4e-3)


def tables(pos, freq):
    """cos and sin of every position."""
    angle = pos.double()[:, None] * freq.double()
    return angle.cos().float(), angle.sin().float()


def rope(p, qkv, turns, q, kp, vp, pages, heads, kvh, hd):
    cos, sin = turns
    a = RopeArgs(d.ptr(qkv), d.ptr(cos), d.ptr(sin), d.ptr(q), d.ptr(kp), d.ptr(vp), d.ptr(p["of"]), d.ptr(p["start"]),
                 d.ptr(p["past"]), d.ptr(pages), kp.stride(0), heads, kvh, hd, cos.shape[1], qkv.stride(0), q.stride(0),
                 cos.stride(0), sin.stride(0), pages.shape[1])
    ROPE.launch("qkv_rope_bf16", (qkv.shape[0],), 128, [a])


def test_rope():
    for lens, past, heads, kvh, hd, f in (([1], [0], 4, 2, 128, 32), ([65, 1, 130, 2], [0, 63, 5, 126], 8, 2, 128, 32),
                                          ([3, 70], [0, 64], 4, 4, 16, 8), ([5, 2], [1, 2], 4, 1, 32, 16)):
        p = packed(lens, past)
        T, n = sum(lens), len(lens)
        qkv = torch.randn(T, (heads + 2 * kvh) * hd, device="cuda").bfloat16()
        pos = torch.cat([torch.arange(a, a + b) for a, b in zip(past, lens)]).int().cuda()
        freq = 1.0 / (10000 ** (torch.arange(f, device="cuda") / f))
        pages = torch.randperm(n * 4, device="cuda").int().view(n, 4)
        kp = torch.full((n * 4, kvh, 64, hd), 7.0, device="cuda", dtype=torch.bfloat16)
        vp = kp.clone()
        ang = pos.double()[:, None] * freq.double()
        x = qkv.double().view(T, heads + 2 * kvh, hd)
        cos, sin = ang.cos()[:, None], ang.sin()[:, None]
        rot = torch.cat([x[..., :f] * cos - x[..., f:2 * f] * sin, x[..., f:2 * f] * cos + x[..., :f] * sin, x[..., 2 * f:]], -1)
        rk, rv = kp.double(), vp.double()
        row = 0
        for s in range(n):
            for i in range(lens[s]):
                at = past[s] + i
                pg = pages[s, at // 64].item()
                if at % 64 == 0:
                    rk[pg] = 0
                    rv[pg] = 0
                rk[pg, :, at % 64] = rot[row, heads:heads + kvh]
                rv[pg, :, at % 64] = x[row, heads + kvh:]
                row += 1
        q = torch.full((T, heads * hd), float("nan"), device="cuda", dtype=torch.bfloat16)
        rope(p, qkv, tables(pos, freq), q, kp, vp, pages, heads, kvh, hd)
        d.check(f"rope q {lens}", d.error(q.view(T, heads, hd), rot[:, :heads]), 4e-3)
        d.check(f"rope k {lens}", d.error(kp, rk), 4e-3)
        d.check(f"rope v {lens}", d.error(vp, rv), 1e-6)


def bench():
    _, copy = d.peaks()
    for T in (2048, 8192, 32768):
        p = packed([T], [0])
        w, b = torch.randn(8448, 4, device="cuda"), torch.randn(8448, device="cuda")
        state = torch.zeros(1, 4, 8448, device="cuda")
        n = max(1, 16384 // T)
        xs = [torch.randn(T, 16768, device="cuda").bfloat16()[:, 8192:8192 + 8448] for _ in range(n)]
        outs = [torch.empty(T, 8448, device="cuda", dtype=torch.bfloat16) for _ in range(n)]
        us = d.graph_us(lambda: [conv(p, "", 4, x, o, w, b, state, True) for x, o in zip(xs, outs)], n)
        d.report("conv1d", rows=T, us=us, share_copy=T * 8448 * 4 / us / 1e6 / copy)
        del xs, outs
    for batch in (1, 64, 256):
        p = packed([1] * batch, [9] * batch)
        n = 16
        xs = [torch.randn(batch, 8448, device="cuda").bfloat16() for _ in range(n)]
        out = torch.empty_like(xs[0])
        states = [torch.zeros(batch, 4, 8448, device="cuda") for _ in range(n)]
        us = d.graph_us(lambda: [conv(p, "_update", 4, x, out, w, b, s) for x, s in zip(xs, states)], n)
        d.report("conv1d_update", batch=batch, us=us)
        del xs, states
    for rows, width, gated in ((1, 4096, False), (8192, 4096, False), (1, 8192, True), (8192, 8192, True)):
        n = 4 if rows > 1 else 16
        xs = [torch.randn(rows, width, device="cuda").bfloat16() for _ in range(n)]
        gs = [torch.randn(rows, width, device="cuda").bfloat16() for _ in range(n)] if gated else [None] * n
        outs = [torch.empty_like(x) for x in xs]
        wt = torch.rand(width, device="cuda")
        us = d.graph_us(lambda: [norm(x, wt, o, g) for x, g, o in zip(xs, gs, outs)], n)
        d.report("rms_norm" + ("_gated" if gated else ""), rows=rows, us=us,
                 share_copy=rows * width * (6 if gated else 4) / us / 1e6 / copy)


if __name__ == "__main__":
    if "test" in sys.argv:
        test_conv("small" in sys.argv)
        test_norm()
        test_rope()
    if "bench" in sys.argv:
        bench()
    d.finish("rowwise")

"""The plain twins: every one against float64 in f32 and bf16, at dimensions that no fast kernel takes."""
import ctypes as C
import sys
import torch
import driver as d
from rowwise import ConvArgs, NormArgs, packed

M, EMBEDDING = d.Module("reference"), d.Module("embedding")
silu = torch.nn.functional.silu
P, I, L, F = C.c_void_p, C.c_int, C.c_longlong, C.c_float


def struct(pointers, longs, ints, floats):
    return type("Args", (C.Structure,), {"_fields_": [(n, P) for n in pointers.split()] + [(n, L) for n in longs.split()] +
                                         [(n, I) for n in ints.split()] + [(n, F) for n in floats.split()]})


Linear = struct("x w bias residual out", "", "m n k x_stride residual_stride out_stride", "")
Rows = struct("table ids out", "", "width table_rows table_stride out_stride", "")
Element = struct("a b out", "", "width a_stride b_stride out_stride mode", "")
Scan = struct("x b c dt a_log d dt_bias state seq_start past_len slots y", "slot_stride",
              "x_stride b_stride c_stride dt_stride y_stride heads groups head_dim state_dim", "dt_min dt_max")
Attention = struct("q k_pages v_pages out seq_of_token seq_start past_len pages", "page_stride",
                   "heads kv_heads head_dim q_stride out_stride max_pages", "scale")


class ScanRef(Scan):
    _fields_ = [("sampling", C.c_void_p)]


def test():
    for dtype, tag, tol in ((torch.float32, "f32", 3e-6), (torch.bfloat16, "bf16", 5e-3)):
        def rnd(*s):
            return torch.randn(*s, device="cuda").to(dtype)

        def nan(*s):
            return torch.full(s, float("nan"), device="cuda", dtype=dtype)

        def run(name, grid, block, a):
            M.launch(f"{name}_{tag}", grid, block, [a])
            torch.cuda.synchronize()
        for m, n, k in ((1, 1, 1), (3, 130, 151), (129, 65, 1134)):
            x, w, b, r, out = rnd(m, k), rnd(n, k), torch.randn(n, device="cuda"), rnd(m, n), nan(m, n)
            run(f"linear_ref_{tag}_{tag}", ((n + 63) // 64, (m + 63) // 64), 256,
                Linear(d.ptr(x), d.ptr(w), d.ptr(b), d.ptr(r), d.ptr(out), m, n, k, k, n, n))
            d.check(f"linear_ref {tag} {m}x{n}x{k}", d.error(out, x.double() @ w.double().T + b.double() + r.double()), tol)
        table, ids, out = rnd(50, 33), torch.tensor([3, 49, 0, 50, -1], device="cuda").int(), nan(5, 33)
        EMBEDDING.launch(f"rows_{tag}_{tag}", (5,), 128, [Rows(d.ptr(table), d.ptr(ids), d.ptr(out), 33, 50, 33, 33)])
        torch.cuda.synchronize()
        d.check(f"rows {tag}", d.error(out, torch.cat([table[[3, 49, 0]], torch.zeros(2, 33, device="cuda", dtype=dtype)])), 0)
        a, b = rnd(3, 300), rnd(3, 300)
        x, y = a.double(), b.double()
        for mode, ref in enumerate((x + y, x * y, silu(x), silu(x) * y)):
            out = nan(3, 300)
            run("element_ref", (2, 3), 256, Element(d.ptr(a), d.ptr(b), d.ptr(out), 300, 300, 300, 300, mode))
            d.check(f"element_ref {tag} {mode}", d.error(out, ref), tol)
        for rows, width, groups in ((1, 1, 1), (5, 151 * 3, 3), (2, 9000, 1)):
            x, g, w = rnd(rows, width), rnd(rows, width), torch.rand(width, device="cuda") + 0.5
            for gate in (None, g):
                v = (x.double() * (silu(g.double()) if gate is not None else 1)).view(rows, groups, -1)
                ref = (v * (v.square().mean(-1, keepdim=True) + 1e-5).rsqrt()).view(rows, width) * w.double()
                out = nan(rows, width)
                run("norm_ref", (rows, groups), 256,
                    NormArgs(d.ptr(x), d.ptr(gate), d.ptr(w), d.ptr(out), width, groups, width, width, width, 1e-5))
                d.check(f"norm_ref {tag} {rows}x{width} gated={gate is not None}", d.error(out, ref), tol)
        lens, past, width, ch = [3, 0, 70, 1], [0, 2, 5, 1], 4, 131
        p = packed(lens, past)
        x, w, b, state = rnd(sum(lens), ch), torch.randn(ch, width, device="cuda"), torch.randn(ch, device="cuda"), \
            torch.randn(4, width, ch, device="cuda")
        new, ref, row = state.double(), [], 0
        for s, n in enumerate(lens):
            slot = p["slots"][s].item()
            old = torch.stack([new[slot, (past[s] - k) % width] if past[s] >= k else torch.zeros(ch, device="cuda").double()
                               for k in range(width, 0, -1)])
            full = torch.cat([old, x[row:row + n].double()])
            ref += [silu(b.double() + (full[t + 1:t + 1 + width] * w.double().T).sum(0)) for t in range(n)]
            for k in range(1, width + 1):
                if n:
                    new[slot, (past[s] + n - k) % width] = full[-k]
            row += n
        out = nan(sum(lens), ch)
        a = ConvArgs(d.ptr(x), d.ptr(out), d.ptr(w), d.ptr(b), d.ptr(state), d.ptr(p["of"]), d.ptr(p["start"]), d.ptr(p["past"]),
                    d.ptr(p["slots"]), width * ch, sum(lens), ch, ch, ch, 1, width, len(lens), 0)
        run("conv_ref", (2, sum(lens)), 128, a)
        d.check(f"conv_ref {tag}", d.error(out, torch.stack(ref)), tol)
        run("conv_state_ref", (2, 4), 128, a)
        d.check(f"conv_state_ref {tag}", d.error(state, new), 1e-6)
        heads, groups, hd, N = 6, 2, 24, 40
        x, B, Cm, dt = rnd(sum(lens), heads * hd), rnd(sum(lens), groups * N), rnd(sum(lens), groups * N), rnd(sum(lens), heads)
        A, D, bias = torch.rand(heads, device="cuda"), torch.randn(heads, device="cuda"), torch.randn(heads, device="cuda")
        state = torch.randn(4, heads, hd, N, device="cuda")
        new, ref, row = state.double(), [], 0
        dts = torch.nn.functional.softplus(dt.double() + bias.double())
        for s, n in enumerate(lens):
            slot = p["slots"][s].item()
            st = new[slot] if past[s] else torch.zeros_like(new[slot])
            for t in range(row, row + n):
                bt, ct = [v[t].double().view(groups, N).repeat_interleave(heads // groups, 0) for v in (B, Cm)]
                xt = x[t].double().view(heads, hd)
                st = st * torch.exp(-dts[t] * A.double().exp())[:, None, None] + (dts[t][:, None] * xt)[..., None] * bt[:, None]
                ref.append(((st @ ct[..., None])[..., 0] + D.double()[:, None] * xt).reshape(-1))
            if n:
                new[slot] = st
            row += n
        out = nan(sum(lens), heads * hd)
        run("scan_ref", (heads, 4, hd // 8), 256,
            ScanRef(*[d.ptr(v) for v in (x, B, Cm, dt, A, D, bias, state, p["start"], p["past"], p["slots"], out)], heads * hd * N,
                 heads * hd, groups * N, groups * N, heads, heads * hd, heads, groups, hd, N, 0.0, float("inf")))
        d.check(f"scan_ref {tag} y", d.error(out, torch.stack(ref)), tol)
        d.check(f"scan_ref {tag} state", d.error(state, new), 1e-5)
        heads, kvh, hd, T = 6, 2, 20, sum(lens)
        qkv = rnd(T, (heads + 2 * kvh) * hd)
        pages = torch.randperm(8, device="cuda").int().view(4, 2)
        kp, vp = rnd(8, kvh, 64, hd), rnd(8, kvh, 64, hd)
        ref = []
        for t in range(T):
            s = p["of"][t].item()
            n = past[s] + t - p["start"][s].item() + 1
            k, v = [z[pages[s].long()].transpose(1, 2).reshape(-1, kvh, hd)[:n].double().repeat_interleave(heads // kvh, 1)
                    for z in (kp, vp)]
            q = qkv[t].double().view(-1, hd)[:heads]
            w = (torch.einsum("hd,khd->hk", q, k) * 0.3).softmax(-1)
            ref.append(torch.einsum("hk,khd->hd", w, v).reshape(-1))
        out = nan(T, heads * hd)
        run("attention_ref", (T, heads), 32,
            Attention(*[d.ptr(v) for v in (qkv, kp, vp, out, p["of"], p["start"], p["past"], pages)], kp.stride(0),
                      heads, kvh, hd, qkv.stride(0), heads * hd, 2, 0.3))
        d.check(f"attention_ref {tag}", d.error(out, torch.stack(ref)), tol)


if __name__ == "__main__":
    if "test" in sys.argv:
        test()
    d.finish("reference")

"""attention over pages, many queries and one: against float64, then rates beside torch's."""
import ctypes as C
import sys
import torch
import driver as d

PRE, DEC, ANY = (d.Module(name) for name in ("attention_sm90", "attention_decode_sm90", "attention_decode"))
COMBINE = d.Module("attention_combine")
SMEM = 230912
SPAN = 512
DEC_SMEM = {rep: 5 * 32768 + rep * (4 * 256 + 8 * 132 * 4) + 1552 for rep in (1, 2, 4, 8)}


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("out", "seq_start", "past_len", "pages")] + \
               [(n, C.c_int) for n in ("heads", "kv_heads", "out_stride", "max_pages", "page_rows")] + \
               [("scale", C.c_float), ("tiles", C.c_int), ("seqs", C.c_int)]


class DecodeArgs(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("q", "k_pages", "v_pages", "out", "partial", "past_len", "pages")] + \
               [("page_stride", C.c_longlong)] + \
               [(n, C.c_int) for n in ("heads", "kv_heads", "q_stride", "out_stride", "max_pages", "max_splits")] + \
               [("scale", C.c_float), ("seqs", C.c_int)]


class CombineArgs(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("partial", "out", "past_len")] + \
               [(n, C.c_int) for n in ("heads", "kv_heads", "out_stride", "max_splits", "seqs")] + \
               [("scale", C.c_float)]


def setup(lens, past, heads, kvh, spread=1):
    dev = "cuda"
    total = [a + b for a, b in zip(lens, past)]
    max_pages = (max(total) + 63) // 64
    n = len(lens)
    count = sum((t + 63) // 64 for t in total)
    # k and v of this layer lie between others' in a page: the stride is wider than the data.
    pool = torch.zeros(count, spread * 2, kvh, 64, 128, device=dev, dtype=torch.bfloat16)
    kp, vp = pool[:, 0], pool[:, 1]
    pages = torch.zeros(n, max_pages, dtype=torch.int32)
    order, at = torch.randperm(count), 0
    for s, t in enumerate(total):
        m = (t + 63) // 64
        pages[s, :m] = order[at:at + m]
        at += m
    pages = pages.to(dev)
    for s, t in enumerate(total):
        m = (t + 63) // 64
        for pool_part in (kp, vp):
            v = torch.randn(m * 64, kvh, 128, device=dev)
            v[t:] = 0
            pool_part[pages[s, :m].long()] = v.view(m, 64, kvh, 128).transpose(1, 2).bfloat16()
    T = sum(lens)
    return dict(q=torch.randn(T, heads * 128 + 64, device=dev).bfloat16()[:, :heads * 128], kp=kp, vp=vp, pages=pages,
                start=torch.tensor([0] + lens, device=dev).cumsum(0).int(), past=torch.tensor(past, device=dev).int(),
                out=torch.full((T, heads * 128), float("nan"), device=dev, dtype=torch.bfloat16), lens=lens,
                total=total, heads=heads, kvh=kvh)


def prefill(p):
    kp, vp, q = p["kp"], p["vp"], p["q"]
    rows = (kp.shape[0] - 1) * (kp.stride(0) // 128) + kp.shape[1] * 64
    maps = [d.tensor_map(q, q.shape[0], p["heads"] * 128, 64, 64)] + \
           [d.tensor_map(t, rows, 128, 64, 64, stride=128) for t in (kp, vp)]
    tiles, seqs = (max(p["lens"]) + 127) // 128, len(p["lens"])
    a = Args(d.ptr(p["out"]), d.ptr(p["start"]), d.ptr(p["past"]), d.ptr(p["pages"]), p["heads"], p["kvh"],
             p["out"].stride(0), p["pages"].shape[1], kp.stride(0) // 128, 128 ** -0.5, tiles, seqs)
    PRE.launch("attention_sm90_bf16", (min(d.SMS, p["heads"] * tiles * seqs),), 384, maps + [a], SMEM)


def decode(p, hopper=True, many=None):
    """One token a sequence, by the kernel for Hopper or by the one for any card."""
    seqs, heads, kvh = len(p["lens"]), p["heads"], p["kvh"]
    splits, rep = (max(p["total"]) + SPAN - 1) // SPAN, heads // kvh
    if "partial" not in p:
        p["partial"] = torch.full((seqs, heads, splits, 130), float("nan"), device="cuda")
    a = DecodeArgs(d.ptr(p["q"]), d.ptr(p["kp"]), d.ptr(p["vp"]), d.ptr(p["out"]), d.ptr(p["partial"]),
                   d.ptr(p["past"]), d.ptr(p["pages"]), p["kp"].stride(0), heads, kvh, p["q"].stride(0),
                   p["out"].stride(0), p["pages"].shape[1], splits, 128 ** -0.5, seqs)
    if hopper:
        rows = (p["kp"].shape[0] - 1) * (p["kp"].stride(0) // 64) + kvh * 128
        maps = [d.tensor_map(p[t], rows, 64, 64, 128, stride=64, once=True) for t in ("kp", "vp")]
        DEC.launch(f"attention_decode_sm90_{rep}_bf16", (min(d.SMS, splits * kvh * seqs),), 288, maps + [a],
                   DEC_SMEM[rep])
    else:
        ANY.launch(f"attention_decode_{rep}_bf16", (splits, kvh, seqs), 128, [a], 49152)
    if splits == 1:
        return
    c = CombineArgs(d.ptr(p["partial"]), d.ptr(p["out"]), d.ptr(p["past"]), heads, kvh, p["out"].stride(0), splits,
                    seqs, 128 ** -0.5)
    if splits > 32 if many is None else many:
        COMBINE.launch("attention_combine_many_bf16", (heads * 4, seqs), 256, [c])
    else:
        COMBINE.launch("attention_combine_bf16", ((heads * seqs + 7) // 8,), 256, [c])


def reference(p):
    out, row, rep = [], 0, p["heads"] // p["kvh"]
    for s, n in enumerate(p["lens"]):
        t = p["total"][s]
        idx = p["pages"][s, :(t + 63) // 64].long()
        k, v = [x[idx].transpose(1, 2).reshape(-1, p["kvh"], 128)[:t].double().repeat_interleave(rep, 1) for x in (p["kp"], p["vp"])]
        q = p["q"][row:row + n].double().view(n, p["heads"], 128)
        sc = torch.einsum("qhd,khd->hqk", q, k) * 128 ** -0.5
        mask = torch.arange(t, device="cuda")[None, :] > torch.arange(t - n, t, device="cuda")[:, None]
        if n == 0:
            continue
        out.append(torch.einsum("hqk,khd->qhd", sc.masked_fill(mask, float("-inf")).softmax(-1), v).reshape(n, -1))
        row += n
    return torch.cat(out)


def test(small):
    cases = [([1], [0], 4, 1), ([64], [0], 4, 4), ([129, 2, 0, 63], [0, 100, 5, 64], 8, 2), ([1, 1, 1], [0, 700, 63], 8, 1)]
    if not small:
        cases += [([1134, 151, 130, 3], [0, 64, 1000, 128], 32, 8), ([4128], [0], 8, 2), ([300], [2000], 8, 4),
                  ([1] * 9, [0, 1, 511, 512, 513, 5000, 63, 64, 4127], 32, 8), ([200, 70], [63, 127], 8, 2)]
    for lens, past, heads, kvh in cases:
        p = setup(lens, past, heads, kvh, 2)
        ref = reference(p)
        prefill(p)
        torch.cuda.synchronize()
        d.check(f"attention {lens} past {past} heads {heads}/{kvh}", d.error(p["out"], ref), 6e-3)
        bits = p["out"].clone()
        p["out"].fill_(float("nan"))
        prefill(p)
        d.check(f"attention {lens} repeats", 0.0 if torch.equal(bits, p["out"]) else 1.0, 0)
        if all(n == 1 for n in lens):
            bits = []
            for i, (hopper, many) in enumerate(((True, False), (True, True), (False, False), (False, True))):
                p["out"].fill_(float("nan"))
                decode(p, hopper, many)
                torch.cuda.synchronize()
                d.check(f"attention_decode {past} heads {heads}/{kvh} round {i}", d.error(p["out"], ref), 6e-3)
                bits.append(p["out"].clone())
            for one, other in (bits[:2], bits[2:]):
                d.check("attention_combine, same bits", 0.0 if torch.equal(one, other) else 1.0, 0)
    test_steep()


def steep_rows(lens, past, heads, kvh):
    """A tenth of the rows has scores that leave what one maximum a row can bear; row 130 is NaN."""
    p = setup(lens, past, heads, kvh)
    count = sum(lens)
    steep = torch.rand(count, device="cuda") < 0.1
    p["q"][steep] *= 200
    p["q"][130] = float("nan")
    ref = reference(p)
    prefill(p)
    torch.cuda.synchronize()
    good = torch.arange(count, device="cuda") != 130
    what = f"attention {lens} past {past} heads {heads}/{kvh}"
    for name, rows in (("steep", steep & good), ("other", ~steep & good)):
        d.check(f"{what}, {name} rows", d.error(p["out"][rows], ref[rows]), 6e-3)
    d.check("attention of NaN", 0.0 if p["out"][130].isnan().all() else 1.0, 0)
    return p, steep, good


def test_steep():
    """Rows that are done again among others, whole and cut, beside calm rows and steep ones: the same bits."""
    steep_rows([300, 2, 0, 77], [200, 900, 5, 1000], 32, 8)
    steep_rows([131, 129], [1, 640], 4, 4)
    p, steep, good = steep_rows([1000], [0], 8, 2)
    q, calm = p["q"].clone(), good & ~steep
    p["q"][steep] /= 200
    alone = dict(p, out=torch.full_like(p["out"], float("nan")))
    prefill(alone)
    torch.cuda.synchronize()
    same = (alone["out"].view(torch.int16) == p["out"].view(torch.int16))[calm].all()
    d.check("attention of rows beside calm ones, same bits", 0.0 if same else 1.0, 0)
    p["q"].copy_(q)
    for a, b in ((0, 300), (300, 500), (500, 1000), (77, 78), (127, 770)):
        part = dict(p, q=p["q"][a:b], out=torch.full_like(p["out"][a:b], float("nan")), lens=[b - a],
                    start=torch.tensor([0, b - a], device="cuda").int(), past=torch.tensor([a], device="cuda").int())
        prefill(part)
        torch.cuda.synchronize()
        same = (part["out"].view(torch.int16) == p["out"][a:b].view(torch.int16))[good[a:b]].all()
        d.check(f"attention cut {a} to {b}, same bits", 0.0 if same else 1.0, 0)


def bench():
    read, _ = d.peaks()
    for T in () if "decode" in sys.argv else (2048, 8192, 32768):
        p = setup([T], [0], 32, 8)
        reps = max(1, 16384 // T)
        us = d.graph_us(lambda: [prefill(p) for _ in range(reps)], reps, 9)
        flop = 2.0 * 32 * 128 * T * T
        q = torch.randn(1, 32, T, 128, device="cuda").bfloat16()
        k = torch.randn(1, 8, T, 128, device="cuda").bfloat16()
        from torch.nn.attention import SDPBackend, sdpa_kernel
        peer = None
        try:
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                peer = d.graph_us(lambda: [torch.nn.functional.scaled_dot_product_attention(
                    q, k, k, is_causal=True, enable_gqa=True) for _ in range(reps)], reps, 9)
        except Exception as e:
            print("cudnn attention:", str(e)[:100])
        d.report("attention", rows=T, us=us, tflops=flop / us / 1e6, cudnn_tflops=flop / peer / 1e6 if peer else 0.0)
    for batch, ctx in ((1, 32768), (1, 4096), (1, 131072), (16, 4096), (64, 1024)):
        copies = max(2, int(6e8 // (batch * ctx * 4096)))
        ps = [setup([1] * batch, [ctx - 1] * batch, 32, 8) for _ in range(copies)]
        for hopper in (True, False):
            us = d.graph_us(lambda: [decode(p, hopper) for p in ps], copies)
            d.report("attention_decode", batch=batch, context=ctx, hopper=hopper, us=us,
                     share_read=batch * ctx * 4096 / us / 1e6 / read)
        del ps


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("attention")

"""ssm_scan: against a float64 recurrence, packed, resumed and cut; then time of one layer."""
import ctypes as C
import sys
import torch
import driver as d

M = d.Module("ssm_scan_sm90")
SMEM = 220416


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("dt", "a_log", "d", "dt_bias", "state", "seq_start", "past_len",
                                          "slots", "y")] + [("slot_stride", C.c_longlong)] + \
               [(n, C.c_int) for n in ("dt_stride", "y_stride", "heads", "groups")] + \
               [("dt_min", C.c_float), ("dt_max", C.c_float)]


def setup(lens, heads, groups, past=None, rows=None):
    total = sum(lens)
    rows = rows or total
    dev = "cuda"
    conv = heads * 64 + 2 * groups * 128
    p = dict(
        xbc=torch.randn(rows, conv, device=dev).bfloat16(), dt=torch.randn(rows, heads, device=dev).bfloat16(),
        a_log=torch.log(torch.rand(heads, device=dev) * 15 + 1), d=torch.randn(heads, device=dev),
        bias=torch.log(torch.expm1(torch.exp(torch.rand(heads, device=dev) * 4.6 - 6.9))),
        state=torch.randn(len(lens) + 1, heads, 64, 128, device=dev),
        seq=torch.tensor([0] + lens, device=dev).cumsum(0).int(),
        past=torch.tensor(past or [0] * len(lens), device=dev).int(),
        slots=torch.randperm(len(lens) + 1, device=dev)[:len(lens)].int(), heads=heads, groups=groups, lens=lens,
        y=torch.full((rows, heads * 64), float("nan"), device=dev, dtype=torch.bfloat16))
    p["xbc"][total:] = float("nan")
    p["dt"][total:] = float("nan")
    return p


def run(p):
    h, g, xbc = p["heads"], p["groups"], p["xbc"]
    rows = xbc.shape[0]
    mx = d.tensor_map(xbc, rows, h * 64, 64, 64)
    mb = d.tensor_map(xbc[:, h * 64:], rows, g * 128, 64, 64, stride=xbc.stride(0))
    mc = d.tensor_map(xbc[:, h * 64 + g * 128:], rows, g * 128, 64, 64, stride=xbc.stride(0))
    a = Args(*[d.ptr(p[k]) for k in ("dt", "a_log", "d", "bias", "state", "seq", "past", "slots", "y")],
             p["state"].stride(0), p["dt"].stride(0), p["y"].stride(0), h, g, 0.0, float("inf"))
    M.launch("ssd_sm90_bf16", (h, len(p["lens"])), 512, [mx, mb, mc, a], SMEM)


def reference(p):
    h, g, x = p["heads"], p["groups"], p["xbc"].double()
    y, state = torch.zeros_like(p["y"], dtype=torch.float64), p["state"].double()
    A = -torch.exp(p["a_log"].double())
    B = x[:, h * 64:h * 64 + g * 128].view(-1, g, 128).repeat_interleave(h // g, 1)
    Cm = x[:, h * 64 + g * 128:].view(-1, g, 128).repeat_interleave(h // g, 1)
    X = x[:, :h * 64].view(-1, h, 64)
    dt = torch.nn.functional.softplus(p["dt"].double() + p["bias"].double())
    decay = torch.exp(dt * A)
    row = 0
    for s, n in enumerate(p["lens"]):
        if n == 0:
            continue
        slot = p["slots"][s].item()
        st = state[slot] if p["past"][s] > 0 else torch.zeros_like(state[slot])
        for t in range(row, row + n):
            st = st * decay[t][:, None, None] + (dt[t][:, None] * X[t])[:, :, None] * B[t][:, None, :]
            y[t] = ((st @ Cm[t][:, :, None])[:, :, 0] + p["d"].double()[:, None] * X[t]).reshape(-1)
        state[slot] = st
        row += n
    return y, state


def test(small):
    cases = [([1], 4, 1, None), ([64], 4, 1, [64]), ([63, 0, 65], 4, 1, [0, 5, 128]),
             ([3, 129, 2], 8, 2, [0, 100, 63])]
    if not small:
        cases += [([130, 151, 1, 2, 3, 1134, 127, 128], 8, 1, [0, 64, 0, 7, 65, 0, 6400, 0]),
                  ([4128], 4, 1, None), ([300, 700], 128, 1, [0, 1])]
    for lens, heads, groups, past in cases:
        p = setup(lens, heads, groups, past, rows=sum(lens) + 70)
        ref_y, ref_state = reference(p)
        total = sum(lens)
        run(p)
        torch.cuda.synchronize()
        name = f"ssd {lens} h{heads}"
        d.check(name + " y", d.error(p["y"][:total], ref_y[:total]), 8e-3)
        d.check(name + " state", d.error(p["state"], ref_state), 4e-3)
        d.check(name + " no write past the end", 0.0 if p["y"][total:].isnan().all() else 1.0, 0)
    # One sequence cut at a multiple of 64, alone and packed: the same bits.
    p = setup([300], 8, 1)
    run(p)
    q = dict(p, state=torch.zeros_like(p["state"]), y=torch.full_like(p["y"], float("nan")))
    for a, b in ((0, 128), (128, 300)):
        part = dict(q, xbc=p["xbc"][a:b], dt=p["dt"][a:b], y=q["y"][a:b], lens=[b - a],
                    seq=torch.tensor([0, b - a], device="cuda").int(), past=torch.tensor([a], device="cuda").int())
        run(part)
    torch.cuda.synchronize()
    slot = p["slots"][0].item()
    d.check("ssd cut at 128, same bits", 0.0 if torch.equal(p["y"], q["y"]) else 1.0, 0)
    d.check("ssd cut at 128, same state", 0.0 if torch.equal(p["state"][slot], q["state"][slot]) else 1.0, 0)


def bench():
    _, copy = d.peaks()
    for heads, T in ((128, 2048), (128, 8192), (128, 32768), (64, 8192)):
        sets = [setup([T], heads, 1) for _ in range(max(1, min(3, 24576 // T)))]
        us = d.graph_us(lambda: [run(p) for p in sets], len(sets))
        floor = T * (heads * 64 * 4 + 512 + heads * 2) / copy / 1e6
        flop = T * heads * 57344
        d.report(f"ssm_scan {heads} heads, {T} tokens", us=us, tflops=flop / us / 1e6, floor_us=floor)
        del sets
    sets = [setup([512] * 16, 128, 1) for _ in range(3)]
    d.report("ssm_scan 16 x 512", us=d.graph_us(lambda: [run(p) for p in sets], 3))


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("ssm_scan")

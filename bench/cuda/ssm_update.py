"""ssm_update and its fused form: against float64, then share of copy bandwidth."""
import ctypes as C
import sys
import torch
import driver as d

M = d.Module("ssm_update")


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("x", "b", "c", "dt", "a_log", "d", "dt_bias", "state", "past_len", "slots",
                                          "y", "conv_state", "conv_w", "conv_b")] + \
               [(n, C.c_longlong) for n in ("slot_stride", "conv_slot_stride")] + \
               [(n, C.c_int) for n in ("x_stride", "b_stride", "c_stride", "dt_stride", "y_stride", "heads", "groups",
                                       "width", "conv_dim")] + [("dt_min", C.c_float), ("dt_max", C.c_float), ("sampling", C.c_void_p)]


def setup(batch, heads, groups, past=None):
    dev, conv = "cuda", heads * 64 + 2 * groups * 128
    return dict(
        xbc=torch.randn(batch, conv, device=dev).bfloat16(), dt=torch.randn(batch, heads, device=dev).bfloat16(),
        a_log=torch.log(torch.rand(heads, device=dev) * 15 + 1), d=torch.randn(heads, device=dev),
        bias=torch.log(torch.expm1(torch.exp(torch.rand(heads, device=dev) * 4.6 - 6.9))),
        state=torch.randn(batch, heads, 64, 128, device=dev), conv_state=torch.randn(batch, 4, conv, device=dev),
        w=torch.randn(conv, 4, device=dev) * 0.5, wb=torch.randn(conv, device=dev),
        past=torch.tensor(past or [7] * batch, device=dev).int(), slots=torch.randperm(batch, device=dev).int(),
        y=torch.full((batch, heads * 64), float("nan"), device=dev, dtype=torch.bfloat16), heads=heads, groups=groups)


def arguments(p):
    h, g, x = p["heads"], p["groups"], p["xbc"]
    b, c = x[:, h * 64:], x[:, h * 64 + g * 128:]
    return Args(*[d.ptr(t) for t in (x, b, c, p["dt"], p["a_log"], p["d"], p["bias"], p["state"], p["past"], p["slots"],
                                     p["y"], p["conv_state"], p["w"], p["wb"])],
                p["state"].stride(0), p["conv_state"].stride(0), x.stride(0), x.stride(0), x.stride(0), p["dt"].stride(0),
                p["y"].stride(0), h, g, 4, x.shape[1], 0.0, float("inf"))


def run(p, fused):
    name = "conv_ssm_update_bf16" if fused else "ssm_update_bf16"
    M.launch(name, (p["heads"], p["xbc"].shape[0]), 256, [arguments(p)])


def reference(p, fused):
    h, g, x, s = p["heads"], p["groups"], p["xbc"].double(), p["slots"].long()
    fresh = (p["past"] == 0)
    ring = p["conv_state"].double()
    if fused:
        taps = []
        for j in range(3):
            at = p["past"].long() - 3 + j
            v = ring[s, at % 4]
            taps.append(torch.where((at >= 0)[:, None], v, torch.zeros_like(v)))
        taps.append(x)
        new = ring.clone()
        for i in range(x.shape[0]):
            if fresh[i]:
                new[s[i]] = 0
            new[s[i], p["past"][i] % 4] = x[i]
        acc = p["wb"].double() + sum(p["w"].double()[:, j] * taps[j] for j in range(4))
        x = torch.nn.functional.silu(acc).bfloat16().double()
        ring = new
    X = x[:, :h * 64].view(-1, h, 64)
    B = x[:, h * 64:h * 64 + g * 128].view(-1, g, 128).repeat_interleave(h // g, 1)
    Cm = x[:, h * 64 + g * 128:].view(-1, g, 128).repeat_interleave(h // g, 1)
    dt = torch.nn.functional.softplus(p["dt"].double() + p["bias"].double())
    st = p["state"].double()
    old = torch.where(fresh[:, None, None, None], torch.zeros_like(st[s]), st[s])
    now = old * torch.exp(-dt * torch.exp(p["a_log"].double()))[:, :, None, None] + \
        (dt[:, :, None] * X)[..., None] * B[:, :, None, :]
    st[s] = now
    y = (now @ Cm[..., None])[..., 0] + p["d"].double()[None, :, None] * X
    return y.reshape(x.shape[0], -1), st, ring


def test(small):
    for batch, heads, groups, past in ((1, 4, 1, [0]), (3, 8, 2, [0, 1, 5]), (5, 16, 1, [2, 3, 4, 1000, 0])) + \
            (() if small else ((64, 128, 1, None), (257, 24, 3, None))):
        for fused in (False, True):
            p = setup(batch, heads, groups, past)
            y, st, ring = reference(p, fused)
            run(p, fused)
            torch.cuda.synchronize()
            name = f"ssm_update fused={fused} batch {batch} heads {heads}"
            d.check(name + " y", d.error(p["y"], y), 6e-3 if fused else 4e-3)
            d.check(name + " state", d.error(p["state"], st), 2e-3 if fused else 1e-5)
            if fused:
                d.check(name + " ring", d.error(p["conv_state"], ring), 1e-6)


def bench():
    _, copy = d.peaks()
    for batch in (1, 16, 64, 256):
        sets = [setup(batch, 128, 1) for _ in range(max(2, min(64, 512 // batch)))]
        one = batch * 128 * 65536
        for fused in (False, True):
            us = d.graph_us(lambda: [run(p, fused) for p in sets], len(sets))
            d.report("conv_ssm_update" if fused else "ssm_update", batch=batch, us=us, share_copy=one / us / 1e6 / copy)
        del sets


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("ssm_update")

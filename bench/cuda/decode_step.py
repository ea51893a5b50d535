"""A whole decode step of Bamba-9B's shape in one graph: 29 Mamba and 3 attention layers, MLPs, head, sampling."""
import sys
import torch
import attention
import driver as d
import linear_batch
import linear_gemm
import rowwise
import sample
import ssm_update
from linear_decode import gemv

H, FF, DI, CONV, HEADS, V, CTX = 4096, 14336, 8192, 8448, 128, 128256, 1024


def weight(n, k):
    return torch.empty(n, k, device="cuda", dtype=torch.bfloat16).normal_(0, k ** -0.5)


def linear(x, w, out, norm=None, gate=None, w2=None, residual=None, spare=None):
    """One or two rows: the norm inside. More: the norm, then the batch kernel (or the row kernel up to 8)."""
    if x.shape[0] <= 2:
        mode = ("gated" if gate is not None else "rms" if norm is not None else "") + ("_swiglu" if w2 is not None else "")
        return gemv(x, w, out, mode=mode, w2=w2, gate=gate, norm=norm, residual=residual)
    if norm is not None:
        rowwise.norm(x, norm, spare[:, :x.shape[1]], gate)
        x = spare[:, :x.shape[1]]
    if x.shape[0] <= 8:
        return gemv(x, w, out, mode="swiglu" if w2 is not None else "", w2=w2, residual=residual)
    linear = linear_gemm if x.shape[0] > 128 and out.dtype == torch.bfloat16 else linear_batch
    linear.prepare(x, w, out, w2=w2, residual=residual)()


class Model:
    def __init__(self):
        ones = lambda n: torch.rand(n, device="cuda") + 0.5
        self.layers = []
        for i in range(32):
            layer = dict(norm=ones(H), norm2=ones(H), gate=weight(FF, H), up=weight(FF, H), down=weight(H, FF))
            if i in (9, 18, 27):
                layer.update(kind="attention", qkv=weight(6144, H), o=weight(H, 4096))
            else:
                layer.update(kind="mamba", in_proj=weight(2 * DI + 256 + HEADS, H), out_proj=weight(H, DI), gnorm=ones(DI),
                             a_log=torch.log(torch.rand(HEADS, device="cuda") * 15 + 1), d=ones(HEADS),
                             bias=torch.randn(HEADS, device="cuda"), w=torch.randn(CONV, 4, device="cuda"), wb=ones(CONV))
            self.layers.append(layer)
        self.norm, self.head = ones(H), weight(V, H)
        self.bytes = sum(t.numel() * t.element_size() for l in self.layers + [dict(n=self.norm, h=self.head)]
                         for t in l.values() if isinstance(t, torch.Tensor))

    def states(self, batch):
        bf = lambda *s: torch.randn(*s, device="cuda").bfloat16()
        self.x, self.big, self.y, self.hid = bf(batch, H), bf(batch, 16768), bf(batch, DI), bf(batch, FF)
        self.qkv, self.spare, self.logits = bf(batch, 6144), bf(batch, DI), torch.zeros(batch, V, device="cuda")
        self.conv, self.q = bf(batch, CONV), bf(batch, 4096)
        self.ids = torch.zeros(batch, device="cuda", dtype=torch.int32)
        self.greedy = sample.settings(batch)[1]
        past = torch.full((batch,), CTX - 1, device="cuda", dtype=torch.int32)
        slots = torch.arange(batch, device="cuda").int()
        for l in self.layers:
            if l["kind"] == "mamba":
                l["run"] = dict(xbc=self.big[:, DI:DI + CONV], dt=self.big[:, DI + CONV:], a_log=l["a_log"], d=l["d"], bias=l["bias"],
                                state=torch.zeros(batch, HEADS, 64, 128, device="cuda"), past=past, slots=slots, y=self.y,
                                conv_state=torch.zeros(batch, 4, CONV, device="cuda"), w=l["w"], wb=l["wb"], heads=HEADS, groups=1, of=slots,
                                start=torch.arange(batch + 1, device="cuda").int(), lens=[1] * batch)
            else:
                a = attention.setup([1] * batch, [CTX - 1] * batch, 32, 8)
                a.update(q=self.q, of=slots, slots=slots)
                l["run"] = a
        self.turns = rowwise.tables(past, 1.0 / (10000 ** (torch.arange(32, device="cuda") / 32)))

    def step(self):
        x, big, spare = self.x, self.big, self.spare
        for l in self.layers:
            if l["kind"] == "mamba":
                linear(x, l["in_proj"], big, norm=l["norm"], spare=spare)
                r = l["run"]
                if x.shape[0] <= 8:
                    ssm_update.run(r, True)
                else:
                    rowwise.conv(r, "_update", 4, r["xbc"], self.conv, r["w"], r["wb"], r["conv_state"])
                    ssm_update.run(dict(r, xbc=self.conv), False)
                linear(self.y, l["out_proj"], x, norm=l["gnorm"], gate=big[:, :DI], residual=x, spare=spare)
            else:
                p = l["run"]
                linear(x, l["qkv"], self.qkv, norm=l["norm"], spare=spare)
                rowwise.rope(p, self.qkv, self.turns, self.q, p["kp"], p["vp"], p["pages"], 32, 8, 128)
                attention.decode(p)
                linear(p["out"], l["o"], x, residual=x)
            linear(x, l["gate"], self.hid, norm=l["norm2"], w2=l["up"], spare=spare)
            linear(self.hid, l["down"], x, residual=x)
        linear(x, self.head, self.logits, norm=self.norm, spare=spare)
        sample.launch("sample_f32", self.logits, None, self.greedy, self.ids)


def bench():
    read, copy = d.peaks()
    m = Model()
    for batch in (1, 8, 16, 64, 256):
        m.states(batch)
        us = d.graph_us(m.step, 1)
        state = batch * 29 * HEADS * 65536
        floor = m.bytes / read / 1e6 + state / copy / 1e6 + batch * 3 * CTX * 4096 / read / 1e6
        d.report("decode step", batch=batch, us=us, tokens_s=batch / us * 1e6, weights_gb=m.bytes / 1e9,
                 over_floor=us / floor, share_read=(m.bytes + state) / us / 1e6 / read)


def profile(batch):
    """Where the microseconds of a step go, kernel by kernel, without a graph."""
    m = Model()
    m.states(batch)
    for _ in range(3):
        m.step()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
        m.step()
        torch.cuda.synchronize()
    for e in sorted(p.key_averages(), key=lambda e: -e.self_device_time_total)[:16]:
        d.report(f"decode profile {e.key[:60]}", batch=batch, us=e.self_device_time_total, launches=e.count)


if __name__ == "__main__":
    if "profile" in sys.argv:
        for batch in [int(a) for a in sys.argv if a.isdigit()] or (1, 256):
            profile(batch)
    if "bench" in sys.argv:
        bench()
    d.finish("decode_step")

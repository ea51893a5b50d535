"""Products with weights in blocks in one launch: one against float64, chains as chains of one; then a layer's time."""
import ctypes as C
import sys
import numpy as np
import torch
import blocks
import blocks_reference as R
import driver as d
import ssm_update

BLOCKS = d.Module("blocks_chain_sm90")
TYPES = ("q8_0", "q4_0", "q4_k", "q5_k", "q6_k")
MODES = {"": 0, "rms": 1, "gated": 2}
LIMIT = 228 * 1024 - 3 * 1024 - 6016  # a multiprocessor's, less what a block of ssm_update has beside it
P, I = C.c_void_p, C.c_int


class Product(C.Structure):
    _fields_ = [(n, P) for n in ("w", "w2", "x", "gate", "norm", "bias", "residual", "out")] + \
               [(n, I) for n in ("batch", "n", "k", "x_stride", "gate_stride", "residual_stride", "out_stride")] + \
               [("eps", C.c_float), ("mode", I), ("swiglu", I), ("out_f32", I), ("type", I), ("dtype", I), ("reserved", I)] + \
               [(n, I) for n in ("x_cells", "residual_cells", "out_cells", "pad")]


class Args(C.Structure):
    _fields_ = [("of", Product * 6), ("cells", P), ("turn", P), ("set", I), ("count", I), ("ring", I), ("slot", I)]


SET = 65536
CELLS = torch.zeros(2 * SET, device="cuda", dtype=torch.int16)
TURN = torch.zeros(2, device="cuda", dtype=torch.int32)


def product(x, w, out, n, mode="", w2=None, gate=None, norm=None, bias=None, residual=None, kind=None):
    return Product(d.ptr(w), d.ptr(w2), d.ptr(x), d.ptr(gate), d.ptr(norm), d.ptr(bias), d.ptr(residual), d.ptr(out),
                   x.shape[0], n, x.shape[1], x.stride(0), gate.stride(0) if gate is not None else 0,
                   residual.stride(0) if residual is not None else 0, out.stride(0), 1e-5, MODES[mode],
                   int(w2 is not None), int(out.dtype == torch.float32), TYPES.index(kind) if kind else 0, 0, 0, -1, -1, -1)


def chain(products, slots=None):
    """`products`: dictionaries of what `product` takes."""
    of = [product(**p) for p in products]
    at, places = 0, {}
    for p, last in zip(of, [False] * (len(of) - 1) + [True]):
        p.x_cells = places.get(p.x, -1)
        p.residual_cells = places.get(p.residual, -1)
        if not last:
            p.out_cells = places[p.out] = at
            at += p.batch * p.n
    a = Args((Product * 6)(*of), d.ptr(CELLS), d.ptr(TURN), SET, len(of))
    k = max(p.k for p in of)
    x_bytes = 2 * k + k // 2
    a.slot = max(blocks.STEP_BYTES[p["kind"]] for p in products)
    a.ring = min(slots or 8, (LIMIT - x_bytes) // 16 // a.slot) * a.slot
    name = "blocks_chain" if products[0]["kind"] == "q8_0" else "blocks_chain_once"
    BLOCKS.launch(name, (d.SMS,), 512, [a], 16 * a.ring + x_bytes)


def apart(products):
    for p in products:
        p = dict(p)
        kind, n = p.pop("kind"), p.pop("n")
        mode = (p.pop("mode", "") + ("_swiglu" if p.get("w2") is not None else "")).strip("_")
        x, w, out = p.pop("x"), p.pop("w"), p.pop("out")
        blocks.gemv(kind, x, w, n, out, mode=mode, **p)


class Layer:
    """Buffers of one token, and its products: out, gate and up, down, then the next in."""

    def __init__(self, hidden, inner, wide, into, kinds):
        batch, rnd = 1, blocks.rnd
        self.x, self.y, self.gate = rnd(batch, hidden), rnd(batch, inner), rnd(batch, inner)
        self.hid, self.big = torch.empty(batch, wide, device="cuda").bfloat16(), torch.empty(batch, into, device="cuda")
        self.norms = [torch.rand(k, device="cuda") + 0.5 for k in (inner, hidden, hidden)]
        self.bias = torch.randn(hidden, device="cuda")
        self.sizes = [(hidden, inner), (wide, hidden), (wide, hidden), (hidden, wide), (into, hidden)]
        self.kinds = kinds
        self.w = [R.random_packed(kind, n, k, torch) for kind, (n, k) in zip(kinds, self.sizes)]
        self.bytes = sum(w.numel() * w.element_size() for w in self.w)

    def products(self, into=True):
        (out, gate, up, down, in_), kinds, sizes = self.w, self.kinds, self.sizes
        made = [dict(x=self.y, w=out, out=self.x, mode="gated", gate=self.gate, norm=self.norms[0], residual=self.x, bias=self.bias),
                dict(x=self.x, w=gate, w2=up, out=self.hid, mode="rms", norm=self.norms[1]),
                dict(x=self.hid, w=down, out=self.x, residual=self.x),
                dict(x=self.x, w=in_, out=self.big, mode="rms", norm=self.norms[2])]
        for p, i in zip(made, (0, 1, 3, 4)):
            p.update(n=sizes[i][0], kind=kinds[i])
        return made if into else made[:3]


def test(small):
    rng = np.random.default_rng(torch.seed() % 1000003)
    for kind in TYPES:
        for n, k in ((8, 256), (40, 768), (264, 2560)) + (() if small else ((1032, 14336), (4304, 1024))):
            alone(kind, n, k, rng)
    mixes = [[k] * 5 for k in TYPES] + [["q6_k", "q4_k", "q4_k", "q6_k", "q5_k"], ["q8_0", "q4_0", "q4_0", "q6_k", "q4_k"]]
    for kinds in mixes:
        for hidden, inner, wide, into in ((256, 512, 768, 40), (1280, 2560, 512, 4104)) + (() if small else ((4096, 8192, 14336, 16768),)):
            check(Layer(hidden, inner, wide, into, kinds), f"{' '.join(kinds)} {hidden} {inner} {wide} {into}")


def alone(kind, n, k, rng):
    """One product against float64 of the exact values."""
    b = R.random_blocks(kind, n, k, rng)
    w, v = torch.from_numpy(R.pack(kind, b)).cuda(), torch.from_numpy(R.values(kind, b)).cuda().double()
    x, norm, out = blocks.rnd(1, k), torch.rand(k, device="cuda") + 0.5, blocks.nan(1, n, f32=True)
    for mode in ("", "rms"):
        out.fill_(float("nan"))
        chain([dict(x=x, w=w, out=out, n=n, kind=kind, mode=mode, norm=norm if mode else None)])
        torch.cuda.synchronize()
        y = x.double()
        if mode:
            y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
        d.check(f"product {kind} {mode} {n}x{k}", d.error(out, y @ v.T), 5e-5)


def singly(products):
    for p in products:
        chain([p])


def check(layer, name):
    x, seen = layer.x.clone(), []
    for run in (singly, chain, chain):
        layer.x.copy_(x)
        layer.hid.fill_(float("nan")), layer.big.fill_(float("nan"))
        run(layer.products())
        torch.cuda.synchronize()
        seen.append([t.clone() for t in (layer.x, layer.hid, layer.big)])
    for i, what in enumerate(("x", "hid", "big")):
        alike = all(torch.equal(seen[0][i], s[i]) for s in seen) and torch.isfinite(seen[0][i]).all().item()
        d.check(f"chain {name} {what} same bits", 0.0 if alike else 1.0, 0)


def bench():
    read, _ = d.peaks()
    mix = ["q6_k", "q4_k", "q4_k", "q4_k", "q5_k"]
    for name, kinds, variants in (("q8_0", ["q8_0"] * 5, (2, 3, 5)), ("q4_k", ["q4_k"] * 5, (2, 3, 5)),
                                  ("q4_k_m", mix, (2, 3))):
        layers = [Layer(4096, 8192, 14336, 16768, kinds) for _ in range(6)]
        floor = layers[0].bytes / read / 1e6

        def whole(run):
            for layer in layers:
                run(layer.products())
        us = d.graph_us(lambda: whole(apart), 6)
        d.report(f"products of a layer {name}, apart", us=us, share_read=floor / us)
        for slots in variants:
            try:
                us = d.graph_us(lambda: whole(lambda p: chain(p, slots)), 6)
            except RuntimeError as e:
                print(e)
                continue
            d.report(f"products of a layer {name}, chain", slots=slots, us=us, share_read=floor / us)
        states = [ssm_update.setup(1, 128, 1) for _ in layers]
        moved = 128 * 65536 + layers[0].bytes

        def token(run):
            for layer, state in zip(layers, states):
                ssm_update.run(state, True)
                run(layer.products())
        for run_name, run in (("apart", apart), ("chain", chain)):
            us = d.graph_us(lambda: token(run), 6)
            d.report(f"a layer {name}, {run_name}, with its state", us=us, share_read=moved / read / 1e6 / us)
        del layers


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("chain")

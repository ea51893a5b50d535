"""One token's products and states in one launch: the bits of a launch each, then a Mamba layer's time and that of lm_head's
shape, in a chain and apart."""
import ctypes as C
import sys
import numpy as np
import torch
import blocks
import blocks_reference as R
import driver as d
import linear_decode
import linear_fp8_decode
import ssm_update

TYPES = ("q8_0", "q4_0", "q4_k", "q5_k", "q6_k")
# Of in_proj, out_proj, gate and up, down; lm_head.
KINDS = {"q4_k": (("q4_k",) * 4, "q4_k"), "q4_k_m": (("q5_k", "q6_k", "q4_k", "q4_k"), "q6_k"), "q8_0": (("q8_0",) * 4, "q8_0"),
         "e4m3": (("e4m3",) * 4, "e4m3"), "bf16": (("bf16",) * 4, "bf16")}
MODES = {"": 0, "rms": 1, "gated": 2}
MOST, STATES = 40, 10
# As zig/cuda/chain_ring.zig: what may be under way, KB; and memory beside rings.
WAYS = {"blocks": (48, 24), "e4m3": (80, 16), "bf16": (52, 16)}
ROOM, BLOCKS_FIXED, ROWS_FIXED = 225 * 1024, 8448, 6144
P, I = C.c_void_p, C.c_int


class Product(C.Structure):
    _fields_ = [(n, P) for n in ("w", "w2", "x", "gate", "norm", "bias", "residual", "out")] + \
               [(n, I) for n in ("batch", "n", "k", "x_stride", "gate_stride", "residual_stride", "out_stride")] + \
               [("eps", C.c_float)] + \
               [(n, I) for n in ("mode", "swiglu", "out_f32", "type", "dtype", "up_first", "x_cells", "residual_cells", "out_cells",
                                 "gate_cells", "state", "backwards")]


class State(C.Structure):
    _fields_ = [("of", ssm_update.Args)] + [(n, I) for n in ("x_cells", "dt_cells", "y_cells", "dtype")]


class Args(C.Structure):
    _fields_ = [("of", Product * MOST), ("states", State * STATES), ("cells", P), ("turn", P)] + \
               [(n, I) for n in ("set", "count", "ring", "budget", "ahead")]


class Maps(C.Structure):
    _fields_ = [("of", C.c_uint8 * 128 * MOST)]


SET = 1 << 19
CELLS = torch.zeros(2 * SET, device="cuda", dtype=torch.int16)
TURN = torch.zeros(2, device="cuda", dtype=torch.int32)


def kernel_of(kind):
    return kind if kind in ("bf16", "e4m3") else "blocks"


def scale_bytes(n):
    return (n + 15) // 16 * 64


def weight(kind, n, k):
    """As it lies in memory."""
    if kind == "bf16":
        return blocks.rnd(n, k, scale=k ** -0.5)
    return linear_fp8_decode.weight(n, k)[0] if kind == "e4m3" else R.random_packed(kind, n, k, torch)


def map_of(kind, p):
    """Boxes of 128 bytes x 16 rows, or of eight rows of each of two matrices."""
    (w, w2), n, k = p["weights"], p["n"], p["k"]
    begin, item = (0, 2) if kind == "bf16" else (scale_bytes(n), 1)
    at = [t.data_ptr() + begin for t in (w, w2) if t is not None]
    if w2 is None:
        return d.encode(w, at[0], (k, n), (k * item,), (128 // item, 16), 3, item, 0)
    return d.encode((w, w2), min(at), (k, 8, 2, n // 8), (k * item, max(at) - min(at), k * item * 8), (128 // item, 8, 2, 1), 3, item, 0)


class Layers:
    """Mamba layers that follow each other: a token's products and states, with weights of their own each."""

    def __init__(self, kinds, count, hidden=4096, heads=128, wide=14336, shared=True):
        inner, conv = heads * 64, heads * 64 + 256
        self.sizes = [(inner + conv + heads, hidden), (hidden, inner), (wide, hidden), (hidden, wide)]
        self.kinds, self.hidden, self.inner, self.conv, self.wide, self.heads = kinds, hidden, inner, conv, wide, heads
        first = None
        self.layers = []
        for _ in range(count):
            new = first is None or not shared
            w = [weight(kind, n, k) for kind, (n, k) in zip(kinds, self.sizes)] + [weight(kinds[2], wide, hidden)] if new else \
                [t.clone() for t in first["w"]]
            state = ssm_update.setup(1, heads, 1)
            layer = dict(w=w, state=state, norms=[torch.rand(k, device="cuda") + 0.5 for k in (hidden, inner, hidden)],
                         big=blocks.nan(1, self.sizes[0][0]), h=blocks.nan(1, hidden), hid=blocks.nan(1, wide), out=blocks.nan(1, hidden))
            state.update(xbc=layer["big"][:, inner:inner + conv], dt=layer["big"][:, inner + conv:], y=blocks.nan(1, inner))
            first = first or layer
            self.layers.append(layer)
        self.x = blocks.rnd(1, hidden)
        self.kept = [(l["state"]["state"], l["state"]["conv_state"]) for l in self.layers]
        self.saved = [(a.clone(), b.clone()) for a, b in self.kept]
        self.bytes = sum(t.numel() * t.element_size() for t in self.layers[0]["w"]) + heads * 65536

    def products(self):
        """In order; `state` behind whose product one is updated."""
        made, x = [], self.x
        for l in self.layers:
            (in_, out, gate, down, up), (norm, inner_norm, mlp_norm), big = l["w"], l["norms"], l["big"]
            made += [dict(x=x, weights=(in_, None), out=big, mode="rms", norm=norm, state=l["state"]),
                     dict(x=l["state"]["y"], weights=(out, None), out=l["h"], mode="gated", gate=big[:, :self.inner], norm=inner_norm, residual=x),
                     dict(x=l["h"], weights=(gate, up), out=l["hid"], mode="rms", norm=mlp_norm),
                     dict(x=l["hid"], weights=(down, None), out=l["out"], residual=l["h"])]
            x = l["out"]
        for i, p in enumerate(made):
            p["kind"], (p["n"], p["k"]) = self.kinds[i % 4], self.sizes[i % 4]
        return made

    def restore(self):
        for (a, b), (c, e) in zip(self.kept, self.saved):
            a.copy_(c), b.copy_(e)

    def results(self):
        return [self.layers[-1]["out"].clone()] + [t.clone() for pair in self.kept for t in pair]


def of_product(p):
    x, out, gate, residual, (w, w2) = p["x"], p["out"], p.get("gate"), p.get("residual"), p["weights"]
    made = Product(d.ptr(w), d.ptr(w2), d.ptr(x), d.ptr(gate), d.ptr(p.get("norm")), None, d.ptr(residual), d.ptr(out), 1, p["n"], p["k"],
                   x.stride(0), gate.stride(0) if gate is not None else 0, residual.stride(0) if residual is not None else 0, out.stride(0),
                   1e-5, MODES[p.get("mode", "")], int(w2 is not None), int(out.dtype == torch.float32))
    made.type = TYPES.index(p["kind"]) if p["kind"] in TYPES else 0
    made.up_first = int(w2 is not None and w2.data_ptr() < w.data_ptr())
    made.x_cells = made.residual_cells = made.out_cells = made.gate_cells = made.state = -1
    return made


def ring(kernel, products):
    """Bytes of a warp's, and of all that a block has."""
    k = max(p["k"] for p in products)
    beside = BLOCKS_FIXED + 2 * k + k // 2 if kernel == "blocks" else ROWS_FIXED + 2 * ((k + 2047) // 2048 * 2048)
    unit = 64 if kernel == "blocks" else 1024
    each = min((ROOM - beside) // 16, 255 * 64) // unit * unit
    return each, beside + 16 * each


MODULES = {}


def module(stem):
    if stem not in MODULES:
        MODULES[stem] = d.Module(stem)
    return MODULES[stem]


def prepare(products, way=None, variant=""):
    """A launch of these products and the states behind them. `way`: KB under way; `variant`: of the compiled kernel."""
    kernel = kernel_of(products[0]["kind"])
    of, states, at, places = [of_product(p) for p in products], [], 0, {}

    def take(n):
        nonlocal at
        at += (n + 63) // 64 * 64
        assert at <= SET
        return at - (n + 63) // 64 * 64
    for i, (p, a) in enumerate(zip(products, of)):
        a.x_cells = places.get(a.x, -1) if i else -1
        a.residual_cells = places.get(a.residual, -1) if a.residual else -1
        if a.x_cells >= 0 and a.mode == 2:
            a.gate_cells = places[a.gate]
        if i + 1 == len(of):
            break
        a.out_cells = places[a.out] = take(a.n)
        a.out = None
        if p.get("state") is not None:
            s = p["state"]
            inner = s["heads"] * 64
            a.state, a.backwards = len(states), 1
            states.append(State(ssm_update.arguments(s), a.out_cells + inner, a.out_cells + inner + s["xbc"].shape[1], take(inner), 0))
            states[-1].of.y = None
            places[d.ptr(s["y"])] = states[-1].y_cells
    each, smem = ring(kernel, products)
    budget, ahead = way or WAYS[kernel]
    args = Args((Product * MOST)(*of), (State * STATES)(*states), d.ptr(CELLS), d.ptr(TURN), SET, len(of), each, budget * 1024, ahead * 1024)
    if kernel == "blocks":
        return lambda: module("blocks_chain_sm90" + variant).launch("blocks_chain", (d.SMS,), 768, [args], smem)
    maps, kept = Maps(), [map_of(kernel, p) for p in products]
    for i, m in enumerate(kept):
        maps.of[i][:] = m
    return lambda: (kept, module("rows_chain_sm90" + variant).launch(f"rows_chain_{kernel}", (d.SMS,), 768, [maps, args], smem))


def singly(products, variant=""):
    """A launch each."""
    for p in products:
        prepare([dict(p, state=None)], variant=variant)()
        if p.get("state") is not None:
            ssm_update.run(p["state"], True)


def apart(products):
    """Each by the kernel that takes it where nothing goes in chains."""
    for p in products:
        (w, w2), kind, mode = p["weights"], p["kind"], p.get("mode", "")
        more = dict(w2=w2, gate=p.get("gate"), norm=p.get("norm"), residual=p.get("residual"))
        both = (mode + ("_swiglu" if w2 is not None else "")).strip("_")
        if kind == "bf16":
            linear_decode.gemv(p["x"], w, p["out"], mode=both, **more)
        elif kind == "e4m3":
            linear_fp8_decode.gemv(p["x"], w, p["n"], p["out"], mode=MODES[mode], **more)
        else:
            blocks.gemv(kind, p["x"], w, p["n"], p["out"], mode=both, **more)
        if p.get("state") is not None:
            ssm_update.run(p["state"], True)


def head(kind, n=128256, k=4096):
    return dict(x=blocks.rnd(1, k), weights=(weight(kind, n, k), None), out=torch.empty(1, n, device="cuda"), mode="rms",
                norm=torch.rand(k, device="cuda") + 0.5, kind=kind, n=n, k=k)


def alike(one, other):
    return 0.0 if all(torch.equal(a, b) and torch.isfinite(a).all() for a, b in zip(one, other)) else 1.0


def test(small):
    rng = np.random.default_rng(torch.seed() % 1000003)
    for kind in TYPES:
        for n, k in ((8, 256), (40, 768), (264, 2560)) + (() if small else ((1032, 14336), (4304, 1024))):
            alone(kind, n, k, rng)
    shapes = ((256, 4, 512), (1024, 16, 3584)) + (() if small else ((4096, 128, 14336),))
    for name, (kinds, _) in KINDS.items():
        for hidden, heads, wide in shapes:
            layers = Layers(kinds, 2, hidden, heads, wide, shared=False)
            launch, seen = prepare(layers.products()), []
            for run in (lambda: singly(layers.products()), launch, launch):
                layers.restore()
                run()
                torch.cuda.synchronize()
                seen.append(layers.results())
            d.check(f"chain {name} {hidden} {heads} {wide} same bits", max(alike(seen[0], s) for s in seen[1:]), 0)
            if kinds[0] in ("bf16", "e4m3"):
                layers.restore()
                apart(layers.products())
                d.check(f"chain {name} {hidden} {heads} {wide} as apart", alike(seen[0], layers.results()), 0)


def alone(kind, n, k, rng):
    """One product against float64 of the exact values."""
    b = R.random_blocks(kind, n, k, rng)
    w, v = torch.from_numpy(R.pack(kind, b)).cuda(), torch.from_numpy(R.values(kind, b)).cuda().double()
    x, norm, out = blocks.rnd(1, k), torch.rand(k, device="cuda") + 0.5, blocks.nan(1, n, f32=True)
    for mode in ("", "rms"):
        out.fill_(float("nan"))
        prepare([dict(x=x, weights=(w, None), out=out, n=n, k=k, kind=kind, mode=mode, norm=norm if mode else None)])()
        torch.cuda.synchronize()
        y = x.double()
        if mode:
            y = y * (y.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * norm.double()
        d.check(f"product {kind} {mode} {n}x{k}", d.error(out, y @ v.T), 5e-5)


def bench():
    read, _ = d.peaks()
    for name, (kinds, last) in KINDS.items():
        layers = Layers(kinds, 9)
        products, floor = layers.products(), layers.bytes / read / 1e6
        for how, run in (("apart", lambda: apart(products)), ("chain", prepare(products))):
            us = d.graph_us(run, 9)
            d.report(f"a layer {name}, {how}, with its state", us=us, share_read=floor / us)
        lm = head(last)
        floor = lm["weights"][0].numel() * lm["weights"][0].element_size() / read / 1e6
        for how, run in (("apart", lambda: apart([lm])), ("chain", prepare([lm]))):
            us = d.graph_us(run, 1)
            d.report(f"lm_head {name}, {how}", us=us, share_read=floor / us)
        del layers, products, lm


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "race" in sys.argv:  # for compute-sanitizer: one kernel's launch of layers of the full size
        prepare(Layers(KINDS[sys.argv[-1]][0], 1).products())()
    if "bench" in sys.argv:
        bench()
    d.finish("chain")

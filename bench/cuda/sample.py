"""sample and logits_warp: against HF's rules in float64, ties and NaN included; then time of a row."""
import ctypes as C
import sys
import numpy as np
import torch
import driver as d

M = d.Module("sample")


class Args(C.Structure):
    _fields_ = [(n, C.c_void_p) for n in ("scores", "out", "sampling", "sampled")] + \
               [(n, C.c_int) for n in ("vocab", "stride", "out_stride", "pad_id")]


FIELDS = [("do_sample", "u4"), ("top_k", "u4"), ("temperature", "f4"), ("top_p", "f4"), ("min_p", "f4"), ("typical_p", "f4"),
          ("repetition_penalty", "f4"), ("no_repeat_ngram_size", "u4"), ("min_new_tokens", "u4"), ("generated", "u4"),
          ("seed_lo", "u4"), ("seed_hi", "u4"), ("stream", "u4"), ("finished", "u4")]


def settings(rows, **kw):
    s = np.zeros(rows, dtype=FIELDS)
    s["temperature"], s["top_p"], s["typical_p"], s["repetition_penalty"] = 1, 1, 1, 1
    for k, v in kw.items():
        s[k] = v
    return s, torch.from_numpy(s.view(np.uint8).copy()).cuda()


def launch(name, x, out, dev, ids):
    a = Args(d.ptr(x), d.ptr(out), d.ptr(dev), d.ptr(ids), x.shape[1], x.stride(0), out.stride(0) if out is not None else 0, 77)
    cluster = 8 if name == "sample_f32" and x.shape[0] <= 8 else 0
    M.launch(name, (x.shape[0] * max(1, cluster),), 1024, [a], cluster=cluster)


def philox(s):
    c, k, m = [int(s["generated"]), int(s["stream"]), 0, 0], [int(s["seed_lo"]), int(s["seed_hi"])], 0xffffffff
    for _ in range(10):
        a, b = c[0] * 0xd2511f53, c[2] * 0xcd9e8d57
        c = [(b >> 32) ^ c[1] ^ k[0], b & m, (a >> 32) ^ c[3] ^ k[1], a & m]
        k = [(k[0] + 0x9e3779b9) & m, (k[1] + 0xbb67ae85) & m]
    return ((c[0] >> 5) << 26 | c[1] >> 6) / 2 ** 53


def warp_ref(x, s):
    v = np.where(np.isnan(x), -np.inf, x).astype(np.float32) / np.float32(s["temperature"])
    n = len(v)
    if 0 < s["top_k"] < n:
        v = np.where(v < np.sort(v)[-int(s["top_k"])], -np.inf, v)
    if s["top_p"] < 1:
        order = np.lexsort((np.arange(n), v))[::-1]  # best first; of equals the larger id
        p = np.exp(v[order].astype(np.float64) - v.max())
        p /= p.sum()
        before = np.cumsum(p) - p
        v = v.copy()
        v[order[before >= s["top_p"] - 1e-12]] = -np.inf
    if s["min_p"] > 0:
        v = np.where(np.exp(v.astype(np.float64) - v.max()) < s["min_p"], -np.inf, v)
    if s["typical_p"] < 1:
        p = np.exp(v.astype(np.float64) - v.max())
        p /= p.sum()
        there = p > 0
        surprise = np.full(n, np.inf)
        surprise[there] = -np.log(p[there])
        far = np.abs(surprise - (p[there] * surprise[there]).sum())
        order = np.argsort(far, kind="stable")
        reached = np.searchsorted(np.cumsum(p[order]), s["typical_p"] - 1e-9)
        # what is as far as the last that is needed stays, too
        v = np.where(far <= far[order[min(reached, n - 1)]] + 1e-6, v, -np.inf)
    return v


def test(small):
    rng = np.random.default_rng()
    for vocab in (1, 2, 130, 1134) + (() if small else (32000, 128256)):
        rows = 5
        x = rng.normal(size=(rows, vocab)).astype(np.float32) * 3
        if vocab > 2:
            x[1] = np.round(x[1])  # many ties
            x[2, rng.integers(vocab)] = np.nan
            x[3] = 1.0
        x[4] = -np.inf
        xs = torch.from_numpy(x).cuda()
        ids = torch.full((rows,), -5, device="cuda", dtype=torch.int32)
        launch("sample_f32", xs, None, None, ids)
        want = [int(np.argmax(np.where(np.isnan(r), -np.inf, r))) if np.isfinite(np.nanmax(r)) else -1 for r in x]
        d.check(f"sample greedy {vocab}", 0.0 if ids.tolist() == want else 1.0, 0)
        bad = 0
        for g in range(20):
            s, dev = settings(rows, do_sample=1, generated=g, stream=np.arange(rows), seed_lo=rng.integers(2 ** 32), seed_hi=7,
                              finished=[0, 0, 0, 0, g % 2])
            launch("sample_f32", xs, None, dev, ids)
            for r, got in enumerate(ids.tolist()):
                if s[r]["finished"] or r == 4:
                    bad += got != (77 if s[r]["finished"] else -1)
                    continue
                v = np.where(np.isnan(x[r]), -np.inf, x[r]).astype(np.float64)
                c = np.cumsum(np.exp(v - v.max()))
                u = philox(s[r]) * c[-1]
                # the id whose span holds u, up to rounding at the span's ends
                bad += not ((c[got - 1] if got else 0) - 1e-5 * c[-1] <= u <= c[got] + 1e-5 * c[-1])
        d.check(f"sample draws {vocab}", float(bad), 0)
        for kw in (dict(temperature=0.7), dict(top_k=5), dict(top_p=0.6), dict(min_p=0.1), dict(top_p=0.01),
                   dict(typical_p=0.5), dict(typical_p=0.95, temperature=0.7), dict(typical_p=0.01),
                   dict(top_k=40, top_p=0.9, temperature=1.3, min_p=0.02),
                   dict(top_k=40, top_p=0.9, temperature=1.3, min_p=0.02, typical_p=0.8)):
            s, dev = settings(rows, do_sample=1, **kw)
            out = torch.full_like(xs, 123.0)
            launch("logits_warp_f32", xs, out, dev, None)
            got = out.cpu().numpy()
            for r in range(rows):
                ref = warp_ref(x[r], s[r]) if r < 4 else x[r]
                diff = np.isfinite(got[r]) != np.isfinite(ref)
                edge = diff.sum()
                # an id exactly at p, or two as near to the entropy, may fall to either side by rounding
                if edge and (kw.get("top_p") or kw.get("typical_p")):
                    edge = max(0, edge - 1)
                same = np.allclose(got[r][~diff & np.isfinite(ref)], ref[~diff & np.isfinite(ref)], rtol=1e-6)
                d.check(f"logits_warp {vocab} row {r} {kw}", float(edge) + (0 if same else 1), 0)


def bench():
    for rows in (1, 64):
        xs = torch.randn(rows, 128256, device="cuda") * 3
        out, ids = torch.empty_like(xs), torch.zeros(rows, device="cuda", dtype=torch.int32)
        _, greedy = settings(rows)
        _, dev = settings(rows, do_sample=1, top_k=50, top_p=0.9, temperature=0.8)
        us = [d.graph_us(lambda: [launch("sample_f32", xs, None, s, ids) for _ in range(8)], 8) for s in (greedy, dev)]
        warp = d.graph_us(lambda: [launch("logits_warp_f32", xs, out, dev, None) for _ in range(8)], 8)
        d.report("sample", rows=rows, greedy_us=us[0], draw_us=us[1], warp_us=warp)


if __name__ == "__main__":
    if "test" in sys.argv:
        test("small" in sys.argv)
    if "bench" in sys.argv:
        bench()
    d.finish("sample")

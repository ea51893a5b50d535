"""Weights in blocks: random GGUF blocks, their exact values, and their order on a GPU (kernels/blocks.cuh)."""
import numpy as np

# columns of a block, bytes of a block, columns of a step
TYPES = {"q8_0": (32, 34, 128), "q4_0": (32, 18, 128), "q4_k": (256, 144, 256), "q5_k": (256, 176, 256),
         "q6_k": (256, 210, 256)}
# mean of what a scale multiplies, for values of about k ** -0.5
MEAN = {"q8_0": 74, "q4_0": 4.6, "q4_k": 150, "q5_k": 300, "q6_k": 74 * 18}


def bytes_of(kind, n, k):
    cols, size, _ = TYPES[kind]
    return n * k // cols * size


def random_blocks(kind, n, k, rng):
    """(n, k / columns, bytes): random bits, but scales that give values of about k ** -0.5."""
    cols, size, _ = TYPES[kind]
    w = rng.integers(0, 256, (n, k // cols, size), dtype=np.uint8)

    def put(at, factor=1.0):
        d = (rng.random((n, k // cols)) + 0.5) * k ** -0.5 / MEAN[kind] * factor
        w[:, :, at:at + 2] = d.astype(np.float16)[..., None].view(np.uint8)
    put(208 if kind == "q6_k" else 0)
    if kind in ("q4_k", "q5_k"):
        put(2, 7.5 if kind == "q4_k" else 15.5)
    return w


def half(w, at):
    return np.ascontiguousarray(w[:, :, at:at + 2]).view(np.float16)[:, :, 0].astype(np.float32)


def six_bits(s):
    """Scales and minima (..., 8) of the 12 bytes of q4_k and q5_k."""
    s = s.astype(np.int32)
    low, mid, top = s[..., 0:4], s[..., 4:8], s[..., 8:12]
    return (np.concatenate([low & 63, (top & 15) | (low >> 6 << 4)], -1),
            np.concatenate([mid & 63, (top >> 4) | (mid >> 6 << 4)], -1))


def parts(kind, w):
    """Integers (n, k), and scale and minimum of each group of columns (n, k / group) as f32."""
    n = w.shape[0]
    d = half(w, 208 if kind == "q6_k" else 0)
    if kind == "q8_0":
        return w[:, :, 2:].view(np.int8).astype(np.int32).reshape(n, -1), d, None
    if kind == "q4_0":
        q = w[:, :, 2:].astype(np.int32)
        return np.concatenate([q & 15, q >> 4], -1).reshape(n, -1), d, None
    if kind in ("q4_k", "q5_k"):
        sc, mn = six_bits(w[:, :, 4:16])
        q = w[:, :, -128:].astype(np.int32).reshape(n, -1, 4, 32)
        q = np.stack([q & 15, q >> 4], 3).reshape(n, -1, 8, 32)
        if kind == "q5_k":
            high = w[:, :, 16:48].astype(np.int32)
            q = q | np.stack([(high >> j & 1) << 4 for j in range(8)], 2)
        return q.reshape(n, -1), (d[..., None] * sc).astype(np.float32).reshape(n, -1), \
            (half(w, 2)[..., None] * mn).astype(np.float32).reshape(n, -1)
    low, high = w[:, :, :128].astype(np.int32).reshape(n, -1, 2, 64), w[:, :, 128:192].astype(np.int32).reshape(n, -1, 2, 32)
    q = np.concatenate([low & 15, low >> 4], -1) | np.concatenate([(high >> s & 3) << 4 for s in (0, 2, 4, 6)], -1)
    sc = np.ascontiguousarray(w[:, :, 192:208]).view(np.int8)
    return q.reshape(n, -1), (d[..., None] * sc).astype(np.float32).reshape(n, -1), None


def values(kind, w):
    """The exact f32 values (n, k): a product, and a difference where there is a minimum, each rounded."""
    q, d, m = parts(kind, w)
    q = q - {"q4_0": 8, "q6_k": 32}.get(kind, 0)
    v = np.repeat(d, q.shape[1] // d.shape[1], 1) * q.astype(np.float32)
    return v - np.repeat(m, q.shape[1] // m.shape[1], 1) if m is not None else v


def words(x):
    """Numbers as words of four bytes."""
    return x.astype(np.uint32)[..., None].view(np.uint8)


def pack(kind, w):
    """The bytes in the order of the GPU: panels of 16 rows, padded with zeros."""
    n = w.shape[0]
    cols, size, step = TYPES[kind]
    rows = (n + 15) // 16 * 16
    if rows != n:
        w = np.concatenate([w, np.zeros((rows - n, *w.shape[1:]), np.uint8)])
    q, _, _ = parts(kind, w)
    k = q.shape[1]
    P, S, C = rows // 16, k // step, step // 16
    q = q.reshape(P, 2, 8, S, C, 2, 4, 2)  # panel, r (rows g and g + 8), g, step, c, half of 16 columns, t, odd
    blocks = w.reshape(P, 2, 8, S, -1, size)

    def fields(x, half_bits, row_bits):
        """Words (P, S, C, g, t) of a lane's eight numbers of 16 columns."""
        shift = np.array([[[half_bits * h + row_bits * r + 16 * o for o in (0, 1)] for r in (0, 1)] for h in (0, 1)])
        return (x.astype(np.int64).transpose(0, 3, 4, 2, 6, 5, 1, 7) << shift).sum((-1, -2, -3))
    if kind == "q8_0":
        b = (q & 255).astype(np.uint8).transpose(0, 3, 4, 2, 6, 1, 7, 5)  # P S C g t r odd half
        quants = b.reshape(P, S, C // 2, 2, 8, 4, 8).transpose(0, 1, 2, 4, 5, 3, 6).reshape(P, S, -1)
    else:
        low = fields(q & 15, 8, 4).reshape(P, S, C // 4, 4, 8, 4)
        quants = words(low.transpose(0, 1, 2, 4, 5, 3)).reshape(P, S, -1)
    if kind == "q5_k":
        high = fields(q >> 4, 8, 1).reshape(P, S, 4, 4, 8, 4)
        high = (high << (2 * np.arange(4)).reshape(4, 1, 1)).sum(3)  # P S word g t
        quants = np.concatenate([quants, words(high.transpose(0, 1, 3, 4, 2)).reshape(P, S, -1)], -1)
    if kind == "q6_k":
        high = fields(q >> 4, 8, 2).reshape(P, S, 8, 2, 8, 4)
        high = (high << (4 * np.arange(2)).reshape(2, 1, 1)).sum(3).reshape(P, S, 2, 4, 8, 4)
        quants = np.concatenate([quants, words(high.transpose(0, 1, 2, 4, 5, 3)).reshape(P, S, -1)], -1)
    if kind in ("q8_0", "q4_0"):
        tail = blocks[..., 0:2].transpose(0, 3, 2, 4, 1, 5).reshape(P, S, -1)  # P S g t r 2
    elif kind == "q6_k":
        sc = blocks[..., 0, 192:208].reshape(P, 2, 8, S, 2, 4, 2).transpose(0, 3, 2, 5, 4, 1, 6)  # P S g t h r 2
        d = blocks[..., 0, 208:210].transpose(0, 3, 1, 2, 4)  # P S r g 2
        tail = np.concatenate([sc.reshape(P, S, -1), d.reshape(P, S, -1)], -1)
    else:
        v = np.stack(six_bits(blocks[..., 0, 4:16]), -1).astype(np.int64)  # P r g S 8 (scale, min)
        v = v.reshape(P, 2, 8, S, 2, 4, 2).transpose(0, 3, 2, 5, 4, 1, 6)  # P S g t h r 2
        word = (v << np.array([[0, 6], [12, 18]])).sum((-1, -2))  # P S g t h
        tops = blocks[..., 0, 0:4].reshape(P, 2, 8, S, 2, 2).transpose(0, 3, 2, 1, 4, 5)  # P S g r (d, dmin) byte
        tail = words(word + (tops.reshape(P, S, 8, 4, 2).astype(np.int64) << 24)).reshape(P, S, -1)
    return np.ascontiguousarray(np.concatenate([quants, tail], -1)).reshape(-1)


def random_packed(kind, n, k, torch):
    """Bytes on the GPU as `pack` gives them, of random bits and small scales: for timing."""
    cols, size, step = TYPES[kind]
    total = step // cols * size * 16
    w = torch.randint(0, 256, ((n + 15) // 16 * (k // step), total), dtype=torch.uint8, device="cuda")
    tail = {"q8_0": 128, "q4_0": 128, "q6_k": 32}.get(kind, 256)
    if tail == 256:
        w[:, total - 256 + 7::8] = 0x10
    else:
        w[:, total - tail + 1::2] = 0x10
    return w.view(-1)

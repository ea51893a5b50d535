/** Random numbers of one step, for draws that are made here: those of a beam search. */

/** Gives a different noise at every call. */
export type Noise = () => number;

/** Spreads a word's bits over the whole word (the finalizer of MurmurHash3). */
function mix(word: number): number {
  word = Math.imul(word ^ word >>> 16, 0x85ebca6b);
  word = Math.imul(word ^ word >>> 13, 0xc2b2ae35);
  return word ^ word >>> 16;
}

/** xoshiro128** (Blackman and Vigna 2018), which needs 32-bit arithmetic only. */
function* words(key: readonly number[]): Generator<number, never, void> {
  let [a, b, c, d] = [0, 1, 2, 3].map((i) =>
    key.reduce((state, word) => mix(state + 0x9e3779b9 ^ word), i)
  );
  for (;;) {
    const x = Math.imul(b, 5);
    yield Math.imul(x << 7 | x >>> 25, 9) >>> 0;
    const carried = b << 9;
    c ^= a;
    d ^= b;
    b ^= c;
    a ^= d;
    c ^= carried;
    d = d << 11 | d >>> 21;
  }
}

/**
 * Noise by Gumbel's distribution: the `n` largest of log probabilities with such noise added are
 * `n` draws without replacement, in the order drawn (torch.multinomial runs the same race).
 *
 * An engine's logarithm may be off in its last bit, which could matter only where two sums of some
 * fifty random bits are the same: the draws are the same on every runtime.
 *
 * @param key which numbers: the seed's words, the step, the prompt
 */
export function gumbelNoise(key: readonly number[]): Noise {
  const random = words(key);
  const uniform = () => {
    const high = random.next().value >>> 5;
    return (high * 0x4000000 + (random.next().value >>> 6) + 0.5) * 2 ** -53;
  };
  return () => -Math.log(-Math.log(uniform()));
}

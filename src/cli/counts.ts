/** How many tests a runner ran, read from what it printed: exit statuses alone miss empty runs. */

/** How many tests passed, failed and were skipped. */
export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** Counts of several runs together. */
export function sum(all: Counts[]): Counts {
  const total = { passed: 0, failed: 0, skipped: 0 };
  for (const counts of all) {
    total.passed += counts.passed;
    total.failed += counts.failed;
    total.skipped += counts.skipped;
  }
  return total;
}

/**
 * A runner that ends badly has at least one failure, even where its words do not say so: a file
 * that does not compile, a crash, a leak.
 */
function withStatus(counts: Counts, code: number): Counts {
  return code !== 0 && counts.failed === 0 ? { ...counts, failed: 1 } : counts;
}

/** Counts of `zig build test --summary all`: "4/6 tests passed (1 skipped, 1 failed)". */
export function zigCounts(output: string, code: number): Counts {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const found = /Build Summary:.*?(\d+)\/(\d+) tests passed(?: \(([^)]*)\))?/.exec(output);
  if (found) {
    counts.passed = Number(found[1]);
    counts.skipped = Number(/(\d+) skipped/.exec(found[3] ?? "")?.[1] ?? 0);
    // what neither passed nor was skipped failed: by a failure, a crash or a time-out
    counts.failed = Number(found[2]) - counts.passed - counts.skipped;
  }
  return withStatus(counts, code);
}

/** Counts of `bun test`: the closing lines " 3 pass", " 1 skip", " 0 fail". */
export function bunCounts(output: string, code: number): Counts {
  const last = (word: string) => {
    const all = [...output.matchAll(new RegExp(`^ *(\\d+) ${word}$`, "gm"))];
    return Number(all.at(-1)?.[1] ?? 0);
  };
  const skipped = last("skip") + last("todo");
  return withStatus({ passed: last("pass"), failed: last("fail"), skipped }, code);
}

/**
 * Counts of `deno test --junit-path`. A describe is a case of its own there, beside the cases in
 * it: only cases without others below them are counted, so that Bun and Deno count alike.
 *
 * @param junit the text of the report
 * @param output what the runner printed: files that throw while they load are in no report
 */
export function denoCounts(junit: string, output: string, code: number): Counts {
  const counts = { passed: 0, failed: 0, skipped: 0 };
  const cases = [
    ...junit.matchAll(/<testcase name="([^"]*)"[^>]*?(?:\/>|>([\s\S]*?)<\/testcase>)/g),
  ];
  const parents = new Set<string>();
  for (const [, name] of cases) {
    const parts = name.split(" &gt; ");
    for (let depth = 1; depth < parts.length; depth++) {
      parents.add(parts.slice(0, depth).join(" &gt; "));
    }
  }
  for (const [, name, body = ""] of cases) {
    if (parents.has(name)) continue;
    if (/<(failure|error)/.test(body)) counts.failed++;
    else if (body.includes("<skipped")) counts.skipped++;
    else counts.passed++;
  }
  counts.failed += [...output.matchAll(/^Uncaught error from .* FAILED$/gm)].length;
  return withStatus(counts, code);
}

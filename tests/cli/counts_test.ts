import { describe, it } from "node:test";
import { assertEquals } from "@std/assert";
import { bunCounts, denoCounts, sum, zigCounts } from "../../src/cli/counts.ts";
import { closingLine } from "../../src/cli/test.ts";

describe("counts of zig build test", () => {
  it("reads a clean run", () => {
    const output = "Build Summary: 3/3 steps succeeded; 12/12 tests passed\ntest success\n";
    assertEquals(zigCounts(output, 0), { passed: 12, failed: 0, skipped: 0 });
  });
  it("reads skips and failures", () => {
    const output =
      "Build Summary: 4/6 steps succeeded (1 failed); 4/6 tests passed (1 skipped, 1 failed)\n";
    assertEquals(zigCounts(output, 1), { passed: 4, failed: 1, skipped: 1 });
  });
  it("takes a crash and a leak as failures", () => {
    const crashed = "Build Summary: 1/3 steps succeeded (1 failed); 4/6 tests passed (2 crashed)\n";
    assertEquals(zigCounts(crashed, 1).failed, 2);
    const leaked = "Build Summary: 1/3 steps succeeded (1 failed); 6/6 tests passed\n";
    assertEquals(zigCounts(leaked, 1), { passed: 6, failed: 1, skipped: 0 });
  });
  it("sees that nothing ran", () => {
    assertEquals(zigCounts("Build Summary: 3/3 steps succeeded\n", 0), sum([]));
  });
  it("takes a compile error as a failure", () => {
    assertEquals(zigCounts("error: expected ';'\n", 2).failed, 1);
  });
});

describe("counts of bun test", () => {
  it("reads the closing lines, not what a test printed", () => {
    const output = "7 fail\n(pass) a\n\n 3 pass\n 2 skip\n 1 todo\n 0 fail\nRan 6 tests\n";
    assertEquals(bunCounts(output, 0), { passed: 3, failed: 0, skipped: 3 });
  });
  it("takes a bad exit without a failure as one", () => {
    assertEquals(bunCounts(" 3 pass\n 0 fail\n", 1).failed, 1);
  });
  it("sees that nothing ran", () => {
    assertEquals(bunCounts("Ran 0 tests across 1 file.\n", 0), sum([]));
  });
});

describe("counts of deno test", () => {
  const junit = `<testsuites name="deno test" tests="6">
    <testsuite name="./a_test.ts">
        <testcase name="d" classname="./a_test.ts" time="0.1" line="3" col="1">
        </testcase>
        <testcase name="alone" classname="./a_test.ts" time="0.1"/>
    </testsuite>
    <testsuite name="steps">
        <testcase name="d &gt; a" classname="x" time="0">
        </testcase>
        <testcase name="d &gt; b" classname="x" time="0">
            <skipped/>
        </testcase>
        <testcase name="d &gt; e" classname="x" time="0">
        </testcase>
        <testcase name="d &gt; e &gt; f" classname="x" time="0">
            <failure message="no">AssertionError</failure>
        </testcase>
    </testsuite>
</testsuites>`;
  it("counts cases, not the describes around them", () => {
    assertEquals(denoCounts(junit, "", 1), { passed: 2, failed: 1, skipped: 1 });
  });
  it("counts files that do not load", () => {
    const output = "a ... ok (1ms)\nUncaught error from ./b_test.ts FAILED\n";
    assertEquals(denoCounts("", output, 1), { passed: 0, failed: 1, skipped: 0 });
  });
  it("takes a missing report as a failure when the exit says so", () => {
    assertEquals(denoCounts("", "", 1), { passed: 0, failed: 1, skipped: 0 });
    assertEquals(denoCounts("", "", 0), sum([]));
  });
});

describe("the closing line", () => {
  it("names skips only where there are some", () => {
    assertEquals(closingLine({ passed: 3, failed: 0, skipped: 0 }), "3 passed, 0 failed");
    assertEquals(
      closingLine({ passed: 3, failed: 1, skipped: 2 }),
      "3 passed, 1 failed, 2 skipped",
    );
  });
});

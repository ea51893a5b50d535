/** `./dev build`: the native library. */
import { type Command, Option } from "commander";
import process from "node:process";
import { SilentFailure } from "./errors.ts";
import { addRuntime } from "./options.ts";
import { toolPath } from "./place.ts";
import { runTool } from "./process.ts";

interface BuildFlags {
  cuda: "auto" | "on" | "off";
  target?: string;
  optimize?: string;
}

/**
 * Arguments of `zig build` for the options given.
 *
 * @param nvcc path of the compiler of CUDA kernels, which `./dev` has looked for; empty: none
 */
export function zigArguments(flags: BuildFlags, nvcc = ""): string[] {
  const args = ["build", "--build-file", "zig/build.zig"];
  if (nvcc && flags.cuda !== "off") args.push(`-Dnvcc=${nvcc}`);
  if (flags.target) {
    // a library for another machine must not take the place of this one's
    args.push(`-Dtarget=${flags.target}`, "--prefix", resultFolder(flags));
  }
  if (flags.optimize) args.push(`-Doptimize=${flags.optimize}`);
  return args;
}

/** Where a build leaves its results, relative to the project. */
export function resultFolder({ target }: BuildFlags): string {
  return target ? `zig/zig-out/${target}` : "zig/zig-out";
}

async function build(flags: BuildFlags): Promise<void> {
  const args = zigArguments(flags, process.env.BAMBA_DEV_NVCC);
  const ended = await runTool(toolPath("zig"), args, { show: true });
  if (ended.code !== 0) throw new SilentFailure();
  const what = args.some((arg) => arg.startsWith("-Dnvcc")) ? "CPU and CUDA" : "the CPU only";
  console.error(`Built ${resultFolder(flags)}/lib for ${what} in ${ended.seconds.toFixed(1)} s.`);
}

/** Adds `build` to the program. */
export function addBuild(program: Command): void {
  const command = program.command("build")
    .description(
      "Build the native library into zig/zig-out/lib (with --target: zig/zig-out/<triple>/lib)",
    )
    .addOption(
      new Option(
        "--cuda <when>",
        "CUDA kernels; auto: when nvcc 13 is found, on: fetched if need be",
      )
        .choices(["auto", "on", "off"]).default("auto"),
    )
    .option("--target <triple>", "Zig's name of the machine to build for (default: this one)")
    .addOption(
      new Option("--optimize <mode>", "how to compile (default: ReleaseFast)")
        .choices(["Debug", "ReleaseSafe", "ReleaseFast", "ReleaseSmall"]),
    );
  addRuntime(command).addHelpText(
    "after",
    `
Other subcommands build what is missing or older than its sources by themselves.

Examples:
  ./dev build --cuda on
  ./dev build --target aarch64-linux-gnu.2.17`,
  ).action(build);
}

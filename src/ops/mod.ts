/** All operations: each checks shapes and records one command. */

export * from "./attention.ts";
export * from "./conv1d.ts";
export * from "./elementwise.ts";
export * from "./embedding.ts";
export * from "./linear.ts";
export * from "./loss.ts";
export * from "./norm.ts";
export * from "./rope.ts";
export * from "./sample.ts";
export * from "./ssm.ts";

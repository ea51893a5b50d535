//! The gate: nothing reaches a kernel that has not passed here. `plan` checks a plan's bytes once,
//! `step` the step buffer of each job; both say in one sentence what was expected and what was
//! found.
//!
//! What they promise to kernels: every operand lies inside its space, at the alignment of its
//! dtype; shapes, rows, layouts and dtypes fit each other as `Op` says; attributes are in range;
//! results overlap no input in part; ids, positions, slots, pages and rows of a step are inside
//! their tables, for all steps of the job; no page that will be written belongs to two sequences.
//! They promise nothing about values that are never an address: weights may be NaN.
//!
//! The bytes must not change between the check and the run: callers copy them first.

const plan_file = @import("validate/plan.zig");
const step_file = @import("validate/step.zig");
const failure_file = @import("validate/failure.zig");

pub const Failure = failure_file.Failure;
pub const Rejected = failure_file.Rejected;
pub const Resolver = plan_file.Resolver;
pub const Plan = plan_file.Plan;
pub const Needs = plan_file.Needs;
pub const Run = step_file.Run;

pub const plan = plan_file.plan;
pub const step = step_file.step;

test {
    _ = failure_file;
    _ = plan_file;
    _ = step_file;
    _ = @import("validate/plan_test.zig");
    _ = @import("validate/step_test.zig");
}

//! What a GPU asks of a plan beyond `Op`'s shapes: its activations may be bf16, and its kernels
//! have limits. The CPU's activations are all f32.

const block = @import("../cpu/block.zig");
const command = @import("command");
const cuda = @import("../cuda/main.zig");
const failure = @import("failure.zig");
const ops = @import("ops.zig");
const Checked = ops.Checked;
const Rejected = failure.Rejected;
const DType = command.DType;

/// Channels of an attention head, and columns of an SSM state, that a block keeps in registers.
const channels_max = 256;
/// Ids whose sums one block of the sampler keeps.
const vocab_max = 1 << 19;

pub fn check(c: *const Checked) Rejected!void {
    if (c.plan.device == .cpu) return;
    switch (c.command.op) {
        .embedding => {
            try whole(c, 1);
            if (c.given[1].?.dtype == .f8_e4m3) return c.fail(
                .unsupported,
                1,
                "of another dtype on a GPU but found {t}",
                .{c.given[1].?.dtype},
            );
        },
        .linear => try linear(c),
        .rotary_embedding => try expectAll(c, .f32),
        .log_softmax, .logits_process, .logits_warp, .sample, .cross_entropy => {
            try expectAll(c, .f32);
            if (c.given[0].?.shape[1] > vocab_max) return c.fail(
                .unsupported,
                0,
                "to have at most {d} columns on a GPU but found {d}",
                .{ vocab_max, c.given[0].?.shape[1] },
            );
        },
        .rope => {
            try expect(c, 1, .f32);
            try expect(c, 2, .f32);
            try expect(c, 3, c.given[0].?.dtype);
        },
        .attention_probs => {
            try atMost(c, 0, c.command.attrs[2]);
            try expectKept(c, &.{1});
            try expect(c, 2, .f32);
        },
        .attention => {
            try atMost(c, 0, c.command.attrs[2]);
            try expectKept(c, &.{ 1, 2 });
            try expect(c, 3, c.given[0].?.dtype);
        },
        .kv_append => {
            try expect(c, 1, c.given[0].?.dtype);
            try expectKept(c, &.{ 2, 3 });
        },
        .ssm_scan, .ssm_update => {
            try atMost(c, 2, c.command.attrs[3]);
            try expectAll(c, c.given[0].?.dtype);
        },
        else => try expectAll(c, c.given[0].?.dtype),
    }
}

/// Weights in blocks have steps of so many columns.
fn whole(c: *const Checked, i: usize) Rejected!void {
    const found = c.given[i].?;
    const columns = cuda.blocks.columns(found.dtype);
    if (found.shape[1] % columns != 0) return c.fail(
        .unsupported,
        i,
        "of {t} to have a multiple of {d} columns on a GPU but found {d}",
        .{ found.dtype, columns, found.shape[1] },
    );
}

fn linear(c: *const Checked) Rejected!void {
    try whole(c, 1);
    const x = c.given[0].?.dtype;
    if (c.given[3]) |residual| {
        try expect(c, 3, x);
        try expect(c, 4, residual.dtype);
    }
    const weight = c.given[1].?.dtype;
    if (block.is(weight) or weight == .f8_e4m3) {
        if (x == .f32) try expect(c, 4, .f32);
        return;
    }
    if (x == .bf16) return expect(c, 1, .bf16);
    try expect(c, 4, .f32);
}

fn expect(c: *const Checked, i: usize, wanted: DType) Rejected!void {
    const found = c.given[i].?.dtype;
    if (found != wanted)
        return c.fail(.type, i, "to have dtype {t} but found {t}", .{ wanted, found });
}

/// Keys and values: floats, both of one dtype.
fn expectKept(c: *const Checked, places: []const usize) Rejected!void {
    for (places) |i| switch (c.given[i].?.dtype) {
        .f32, .bf16, .f16 => try expect(c, i, c.given[places[0]].?.dtype),
        else => |found| return c.fail(
            .unsupported,
            i,
            "to be f32, bf16 or f16 on a GPU but found {t}",
            .{found},
        ),
    };
}

/// All activations of the command.
fn expectAll(c: *const Checked, wanted: DType) Rejected!void {
    for (c.slots, 0..) |slot, i| switch (slot.role) {
        .in, .out => try expect(c, i, wanted),
        else => {},
    };
}

fn atMost(c: *const Checked, i: usize, found: u32) Rejected!void {
    if (found > channels_max) return c.fail(
        .unsupported,
        i,
        "to have at most {d} channels a head or group on a GPU but found {d}",
        .{ channels_max, found },
    );
}

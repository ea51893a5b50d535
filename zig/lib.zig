//! The fourteen exports. Each gives its arguments to the file that knows, and keeps the sentence of
//! a failure.

const std = @import("std");
const abi = @import("abi.zig");
const buffer = @import("buffer.zig");
const command = @import("command");
const device = @import("device.zig");
const file = @import("file.zig");
const info = @import("info.zig");
const job = @import("job.zig");
const plan = @import("plan.zig");
const status = @import("status.zig");
const Buf = command.Buf;
const Failure = status.Failure;
const answer = status.answer;

/// The program's threads keep their own signal stacks: std's would be 256 KiB a thread and level.
pub const std_options: std.Options = .{ .signal_stack_size = null };

pub export fn bamba_abi() u32 {
    return abi.hash;
}

pub export fn bamba_info(of: u32, out: Buf, out_len: u32) i32 {
    var f: Failure = .{};
    return answer(info.tell(of, out[0..out_len], &f), &f);
}

pub export fn bamba_device_open(o: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var f: Failure = .{};
    return answer(device.open(o[0..len], out[0..out_len], &f), &f);
}

pub export fn bamba_buffer_create(o: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var f: Failure = .{};
    return answer(buffer.create(o[0..len], out[0..out_len], &f), &f);
}

pub export fn bamba_buffer_read(h: u32, span: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var f: Failure = .{};
    return answer(buffer.read(h, span[0..len], out[0..out_len], &f), &f);
}

pub export fn bamba_buffer_write(h: u32, span: Buf, len: u32, data: Buf, data_len: u32) i32 {
    var f: Failure = .{};
    return answer(buffer.write(h, span[0..len], data[0..data_len], &f), &f);
}

pub export fn bamba_buffer_copy(src: u32, dst: u32, spans: Buf, len: u32) i32 {
    var f: Failure = .{};
    return answer(buffer.copy(src, dst, spans[0..len], &f), &f);
}

pub export fn bamba_file_open(path: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var f: Failure = .{};
    return answer(file.open(path[0..len], out[0..out_len], &f), &f);
}

pub export fn bamba_plan_create(of: u32, data: Buf, len: u32, out: Buf, out_len: u32) i32 {
    var f: Failure = .{};
    return answer(plan.create(of, data[0..len], out[0..out_len], &f), &f);
}

pub export fn bamba_job_start(
    o: Buf,
    len: u32,
    data: Buf,
    data_len: u32,
    out: Buf,
    out_len: u32,
) i32 {
    var f: Failure = .{};
    return answer(job.start(o[0..len], data[0..data_len], out[0..out_len], &f), &f);
}

pub export fn bamba_job_wait(h: u32, timeout_ms: u32, out: Buf, out_len: u32) i32 {
    var f: Failure = .{};
    return answer(job.wait(h, timeout_ms, out[0..out_len], &f), &f);
}

pub export fn bamba_job_cancel(h: u32) i32 {
    var f: Failure = .{};
    return answer(job.cancel(h, &f), &f);
}

pub export fn bamba_free(h: u32) i32 {
    var f: Failure = .{};
    return answer(job.free(h, &f), &f);
}

pub export fn bamba_error(h: u32, out: Buf, out_len: u32) i32 {
    if (h == 0) return status.copyLast(out[0..out_len]);
    var f: Failure = .{};
    return job.copyError(h, out[0..out_len], &f) catch answer(error.Rejected, &f);
}

comptime {
    // What is exported and what is declared are the same functions.
    for (@typeInfo(command.functions).@"struct".decls) |declared| {
        const T = @field(command.functions, declared.name);
        if (@TypeOf(@field(@This(), declared.name)) != T)
            @compileError(declared.name ++ " is not what command.zig declares");
    }
}

test {
    _ = @import("testing/main.zig");
}

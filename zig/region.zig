//! Memory of a device: pages of the host, or bytes of a GPU. Buffers and plans hold it; only who
//! runs on that device follows its addresses.

const std = @import("std");
const cuda = @import("cuda/main.zig");
const memory = @import("memory.zig");
const status = @import("status.zig");
const Failure = status.Failure;
const Rejected = status.Rejected;

const OnGpu = struct { gpu: *cuda.Gpu, address: [*]u8, bytes: u64 };

pub const Region = union(enum) {
    host: memory.Pages,
    gpu: OnGpu,

    pub const none: Region = .{ .host = memory.none };

    /// Zeroed memory, of the host where `gpu` is null. `what` names it where there is too little.
    pub fn make(
        gpu: ?*cuda.Gpu,
        bytes: u64,
        huge: bool,
        what: []const u8,
        f: *Failure,
    ) Rejected!Region {
        const g = gpu orelse return .{ .host = try memory.map(bytes, huge, what, f) };
        const address = try g.allocate(bytes, what, f);
        return .{ .gpu = .{ .gpu = g, .address = @ptrFromInt(address), .bytes = bytes } };
    }

    pub fn free(r: Region) void {
        switch (r) {
            .host => |pages| memory.unmap(pages),
            .gpu => |m| m.gpu.free(@intFromPtr(m.address), m.bytes),
        }
    }

    /// The GPU whose memory it is; null for the host.
    pub fn owner(r: Region) ?*cuda.Gpu {
        return if (r == .gpu) r.gpu.gpu else null;
    }
    pub fn ptr(r: Region) [*]u8 {
        return switch (r) {
            .host => |pages| pages.ptr,
            .gpu => |m| m.address,
        };
    }
    pub fn len(r: Region) u64 {
        return switch (r) {
            .host => |pages| pages.len,
            .gpu => |m| m.bytes,
        };
    }

    /// Fills `out` from byte `at` on; the caller has checked that it lies inside, as below.
    pub fn read(r: Region, at: u64, out: []u8, f: *Failure) Rejected!void {
        switch (r) {
            .host => |pages| @memcpy(out, pages[at..][0..out.len]),
            .gpu => |m| try m.gpu.read(@intFromPtr(m.address) + at, out, f),
        }
    }
    pub fn write(r: Region, at: u64, from: []const u8, f: *Failure) Rejected!void {
        switch (r) {
            .host => |pages| @memcpy(pages[at..][0..from.len], from),
            .gpu => |m| try m.gpu.write(@intFromPtr(m.address) + at, from, f),
        }
    }
    /// Moves bytes from one region to another of the same device; they may overlap in the host's.
    pub fn copy(
        to: Region,
        at: u64,
        from: Region,
        from_at: u64,
        n: u64,
        f: *Failure,
    ) Rejected!void {
        if (to.owner() != from.owner()) return f.set(
            .invalid,
            "Expected two buffers of one device but found them on two",
            .{},
        );
        switch (to) {
            .host => |pages| @memmove(pages[at..][0..n], from.host[from_at..][0..n]),
            .gpu => |m| {
                const source = @intFromPtr(from.gpu.address) + from_at;
                try m.gpu.copy(@intFromPtr(m.address) + at, source, n, f);
            },
        }
    }
};

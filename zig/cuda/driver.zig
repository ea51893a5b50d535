//! libcuda, found by dlopen: no toolkit is needed to build this library or to run it. One table of
//! typed functions; a field's name is the symbol's (the headers' macros hide the `_v2`).

const std = @import("std");

pub const Result = c_int;
pub const Address = u64;
pub const Handle = ?*anyopaque;

pub const ok: Result = 0;
pub const out_of_memory: Result = 2;

/// As `Info.cuda_status` says it.
pub const Status = struct {
    pub const usable: i32 = 0;
    pub const not_built: i32 = -9;
    pub const no_driver: i32 = -101;
    pub const old_driver: i32 = -102;
    pub const no_gpu: i32 = -103;
};

pub const attribute = struct {
    pub const multiprocessors: c_int = 16;
    pub const capability_major: c_int = 75;
    pub const capability_minor: c_int = 76;
};
pub const function_shared_memory: c_int = 8;
pub const stream_non_blocking: c_uint = 1;
/// Events whose waiters sleep, and that keep no time.
pub const event_sleep_no_time: c_uint = 1 | 2;
pub const event_no_time: c_uint = 2;
/// Records an event as a node of the graph that is being captured.
pub const event_external: c_uint = 1;
pub const capture_thread_local: c_int = 1;
/// Each thread's own stream.
pub const stream_per_thread: Handle = @ptrFromInt(2);

/// A launch's attribute: an id and 64 bytes of value.
pub const Attribute = extern struct {
    id: c_int,
    pad: c_int = 0,
    value: [16]u32 = @splat(0),

    /// The kernel may start while the one before it still runs (`pdl_wait` in common.cuh).
    pub const overlap: Attribute = .{ .id = 6, .value = .{1} ++ @as([15]u32, @splat(0)) };
    pub fn cluster(n: u32) Attribute {
        return .{ .id = 4, .value = .{ n, 1, 1 } ++ @as([13]u32, @splat(0)) };
    }
};
pub const LaunchConfig = extern struct {
    grid: [3]c_uint,
    block: [3]c_uint,
    shared_bytes: c_uint,
    stream: Handle,
    attributes: [*]const Attribute,
    n_attributes: c_uint,
};
/// How the tensor memory accelerator reads a matrix; a kernel's argument.
pub const TensorMap = extern struct { words: [16]u64 align(64) = @splat(0) };

pub const Api = struct {
    cuInit: *const fn (c_uint) callconv(.c) Result,
    cuGetErrorName: *const fn (Result, *?[*:0]const u8) callconv(.c) Result,
    cuGetErrorString: *const fn (Result, *?[*:0]const u8) callconv(.c) Result,
    cuDeviceGetCount: *const fn (*c_int) callconv(.c) Result,
    cuDeviceGet: *const fn (*c_int, c_int) callconv(.c) Result,
    cuDeviceGetName: *const fn ([*]u8, c_int, c_int) callconv(.c) Result,
    cuDeviceGetAttribute: *const fn (*c_int, c_int, c_int) callconv(.c) Result,
    cuDevicePrimaryCtxRetain: *const fn (*Handle, c_int) callconv(.c) Result,
    cuCtxSetCurrent: *const fn (Handle) callconv(.c) Result,
    cuMemGetInfo_v2: *const fn (*usize, *usize) callconv(.c) Result,
    cuMemAlloc_v2: *const fn (*Address, usize) callconv(.c) Result,
    cuMemFree_v2: *const fn (Address) callconv(.c) Result,
    cuMemHostAlloc: *const fn (*Handle, usize, c_uint) callconv(.c) Result,
    cuMemFreeHost: *const fn (Handle) callconv(.c) Result,
    cuMemHostRegister_v2: *const fn (*anyopaque, usize, c_uint) callconv(.c) Result,
    cuMemHostUnregister: *const fn (*anyopaque) callconv(.c) Result,
    cuMemcpyHtoDAsync_v2: *const fn (Address, *const anyopaque, usize, Handle) callconv(.c) Result,
    cuMemcpyDtoHAsync_v2: *const fn (*anyopaque, Address, usize, Handle) callconv(.c) Result,
    cuMemcpyDtoDAsync_v2: *const fn (Address, Address, usize, Handle) callconv(.c) Result,
    cuMemsetD8Async: *const fn (Address, u8, usize, Handle) callconv(.c) Result,
    cuStreamCreate: *const fn (*Handle, c_uint) callconv(.c) Result,
    cuStreamDestroy_v2: *const fn (Handle) callconv(.c) Result,
    cuStreamSynchronize: *const fn (Handle) callconv(.c) Result,
    cuEventCreate: *const fn (*Handle, c_uint) callconv(.c) Result,
    cuEventRecordWithFlags: *const fn (Handle, Handle, c_uint) callconv(.c) Result,
    cuEventSynchronize: *const fn (Handle) callconv(.c) Result,
    cuEventElapsedTime: *const fn (*f32, Handle, Handle) callconv(.c) Result,
    cuEventDestroy_v2: *const fn (Handle) callconv(.c) Result,
    cuModuleLoadData: *const fn (*Handle, *const anyopaque) callconv(.c) Result,
    cuModuleGetFunction: *const fn (*Handle, Handle, [*:0]const u8) callconv(.c) Result,
    cuFuncSetAttribute: *const fn (Handle, c_int, c_int) callconv(.c) Result,
    cuLaunchKernelEx: *const fn (
        *const LaunchConfig,
        Handle,
        [*]const ?*const anyopaque,
        Handle,
    ) callconv(.c) Result,
    cuOccupancyMaxActiveClusters: *const fn (
        *c_int,
        Handle,
        *const LaunchConfig,
    ) callconv(.c) Result,
    cuStreamBeginCapture_v2: *const fn (Handle, c_int) callconv(.c) Result,
    cuStreamEndCapture: *const fn (Handle, *Handle) callconv(.c) Result,
    cuGraphInstantiateWithFlags: *const fn (*Handle, Handle, u64) callconv(.c) Result,
    cuGraphLaunch: *const fn (Handle, Handle) callconv(.c) Result,
    cuGraphExecDestroy: *const fn (Handle) callconv(.c) Result,
    cuGraphDestroy: *const fn (Handle) callconv(.c) Result,
    cuTensorMapEncodeTiled: *const fn (
        *TensorMap,
        c_int,
        c_uint,
        Address,
        [*]const u64,
        [*]const u64,
        [*]const u32,
        [*]const u32,
        c_int,
        c_int,
        c_int,
        c_int,
    ) callconv(.c) Result,
};

pub const Found = union(enum) { api: *const Api, status: i32 };

var table: Api = undefined;
var library: ?std.DynLib = null;

/// Opens libcuda and starts it. Not for two threads at once.
pub fn open() Found {
    if (library != null) return .{ .api = &table };
    var l = std.DynLib.open("libcuda.so.1") catch return .{ .status = Status.no_driver };
    inline for (comptime std.meta.fieldNames(Api)) |name| {
        @field(table, name) = l.lookup(@FieldType(Api, name), name) orelse {
            l.close();
            return .{ .status = Status.old_driver };
        };
    }
    var count: c_int = 0;
    const started = table.cuInit(0) == ok and table.cuDeviceGetCount(&count) == ok;
    if (!started or count == 0) {
        l.close();
        return .{ .status = Status.no_gpu };
    }
    library = l;
    return .{ .api = &table };
}

/// What the driver calls a result.
pub fn words(api: *const Api, result: Result) []const u8 {
    var text: ?[*:0]const u8 = null;
    if (api.cuGetErrorString(result, &text) != ok) return "unknown error";
    return std.mem.span(text orelse return "unknown error");
}

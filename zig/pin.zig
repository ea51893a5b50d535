//! Keeps the library in memory: its threads outlive a runtime's dlclose.

const std = @import("std");
const builtin = @import("builtin");
const DlInfo = extern struct {
    fname: ?[*:0]const u8,
    fbase: ?*anyopaque,
    sname: ?[*:0]const u8,
    saddr: ?*anyopaque,
};
extern "c" fn dladdr(*const anyopaque, *DlInfo) c_int;
extern "c" fn getauxval(c_ulong) c_ulong;
extern "c" fn dlopen(?[*:0]const u8, c_int) ?*anyopaque;
const rtld_now_noload_nodelete = 0x1006;

var done: std.atomic.Value(bool) = .init(false);

pub fn pinned() bool {
    // A program linked statically, as the tests for other CPUs are, has nothing to unload.
    if (builtin.os.tag == .linux and builtin.link_mode == .static) return true;
    if (done.load(.acquire)) return true;
    var found: DlInfo = undefined;
    const here: *const anyopaque = @ptrCast(&pinned);
    if (dladdr(here, &found) == 0) return false;
    if (!isProgram(found) and dlopen(found.fname, rtld_now_noload_nodelete) == null) return false;
    done.store(true, .release);
    return true;
}

/// Whether this code is part of the program itself, as in the fuzzer: that is never unloaded.
fn isProgram(here: DlInfo) bool {
    if (builtin.os.tag != .linux) return false;
    const headers = getauxval(std.elf.AT_PHDR);
    var program: DlInfo = undefined;
    return headers != 0 and dladdr(@ptrFromInt(headers), &program) != 0 and
        program.fbase == here.fbase;
}

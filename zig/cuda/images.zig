//! The compiled kernels inside the library: one image for each file of `kernels/`, or none where
//! the library was built without nvcc.

const std = @import("std");
const kernels = @import("kernels");

pub const all = kernels.images;
pub const count = all.len;

/// The number of the image made from `kernels/<stem>.cu`. In a library without kernels nobody asks.
pub fn indexOf(comptime stem: []const u8) usize {
    inline for (all, 0..) |image, i| if (comptime std.mem.eql(u8, image.stem, stem)) return i;
    if (count == 0) return 0;
    @compileError("no file kernels/" ++ stem ++ ".cu");
}

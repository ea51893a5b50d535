//! Where the tests of CUDA kernels on a CPU start, so that they see the library's files.

test {
    _ = @import("cuda/emulated/test_mma.zig");
    _ = @import("cuda/emulated/test_sm90.zig");
}

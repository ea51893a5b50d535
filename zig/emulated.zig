//! Where the tests of CUDA kernels on a CPU start, so that they see the library's files.

test {
    _ = @import("cuda/emulated/attention_decode_test.zig");
    _ = @import("cuda/emulated/attention_sm90_steep_test.zig");
    _ = @import("cuda/emulated/attention_sm90_test.zig");
    _ = @import("cuda/emulated/blocks_sm90_test.zig");
    _ = @import("cuda/emulated/chain_test.zig");
    _ = @import("cuda/emulated/linear_fp8_sm90_test.zig");
    _ = @import("cuda/emulated/linear_sm90_test.zig");
    _ = @import("cuda/emulated/mma_test.zig");
    _ = @import("cuda/emulated/one_token_test.zig");
    _ = @import("cuda/emulated/rows_chain_test.zig");
    _ = @import("cuda/emulated/ssm_scan_sm90_test.zig");
}

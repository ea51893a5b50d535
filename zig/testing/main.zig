//! The tests of the core: through the exports, as JavaScript calls them, and of its parts.

test {
    _ = @import("../abi.zig");
    _ = @import("../cuda/chain.zig");
    _ = @import("../cuda/linear_shares.zig");
    _ = @import("../cuda/spares.zig");
    _ = @import("../memory.zig");
    _ = @import("../ranges.zig");
    _ = @import("../ring.zig");
    _ = @import("../validate.zig");
}

//! Checks of a step's page table: every position has a page inside the buffer, and a page that will
//! be written belongs to one place of one sequence. Full pages of a common past may be shared.

const std = @import("std");
const command = @import("command");
const failure = @import("failure.zig");
const View = @import("step.zig").View;
const Rejected = failure.Rejected;

pub fn check(v: *const View) Rejected!void {
    const room = v.run.kv_bytes.? / v.plan.page_bytes;
    var total: u64 = 0;
    for (0..v.header.n_seqs) |s| {
        const needed = pagesOf(v.contextEnd(s));
        if (needed > v.header.max_pages) return v.f.set(
            .range,
            "Expected {d} pages for the {d} positions of sequence {d} but found {d}",
            .{ needed, v.contextEnd(s), s, v.header.max_pages },
        );
        total += needed;
    }
    const used = v.gpa.alloc(Use, total) catch return v.f.memory(total * @sizeOf(Use));
    defer v.gpa.free(used);
    var n: usize = 0;
    for (0..v.header.n_seqs) |s| {
        const first_written = v.u(.past_len, s) / command.page_tokens;
        for (0..pagesOf(v.contextEnd(s))) |p| {
            const page = v.u(.pages, s * v.header.max_pages + p);
            if (page >= room) return v.f.set(
                .range,
                "Expected pages below {d}, for which there is room, " ++
                    "but found {d} as page {d} of sequence {d}",
                .{ room, page, p, s },
            );
            used[n] = .{ .page = page, .written = p >= first_written };
            n += 1;
        }
    }
    std.mem.sortUnstable(Use, used, {}, Use.before);
    for (1..@max(1, used.len)) |i| {
        if (used[i].page != used[i - 1].page) continue;
        // Written uses come first, so a page with one shows it here.
        if (used[i - 1].written) return v.f.set(
            .invalid,
            "Expected a page that will be written to be in one place but found page {d} twice",
            .{used[i].page},
        );
    }
}

fn pagesOf(positions: u64) u64 {
    return (positions + command.page_tokens - 1) / command.page_tokens;
}

const Use = struct {
    page: u32,
    written: bool,
    fn before(_: void, a: Use, b: Use) bool {
        if (a.page != b.page) return a.page < b.page;
        return a.written and !b.written;
    }
};

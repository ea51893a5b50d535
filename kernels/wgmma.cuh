// Warpgroup matrix steps (Hopper only): D(64xN) (+)= A(64xK) * B(KxN), sums in f32. A warpgroup starts one, commits
// it and waits for it later. A comes from shared memory or from registers (`rs`); 16 columns of bf16 a step, or 32
// of e4m3. keep = 0 starts the sums at zero.
#pragma once
#include "hopper.cuh"
#if HOPPER

// Tiles lie in rows of 128 bytes with the 128-byte swizzle: 16-byte piece c of row r is stored at piece
// c ^ (r & 7). `lead` is the distance between tiles of 64 columns where the columns are the operand's
// outer dimension (TRANS_B = 1), else unused.
DEVICE uint64_t wgmma_desc(uint32_t addr, uint32_t lead) {
    return (uint64_t)((addr & 0x3ffff) >> 4) | (uint64_t)(lead >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
           (uint64_t)1 << 62;
}
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }
// Keeps the compiler from moving accumulators across a wait.
template <int N> DEVICE void wgmma_touch(float* d) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// The instruction names each of its registers, and `asm` knows them by number only: lists for 64xN sums over the
// 128 threads of a warpgroup, N / 2 a thread.
#define WGMMA_D4 "%0,%1,%2,%3"
#define WGMMA_D8 WGMMA_D4 ",%4,%5,%6,%7"
#define WGMMA_D16 WGMMA_D8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define WGMMA_D32 WGMMA_D16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_D64 WGMMA_D32 \
    ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47" \
    ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define WGMMA_D96 WGMMA_D64 \
    ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79" \
    ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define WGMMA_D112 WGMMA_D96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define WGMMA_D128 WGMMA_D112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define WGMMA_SUMS4(d) "+f"((d)[0]), "+f"((d)[1]), "+f"((d)[2]), "+f"((d)[3])
#define WGMMA_SUMS8(d) WGMMA_SUMS4(d), WGMMA_SUMS4((d) + 4)
#define WGMMA_SUMS16(d) WGMMA_SUMS8(d), WGMMA_SUMS8((d) + 8)
#define WGMMA_SUMS32(d) WGMMA_SUMS16(d), WGMMA_SUMS16((d) + 16)
#define WGMMA_SUMS64(d) WGMMA_SUMS32(d), WGMMA_SUMS32((d) + 32)
#define WGMMA_SUMS96(d) WGMMA_SUMS64(d), WGMMA_SUMS32((d) + 64)
#define WGMMA_SUMS112(d) WGMMA_SUMS64(d), WGMMA_SUMS32((d) + 64), WGMMA_SUMS16((d) + 96)
#define WGMMA_SUMS128(d) WGMMA_SUMS64(d), WGMMA_SUMS64((d) + 64)

// `keep` and the operands behind the sums are named by their numbers, which follow those of the sums.
#define WGMMA_STEP(n, sums, keep, shape, rest) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " keep ", 0;\n" \
    "wgmma.mma_async.sync.aligned.m64n" #n shape " {" WGMMA_D##sums "}, " rest ";\n}\n"
#define WGMMA_SS(n, sums, a_at, b_at, keep_at, trans_at) \
    template <int TRANS_B> DEVICE void wgmma_n##n##_ss(float* d, uint64_t a, uint64_t b, int keep) { \
        asm volatile(WGMMA_STEP(n, sums, keep_at, "k16.f32.bf16.bf16", \
                                a_at ", " b_at ", p, 1, 1, 0, " trans_at) \
                     : WGMMA_SUMS##sums(d) \
                     : "l"(a), "l"(b), "r"(keep), "n"(TRANS_B)); \
    }
#define WGMMA_RS(n, sums, a_at, b_at, keep_at, trans_at) \
    template <int TRANS_B> DEVICE void wgmma_n##n##_rs(float* d, const uint32_t* a, uint64_t b, int keep) { \
        asm volatile(WGMMA_STEP(n, sums, keep_at, "k16.f32.bf16.bf16", \
                                "{" a_at "}, " b_at ", p, 1, 1, " trans_at) \
                     : WGMMA_SUMS##sums(d) \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(keep), "n"(TRANS_B)); \
    }
#define WGMMA_E4M3(n, sums, a_at, b_at, keep_at) \
    DEVICE void wgmma_n##n##_e4m3(float* d, uint64_t a, uint64_t b, int keep) { \
        asm volatile(WGMMA_STEP(n, sums, keep_at, "k32.f32.e4m3.e4m3", a_at ", " b_at ", p, 1, 1") \
                     : WGMMA_SUMS##sums(d) \
                     : "l"(a), "l"(b), "r"(keep)); \
    }
WGMMA_SS(8, 4, "%4", "%5", "%6", "%7")
WGMMA_SS(16, 8, "%8", "%9", "%10", "%11")
WGMMA_SS(32, 16, "%16", "%17", "%18", "%19")
WGMMA_SS(64, 32, "%32", "%33", "%34", "%35")
WGMMA_SS(128, 64, "%64", "%65", "%66", "%67")
WGMMA_SS(192, 96, "%96", "%97", "%98", "%99")
WGMMA_SS(224, 112, "%112", "%113", "%114", "%115")
WGMMA_SS(256, 128, "%128", "%129", "%130", "%131")
WGMMA_RS(16, 8, "%8,%9,%10,%11", "%12", "%13", "%14")
WGMMA_RS(64, 32, "%32,%33,%34,%35", "%36", "%37", "%38")
WGMMA_RS(128, 64, "%64,%65,%66,%67", "%68", "%69", "%70")
WGMMA_RS(256, 128, "%128,%129,%130,%131", "%132", "%133", "%134")
WGMMA_E4M3(8, 4, "%4", "%5", "%6")
WGMMA_E4M3(16, 8, "%8", "%9", "%10")
WGMMA_E4M3(32, 16, "%16", "%17", "%18")
WGMMA_E4M3(64, 32, "%32", "%33", "%34")
WGMMA_E4M3(128, 64, "%64", "%65", "%66")
WGMMA_E4M3(256, 128, "%128", "%129", "%130")
#undef WGMMA_SS
#undef WGMMA_RS
#undef WGMMA_E4M3
#endif  // HOPPER

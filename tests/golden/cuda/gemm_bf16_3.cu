// gemm: generated for sm_89
// schedule: tiles={M: 64, N: 128, K: 32}, warps=4, stages=3
// block:    4 warps, 128 threads
// grid:     i over M in tiles of 64
// grid:     j over N in tiles of 128
// shared:   36864 bytes

using uint32_t = unsigned int;
using bf16 = unsigned short;  // its bits

// XOR of the 16-byte chunk number with the row number (PTX ISA, Swizzling modes)
template <int Mask>
__device__ __forceinline__ uint32_t swizzle(uint32_t offset) {
    return offset ^ ((offset >> 3) & Mask);
}

// PTX ISA, cp.async: 16 bytes
__device__ __forceinline__ void cp_async_16(uint32_t dst, const void* src) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(dst), "l"(src) : "memory");
}

// PTX ISA, cp.async.commit_group
__device__ __forceinline__ void commit_group() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// PTX ISA, cp.async.wait_group: at most N of this thread's groups stay in flight
template <int N>
__device__ __forceinline__ void wait_group() {
    asm volatile("cp.async.wait_group %0;" :: "n"(N) : "memory");
}

// PTX ISA, ldmatrix: 4 blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8
__device__ __forceinline__ void ldmatrix_x4(uint32_t* d, uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
             : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row) : "memory");
}

// PTX ISA, ldmatrix: 4 blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t* d, uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
             : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row) : "memory");
}

// PTX ISA, Matrix Fragments for mma.m16n8k16 with floating point type: c += a b
__device__ __forceinline__ void mma_m16n8k16_bf16(float* c, const uint32_t* a, const uint32_t* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// PTX ISA, cvt: two floats to packed bfloat16, the first in the low half
__device__ __forceinline__ uint32_t pack_bf16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// bits of element i of a packed array
__device__ __forceinline__ unsigned short half_of(const uint32_t* p, int i) {
    return static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]);
}

// Bytes from the start of shared memory.
constexpr uint32_t a_offset = 0;  // bf16[64,32]{panel 32 swizzle 64} x3
constexpr uint32_t b_offset = 12288;  // bf16[32,128]{panel 64 swizzle 128} x3

extern "C" __global__ void __launch_bounds__(128, 1)
gemm_sm_89(const bf16* __restrict__ A, long long A_s0, const bf16* __restrict__ B, long long B_s0,
        bf16* __restrict__ C_, long long C_s0, int M, int K, int N) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int i_tiles = (M + 63) / 64;
    const int i_ = int(blockIdx.x) % i_tiles;
    const int j = int(blockIdx.x) / i_tiles;
    // spec.py:3
    const int row = i_ * 64;
    const int col = j * 128;
    const int tiles = (K + 31) / 32;
    const uint32_t a_smem = smem_base + a_offset;
    // spec.py:6
    const uint32_t copy_lane = swizzle<0x30>(warp * 1024 + lane * 16);
    const uint32_t a_dst = a_smem + copy_lane;
    const int copy_row = warp * 16 + lane / 4;
    const int copy_col = lane % 4 * 8;
    const long long a_step = 8 * A_s0;
    const bf16* a_src = A + (long long)(row + copy_row) * A_s0 + copy_col;
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        cp_async_16(a_dst + i * 512, a_src);
        a_src += a_step;
    }
    const uint32_t b_smem = smem_base + b_offset;
    // spec.py:7
    const uint32_t copy_lane_2 = swizzle<0x70>(warp * 1024 + lane / 16 * 128 + lane / 8 % 2 * 4096 + lane % 8 * 16);
    const uint32_t b_dst = b_smem + copy_lane_2;
    const int copy_row_2 = warp * 8 + lane / 16;
    const int copy_col_2 = lane % 16 * 8;
    const long long b_step = 2 * B_s0;
    const bf16* b_src = B + (long long)copy_row_2 * B_s0 + col + copy_col_2;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        cp_async_16((b_dst ^ (i * 32)) + i * 256, b_src);
        b_src += b_step;
    }
    commit_group();
    // spec.py:6
    const uint32_t a_slot = a_smem + 4096;
    const uint32_t a_dst_2 = a_slot + copy_lane;
    const bf16* a_src_2 = A + (long long)(row + copy_row) * A_s0 + 32 + copy_col;
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        cp_async_16(a_dst_2 + i * 512, a_src_2);
        a_src_2 += a_step;
    }
    // spec.py:7
    const uint32_t b_slot = b_smem + 8192;
    const uint32_t b_dst_2 = b_slot + copy_lane_2;
    const bf16* b_src_2 = B + (long long)(32 + copy_row_2) * B_s0 + col + copy_col_2;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        cp_async_16((b_dst_2 ^ (i * 32)) + i * 256, b_src_2);
        b_src_2 += b_step;
    }
    commit_group();
    // spec.py:5
    float acc[64];
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        acc[i] = 0.0f;
    const bf16* a_base = A + (long long)(row + copy_row) * A_s0 + copy_col;
    const bf16* b_base = B + (long long)copy_row_2 * B_s0 + col + copy_col_2;
    const uint32_t a_lane = swizzle<0x30>(warp * 1024 + lane / 16 * 16 + lane % 16 * 64);
    const uint32_t b_lane = swizzle<0x70>(lane / 16 * 16 + lane % 16 * 128);
    #pragma unroll 1
    for (int t = 0; t < tiles; ++t) {
        wait_group<1>();
        __syncthreads();
        // spec.py:6
        const int k0 = (t + 2) * 32;
        const uint32_t a_slot_2 = a_smem + (t + 2) % 3 * 4096;
        const uint32_t a_dst_3 = a_slot_2 + copy_lane;
        const bf16* a_src_3 = a_base + k0;
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            cp_async_16(a_dst_3 + i * 512, a_src_3);
            a_src_3 += a_step;
        }
        // spec.py:7
        const uint32_t b_slot_2 = b_smem + (t + 2) % 3 * 8192;
        const uint32_t b_dst_3 = b_slot_2 + copy_lane_2;
        const bf16* b_src_3 = b_base + (long long)k0 * B_s0;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16((b_dst_3 ^ (i * 32)) + i * 256, b_src_3);
            b_src_3 += b_step;
        }
        commit_group();
        const uint32_t a_slot_3 = a_smem + t % 3 * 4096;
        const uint32_t b_slot_3 = b_smem + t % 3 * 8192;
        // spec.py:8
        const uint32_t a_at = a_slot_3 + a_lane;
        const uint32_t b_at = b_slot_3 + b_lane;
        #pragma unroll
        for (int ks = 0; ks < 2; ++ks) {
            uint32_t x[4];
            ldmatrix_x4(x, a_at ^ (ks * 32));
            uint32_t y[32];
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                ldmatrix_x4_trans(&y[i * 4], (b_at ^ (i % 4 * 32)) + ks * 2048 + i / 4 * 4096);
            #pragma unroll
            for (int ni = 0; ni < 16; ++ni)
                mma_m16n8k16_bf16(&acc[ni * 4], x, &y[ni * 2]);
        }
    }
    wait_group<0>();
    // spec.py:10
    uint32_t out[32];
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        out[i] = pack_bf16(acc[2 * i], acc[2 * i + 1]);
    const int c_col = lane % 4 * 2;
    bf16* c_ptr = C_ + (long long)(row + copy_row) * C_s0 + col + c_col;
    const int c_pos = row + copy_row;
    const int c_pos_2 = col + c_col;
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        if (c_pos + i / 2 % 2 * 8 < M && c_pos_2 + i / 4 * 8 + i % 2 < N) c_ptr[(long long)(i / 2 % 2 * 8) * C_s0 + i / 4 * 8 + i % 2] = half_of(out, i);
}

// gemm: generated for sm_89
// schedule: tiles={M: 128, N: 64, K: 64}, warps=4, stages=2
// block:    4 warps, 128 threads
// grid:     i over M in tiles of 128
// grid:     j over N in tiles of 64
// shared:   49152 bytes

using uint32_t = unsigned int;
using f16 = unsigned short;  // its bits

// XOR of the 16-byte chunk number with the row number (PTX ISA, Swizzling modes)
template <int Mask>
__device__ __forceinline__ uint32_t swizzle(uint32_t offset) {
    return offset ^ ((offset >> 3) & Mask);
}

// PTX ISA, cp.async: 16 bytes; past the first `bytes` of the source, zeros
__device__ __forceinline__ void cp_async_16_fill(uint32_t dst, const void* src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
             :: "r"(dst), "l"(src), "r"(bytes) : "memory");
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
__device__ __forceinline__ void mma_m16n8k16_f16(float* c, const uint32_t* a, const uint32_t* b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
             "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
             : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// PTX ISA, cvt: two floats to packed halves, the first in the low half
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// bits of element i of a packed array
__device__ __forceinline__ unsigned short half_of(const uint32_t* p, int i) {
    return static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]);
}

// Bytes from the start of shared memory.
constexpr uint32_t a_offset = 0;  // f16[128,64]{panel 64 swizzle 128} x2
constexpr uint32_t b_offset = 32768;  // f16[64,64]{panel 64 swizzle 128} x2

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int col_out(int i) { return i / 4 % 8 * 2 + i % 2; }

extern "C" __global__ void __launch_bounds__(128, 1)
gemm_sm_89(const f16* __restrict__ A, long long A_s0, const f16* __restrict__ B, long long B_s0, f16* __restrict__ C_,
        long long C_s0, const float* __restrict__ bias, int M, int K, int N) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int i_tiles = (M + 127) / 128;
    const int i_ = int(blockIdx.x) % i_tiles;
    const int j = int(blockIdx.x) / i_tiles;
    // spec.py:3
    const int row = i_ * 128;
    const int col = j * 64;
    const int tiles = (K + 63) / 64;
    const uint32_t a_smem = smem_base + a_offset;
    // spec.py:6
    const uint32_t copy_lane = swizzle<0x70>(warp * 4096 + lane * 16);
    const uint32_t a_dst = a_smem + copy_lane;
    const int copy_row = warp * 32 + lane / 8;
    const int copy_col = lane % 8 * 8;
    const long long a_step = 4 * A_s0;
    const f16* a_src = A + (long long)(row + copy_row) * A_s0 + copy_col;
    const int a_pos = row + copy_row;
    #pragma unroll
    for (int i = 0; i < 8; ++i) {
        cp_async_16_fill((a_dst ^ (i % 2 * 64)) + i * 512, a_src, a_pos + i * 4 < M && copy_col < K ? max(0, min(8, K - copy_col)) * 2 : 0);
        a_src += a_step;
    }
    const uint32_t b_smem = smem_base + b_offset;
    // spec.py:7
    const uint32_t copy_lane_2 = swizzle<0x70>(warp * 2048 + lane * 16);
    const uint32_t b_dst = b_smem + copy_lane_2;
    const int copy_row_2 = warp * 16 + lane / 8;
    const long long b_step = 4 * B_s0;
    const f16* b_src = B + (long long)copy_row_2 * B_s0 + col + copy_col;
    const int b_pos = col + copy_col;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        cp_async_16_fill((b_dst ^ (i % 2 * 64)) + i * 512, b_src, copy_row_2 + i * 4 < K && b_pos < N ? max(0, min(8, N - b_pos)) * 2 : 0);
        b_src += b_step;
    }
    commit_group();
    // spec.py:5
    float acc[64];
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        acc[i] = 0.0f;
    const f16* a_base = A + (long long)(row + copy_row) * A_s0 + copy_col;
    const f16* b_base = B + (long long)copy_row_2 * B_s0 + col + copy_col;
    const uint32_t a_lane = swizzle<0x70>(warp * 4096 + lane / 16 * 16 + lane % 16 * 128);
    const uint32_t b_lane = swizzle<0x70>(lane / 16 * 16 + lane % 16 * 128);
    #pragma unroll 1
    for (int t = 0; t < tiles; ++t) {
        wait_group<0>();
        __syncthreads();
        // spec.py:6
        const int k0 = (t + 1) * 64;
        const uint32_t a_slot = a_smem + ((t + 1) & 1) * 16384;
        const uint32_t a_dst_2 = a_slot + copy_lane;
        const f16* a_src_2 = a_base + k0;
        const int a_pos_2 = k0 + copy_col;
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
            cp_async_16_fill((a_dst_2 ^ (i % 2 * 64)) + i * 512, a_src_2, a_pos + i * 4 < M && a_pos_2 < K ? max(0, min(8, K - a_pos_2)) * 2 : 0);
            a_src_2 += a_step;
        }
        // spec.py:7
        const uint32_t b_slot = b_smem + ((t + 1) & 1) * 8192;
        const uint32_t b_dst_2 = b_slot + copy_lane_2;
        const f16* b_src_2 = b_base + (long long)k0 * B_s0;
        const int b_pos_2 = k0 + copy_row_2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((b_dst_2 ^ (i % 2 * 64)) + i * 512, b_src_2, b_pos_2 + i * 4 < K && b_pos < N ? max(0, min(8, N - b_pos)) * 2 : 0);
            b_src_2 += b_step;
        }
        commit_group();
        const uint32_t a_slot_2 = a_smem + (t & 1) * 16384;
        const uint32_t b_slot_2 = b_smem + (t & 1) * 8192;
        // spec.py:8
        const uint32_t a_at = a_slot_2 + a_lane;
        const uint32_t b_at = b_slot_2 + b_lane;
        #pragma unroll
        for (int ks = 0; ks < 4; ++ks) {
            uint32_t x[8];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(&x[i * 4], (a_at ^ (ks * 32)) + i * 2048);
            uint32_t y[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&y[i * 4], (b_at ^ (i * 32)) + ks * 2048);
            #pragma unroll
            for (int mi = 0; mi < 2; ++mi)
                #pragma unroll
                for (int ni = 0; ni < 8; ++ni)
                    mma_m16n8k16_f16(&acc[mi * 32 + ni * 4], &x[mi * 4], &y[ni * 2]);
        }
    }
    wait_group<0>();
    // spec.py:9
    float v[16];
    const int bias_col = lane % 4 * 2;
    const float* bias_ptr = bias + col + bias_col;
    const int bias_pos = col + bias_col;
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        v[i] = bias_pos + i / 2 * 8 + i % 2 < N ? bias_ptr[i / 2 * 8 + i % 2] : 0.0f;
    // spec.py:10
    uint32_t out[32];
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        out[i] = pack_f16(acc[2 * i] + v[col_out(2 * i)], acc[2 * i + 1] + v[col_out(2 * i + 1)]);
    const int c_row = warp * 32 + lane / 4;
    f16* c_ptr = C_ + (long long)(row + c_row) * C_s0 + col + bias_col;
    const int c_pos = row + c_row;
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        if (c_pos + i / 32 * 16 + i / 2 % 2 * 8 < M && bias_pos + i / 4 % 8 * 8 + i % 2 < N) c_ptr[(long long)(i / 32 * 16 + i / 2 % 2 * 8) * C_s0 + i / 4 % 8 * 8 + i % 2] = half_of(out, i);
}

// gemm_bias_gelu: generated for sm_89
// schedule: tiles={BLOCK_K: 32, BLOCK_M: 128, BLOCK_N: 64}, warps=4, math=mma, stages=3
// block:    4 warps, 128 threads
// grid:     rows_tile over M in tiles of 128
// grid:     cols_tile over N in tiles of 64
// shared:   36864 bytes

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

// PTX ISA, st
__device__ __forceinline__ void st_shared_b32x1(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared.b32 [%0], %1;" :: "r"(dst), "r"(v[0]) : "memory");
}

// PTX ISA, ld
__device__ __forceinline__ void ld_shared_b32x4(uint32_t* d, uint32_t src) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(src) : "memory");
}

// bits of element i of a packed array
__device__ __forceinline__ unsigned short half_of(const uint32_t* p, int i) {
    return static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]);
}

// Bytes from the start of shared memory.
constexpr uint32_t a_tile_offset = 0;  // f16[128,32]{panel 32 swizzle 64} x3
constexpr uint32_t tile_offset = 0;  // f16[128,64]{panel 64 swizzle 128}
constexpr uint32_t b_tile_offset = 24576;  // f16[64,32]{panel 32 swizzle 64} x3

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int col_tmp(int i) { return i / 4 % 8 * 2 + i % 2; }

extern "C" __global__ void __launch_bounds__(128, 1)
gemm_bias_gelu_sm_89(const f16* __restrict__ A, long long A_s0, const f16* __restrict__ B, long long B_s0,
        const float* __restrict__ bias, f16* __restrict__ C_, long long C_s0, int M, int K, int N) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const uint32_t tile_smem = smem_base + tile_offset;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int cols_tile_tiles = (N + 63) / 64;
    const int cols_tile = int(blockIdx.x) % cols_tile_tiles;
    const int rows_tile = int(blockIdx.x) / cols_tile_tiles;
    // rows, cols = fc.grid(fc.tile(A.M, "BLOCK_M"), fc.tile(B.N, "BLOCK_N"))  [gemm.py:11]
    const int rows_start = rows_tile * 128;
    const int cols_start = cols_tile * 64;
    // for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):  [gemm.py:13]
    const int depth_tile_to = (K + 31) / 32;
    const bool v0_below_K_tiles = 0 < depth_tile_to;
    // acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)  [gemm.py:14]
    const uint32_t a_tile_smem = smem_base + a_tile_offset;
    const uint32_t copy_lane = swizzle<0x30>(warp * 2048 + lane * 16);
    const uint32_t a_tile_dst = a_tile_smem + copy_lane;
    const int copy_row = warp * 32 + lane / 4;
    const int copy_col = lane % 4 * 8;
    const long long a_step = 8 * A_s0;
    const f16* a_base = A + (long long)(rows_start + copy_row) * A_s0 + copy_col;
    const int a_pos = rows_start + copy_row;
    const uint32_t b_tile_smem = smem_base + b_tile_offset;
    const uint32_t copy_lane_2 = swizzle<0x30>(warp * 1024 + lane * 16);
    const uint32_t b_tile_dst = b_tile_smem + copy_lane_2;
    const int copy_row_2 = warp * 16 + lane / 4;
    const long long b_step = 8 * B_s0;
    const f16* b_base = B + (long long)(cols_start + copy_row_2) * B_s0 + copy_col;
    const int b_pos = cols_start + copy_row_2;
    if (v0_below_K_tiles) {
        const f16* a_src = a_base;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill(a_tile_dst + i * 512, a_src, a_pos + i * 8 < M && copy_col < K ? max(0, min(8, K - copy_col)) * 2 : 0);
            a_src += a_step;
        }
        const f16* b_src = b_base;
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            cp_async_16_fill(b_tile_dst + i * 512, b_src, b_pos + i * 8 < N && copy_col < K ? max(0, min(8, K - copy_col)) * 2 : 0);
            b_src += b_step;
        }
    }
    commit_group();
    // for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):  [gemm.py:13]
    const bool v1_below_K_tiles = 1 < depth_tile_to;
    // acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)  [gemm.py:14]
    const uint32_t a_tile = a_tile_smem + 8192;
    const uint32_t a_tile_dst_2 = a_tile + copy_lane;
    const f16* a_base_2 = A + (long long)(rows_start + copy_row) * A_s0 + 32 + copy_col;
    const int a_pos_2 = 32 + copy_col;
    const uint32_t b_tile = b_tile_smem + 4096;
    const uint32_t b_tile_dst_2 = b_tile + copy_lane_2;
    const f16* b_base_2 = B + (long long)(cols_start + copy_row_2) * B_s0 + 32 + copy_col;
    if (v1_below_K_tiles) {
        const f16* a_src_2 = a_base_2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill(a_tile_dst_2 + i * 512, a_src_2, a_pos + i * 8 < M && a_pos_2 < K ? max(0, min(8, K - a_pos_2)) * 2 : 0);
            a_src_2 += a_step;
        }
        const f16* b_src_2 = b_base_2;
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            cp_async_16_fill(b_tile_dst_2 + i * 512, b_src_2, b_pos + i * 8 < N && a_pos_2 < K ? max(0, min(8, K - a_pos_2)) * 2 : 0);
            b_src_2 += b_step;
        }
    }
    commit_group();
    // for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):  [gemm.py:13]
    float acc[64];
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        acc[i] = 0.0f;
    const uint32_t a_tile_lane = swizzle<0x30>(warp * 2048 + lane / 16 * 16 + lane % 16 * 64);
    const uint32_t b_tile_lane = swizzle<0x30>(lane / 16 * 512 + lane / 8 % 2 * 16 + lane % 8 * 64);
    #pragma unroll 1
    for (int depth_tile = 0; depth_tile < depth_tile_to; ++depth_tile) {
        // acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)  [gemm.py:14]
        const uint32_t a_tile_2 = a_tile_smem + depth_tile % 3 * 8192;
        const uint32_t b_tile_2 = b_tile_smem + depth_tile % 3 * 4096;
        wait_group<1>();
        __syncthreads();
        const int next = depth_tile + 2;
        const bool next_below_K_tiles = next < depth_tile_to;
        const uint32_t a_tile_3 = a_tile_smem + (depth_tile + 2) % 3 * 8192;
        const uint32_t a_tile_dst_3 = a_tile_3 + copy_lane;
        const uint32_t b_tile_3 = b_tile_smem + (depth_tile + 2) % 3 * 4096;
        const uint32_t b_tile_dst_3 = b_tile_3 + copy_lane_2;
        if (next_below_K_tiles) {
            // for depth in fc.loop(fc.tile(A.K, "BLOCK_K")):  [gemm.py:13]
            const int depth_start = next * 32;
            // acc <<= acc + fc.dot(fc.load(A[rows, depth]), fc.load(B[cols, depth]).T)  [gemm.py:14]
            const f16* a_src_3 = a_base + depth_start;
            const int a_pos_3 = depth_start + copy_col;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill(a_tile_dst_3 + i * 512, a_src_3, a_pos + i * 8 < M && a_pos_3 < K ? max(0, min(8, K - a_pos_3)) * 2 : 0);
                a_src_3 += a_step;
            }
            const f16* b_src_3 = b_base + depth_start;
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                cp_async_16_fill(b_tile_dst_3 + i * 512, b_src_3, b_pos + i * 8 < N && a_pos_3 < K ? max(0, min(8, K - a_pos_3)) * 2 : 0);
                b_src_3 += b_step;
            }
        }
        commit_group();
        const uint32_t a_tile_at = a_tile_2 + a_tile_lane;
        const uint32_t b_tile_at = b_tile_2 + b_tile_lane;
        #pragma unroll
        for (int k = 0; k < 2; ++k) {
            uint32_t a_tile_4[8];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                ldmatrix_x4(&a_tile_4[i * 4], (a_tile_at ^ (k * 32)) + i * 1024);
            uint32_t b_tile_4[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4(&b_tile_4[i * 4], (b_tile_at ^ (k * 32)) + i * 1024);
            #pragma unroll
            for (int mi = 0; mi < 2; ++mi)
                #pragma unroll
                for (int ni = 0; ni < 8; ++ni)
                    mma_m16n8k16_f16(&acc[mi * 32 + ni * 4], &a_tile_4[mi * 4], &b_tile_4[ni * 2]);
        }
    }
    // x = acc + fc.load(bias[cols])  [gemm.py:15]
    float bias_2[16];
    const int bias_col = lane % 4 * 2;
    const float* bias_ptr = bias + cols_start + bias_col;
    const int bias_pos = cols_start + bias_col;
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        bias_2[i] = bias_pos + i / 2 * 8 + i % 2 < N ? bias_ptr[i / 2 * 8 + i % 2] : 0.0f;
    // fc.store(C[rows, cols], (0.5 * x * (1.0 + fc.erf(x * 0.7071067811865476))).to(C.dtype))  [gemm.py:16]
    uint32_t tmp[32];
    #pragma unroll
    for (int i = 0; i < 32; ++i) {
        const float x = acc[2 * i] + bias_2[col_tmp(2 * i)];
        const float x_2 = acc[2 * i + 1] + bias_2[col_tmp(2 * i + 1)];
        const float lo = x * 0.5f * (erff(x * 0.70710677f) + 1.0f);
        const float hi = x_2 * 0.5f * (erff(x_2 * 0.70710677f) + 1.0f);
        tmp[i] = pack_f16(lo, hi);
    }
    wait_group<0>();
    __syncthreads();
    const uint32_t tile_lane = swizzle<0x70>(warp * 4096 + lane / 4 * 128 + lane % 4 * 4);
    const uint32_t tile_at = tile_smem + tile_lane;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        st_shared_b32x1((tile_at ^ (i / 2 % 8 * 16)) + i / 16 * 2048 + i % 2 * 1024, &tmp[i]);
    __syncwarp();
    uint32_t c_out[32];
    const uint32_t tile_lane_2 = swizzle<0x70>(warp * 4096 + lane * 16);
    const uint32_t tile_at_2 = tile_smem + tile_lane_2;
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        ld_shared_b32x4(&c_out[i * 4], (tile_at_2 ^ (i % 2 * 64)) + i * 512);
    const int c_row = warp * 32 + lane / 8;
    const int c_col = lane % 8 * 8;
    f16* c_ptr = C_ + (long long)(rows_start + c_row) * C_s0 + cols_start + c_col;
    const int c_pos = rows_start + c_row;
    const int c_pos_2 = cols_start + c_col;
    #pragma unroll
    for (int i = 0; i < 64; ++i)
        if (c_pos + i / 8 * 4 < M && c_pos_2 + i % 8 < N) c_ptr[(long long)(i / 8 * 4) * C_s0 + i % 8] = half_of(c_out, i);
}

// linear_attention: generated for sm_89
// schedule: tiles={BLOCK_M: 64}, warps=4, math=mma, stages=2
// block:    4 warps, 128 threads
// grid:     b over B
// grid:     h over H
// shared:   57344 bytes

#define INF __int_as_float(0x7f800000)
using uint32_t = unsigned int;
using f16 = unsigned short;  // its bits

// PTX ISA, ex2: 2^x, relative error below 2^-22.5
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

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

// PTX ISA, ldmatrix: 4 blocks of 8 x 8; lane l gives the address of row l % 8 of block l / 8
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t* d, uint32_t row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
             : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(row) : "memory");
}

// PTX ISA, ld
__device__ __forceinline__ void ld_shared_b32x4(uint32_t* d, uint32_t src) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(src) : "memory");
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_b32x4(void* dst, const uint32_t* v) {
    *static_cast<uint4*>(dst) = make_uint4(v[0], v[1], v[2], v[3]);
}

// PTX ISA, cvt: half to float, exact
__device__ __forceinline__ float to_f32_f16(unsigned short h) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(h));
    return y;
}

// element i of packed halves
__device__ __forceinline__ float at_f16(const uint32_t* p, int i) {
    return to_f32_f16(static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]));
}

// PTX ISA, st
__device__ __forceinline__ void st_shared_b32x4(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" :: "r"(dst), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// Bytes from the start of shared memory.
constexpr uint32_t q_offset = 0;  // f16[64,64]{panel 64 swizzle 128} x2
constexpr uint32_t k_offset = 16384;  // f16[64,64]{panel 64 swizzle 128} x2
constexpr uint32_t v_offset = 32768;  // f16[64,64]{panel 64 swizzle 128} x2
constexpr uint32_t tile_offset = 49152;  // f16[64,64]{panel 64 swizzle 128}
constexpr uint32_t tile_offset_2 = 49152;  // f16[64,64]{panel 64 swizzle 128}
constexpr uint32_t tile_offset_3 = 49152;  // f16[64,64]{panel 64 swizzle 128}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_across(int i) { return i / 2 % 2; }
__device__ constexpr int col_inside(int i) { return i / 4 * 2 + i % 2; }
__device__ constexpr int row_tmp_3(int i) { return i / 8; }

extern "C" __global__ void __launch_bounds__(128, 1)
linear_attention_sm_89(const f16* __restrict__ Q, long long Q_s0, long long Q_s1, long long Q_s2,
        const f16* __restrict__ K, long long K_s0, long long K_s1, long long K_s2, const f16* __restrict__ V,
        long long V_s0, long long V_s1, long long V_s2, const float* __restrict__ log_decay, f16* __restrict__ O,
        long long O_s0, long long O_s1, long long O_s2, int H, int M) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const uint32_t tile_smem = smem_base + tile_offset;
    const uint32_t tile_smem_2 = smem_base + tile_offset_2;
    const uint32_t tile_smem_3 = smem_base + tile_offset_3;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int h = int(blockIdx.x) % H;
    const int b = int(blockIdx.x) / H;
    // w = log_decay[h]  [linear_attention.py:16]
    const float w = unsigned(h) < unsigned(H) ? log_decay[h] : 0.0f;
    // for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):  [linear_attention.py:18]
    const int rows_tile_to = (M + 63) / 64;
    // fade = fc.exp((float(rows.size) - 1.0 - j) * w)  [linear_attention.py:25]
    const float w_times_63 = w * 63.0f;
    // state <<= state * fc.exp(w * float(rows.size)) + fc.dot((k.to(fc.f32) * fade).to(K.dtype).T, v)  [linear_attention.py:26]
    const float power = exp2_approx(w * 92.33248f);
    // for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):  [linear_attention.py:18]
    const bool v0_below_M_tiles = 0 < rows_tile_to;
    // q, k, v = fc.load(Q[b, h, rows]), fc.load(K[b, h, cols]), fc.load(V[b, h, cols])  [linear_attention.py:20]
    const uint32_t q_smem = smem_base + q_offset;
    const uint32_t copy_lane = swizzle<0x70>(warp * 2048 + lane * 16);
    const uint32_t q_dst = q_smem + copy_lane;
    const int copy_row = warp * 16 + lane / 8;
    const int copy_col = lane % 8 * 8;
    const long long q_step = 4 * Q_s2;
    const f16* q_base = Q + (long long)b * Q_s0 + (long long)h * Q_s1 + (long long)copy_row * Q_s2 + copy_col;
    const uint32_t k_smem = smem_base + k_offset;
    const uint32_t k_dst = k_smem + copy_lane;
    const long long k_step = 4 * K_s2;
    const f16* k_base = K + (long long)b * K_s0 + (long long)h * K_s1 + (long long)copy_row * K_s2 + copy_col;
    const uint32_t v_smem = smem_base + v_offset;
    const uint32_t v_dst = v_smem + copy_lane;
    const long long v_step = 4 * V_s2;
    const f16* v_base = V + (long long)b * V_s0 + (long long)h * V_s1 + (long long)copy_row * V_s2 + copy_col;
    if (v0_below_M_tiles) {
        const f16* q_src = q_base;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((q_dst ^ (i % 2 * 64)) + i * 512, q_src, copy_row + i * 4 < M ? 16 : 0);
            q_src += q_step;
        }
        const f16* k_src = k_base;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((k_dst ^ (i % 2 * 64)) + i * 512, k_src, copy_row + i * 4 < M ? 16 : 0);
            k_src += k_step;
        }
        const f16* v_src = v_base;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            cp_async_16_fill((v_dst ^ (i % 2 * 64)) + i * 512, v_src, copy_row + i * 4 < M ? 16 : 0);
            v_src += v_step;
        }
    }
    commit_group();
    // for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):  [linear_attention.py:18]
    float state[32];
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        state[i] = 0.0f;
    const uint32_t q_lane = swizzle<0x70>(warp * 2048 + lane / 16 * 16 + lane % 16 * 128);
    const uint32_t k_lane = swizzle<0x70>(lane / 16 * 1024 + lane / 8 % 2 * 16 + lane % 8 * 128);
    const int pos0 = warp * 16 + lane / 4;
    const int pos0_2 = lane % 4 * 2;
    const uint32_t tile_lane = swizzle<0x70>(warp * 2048 + lane / 4 * 128 + lane % 4 * 4);
    const uint32_t tile_at = tile_smem + tile_lane;
    const uint32_t tile_lane_2 = swizzle<0x70>(lane / 16 * 16 + lane % 16 * 128);
    const uint32_t tile_at_2 = tile_smem + tile_lane_2;
    const uint32_t tile_at_3 = tile_smem_2 + tile_lane;
    const uint32_t tile_at_4 = tile_smem_2 + copy_lane;
    f16* o_base = O + (long long)b * O_s0 + (long long)h * O_s1 + (long long)copy_row * O_s2 + copy_col;
    const uint32_t tile_at_5 = tile_smem_3 + copy_lane;
    const uint32_t tile_lane_3 = swizzle<0x70>(warp * 32 + lane / 16 * 1024 + lane / 8 % 2 * 16 + lane % 8 * 128);
    const uint32_t tile_at_6 = tile_smem_3 + tile_lane_3;
    #pragma unroll 1
    for (int rows_tile = 0; rows_tile < rows_tile_to; ++rows_tile) {
        // q, k, v = fc.load(Q[b, h, rows]), fc.load(K[b, h, cols]), fc.load(V[b, h, cols])  [linear_attention.py:20]
        const uint32_t q = q_smem + (rows_tile & 1) * 8192;
        const uint32_t k = k_smem + (rows_tile & 1) * 8192;
        const uint32_t v = v_smem + (rows_tile & 1) * 8192;
        wait_group<0>();
        __syncthreads();
        const int next = rows_tile + 1;
        const bool next_below_M_tiles = next < rows_tile_to;
        const uint32_t q_2 = q_smem + ((rows_tile + 1) & 1) * 8192;
        const uint32_t q_dst_2 = q_2 + copy_lane;
        const uint32_t k_2 = k_smem + ((rows_tile + 1) & 1) * 8192;
        const uint32_t k_dst_2 = k_2 + copy_lane;
        const uint32_t v_2 = v_smem + ((rows_tile + 1) & 1) * 8192;
        const uint32_t v_dst_2 = v_2 + copy_lane;
        if (next_below_M_tiles) {
            // for rows in fc.loop(fc.tile(Q.M, "BLOCK_M")):  [linear_attention.py:18]
            const int rows_start = next * 64;
            // q, k, v = fc.load(Q[b, h, rows]), fc.load(K[b, h, cols]), fc.load(V[b, h, cols])  [linear_attention.py:20]
            const f16* q_src_2 = q_base + (long long)rows_start * Q_s2;
            const int q_pos = rows_start + copy_row;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((q_dst_2 ^ (i % 2 * 64)) + i * 512, q_src_2, q_pos + i * 4 < M ? 16 : 0);
                q_src_2 += q_step;
            }
            const f16* k_src_2 = k_base + (long long)rows_start * K_s2;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((k_dst_2 ^ (i % 2 * 64)) + i * 512, k_src_2, q_pos + i * 4 < M ? 16 : 0);
                k_src_2 += k_step;
            }
            const f16* v_src_2 = v_base + (long long)rows_start * V_s2;
            #pragma unroll
            for (int i = 0; i < 4; ++i) {
                cp_async_16_fill((v_dst_2 ^ (i % 2 * 64)) + i * 512, v_src_2, q_pos + i * 4 < M ? 16 : 0);
                v_src_2 += v_step;
            }
        }
        commit_group();
        // inside = fc.dot(q, k.T) * fc.exp(fc.where(i >= j, (i - j) * w, -fc.inf))  # inf nowhere, so that it has a gradient everywhere  [linear_attention.py:22]
        float q_dot_k[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            q_dot_k[i] = 0.0f;
        const uint32_t q_at = q + q_lane;
        const uint32_t k_at = k + k_lane;
        #pragma unroll
        for (int k_3 = 0; k_3 < 4; ++k_3) {
            uint32_t q_3[4];
            ldmatrix_x4(q_3, q_at ^ (k_3 * 32));
            uint32_t k_4[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4(&k_4[i * 4], (k_at ^ (k_3 * 32)) + i * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&q_dot_k[ni * 4], q_3, &k_4[ni * 2]);
        }
        // i, j = (rows.index - rows.start).to(fc.f32), (cols.index - cols.start).to(fc.f32)  [linear_attention.py:21]
        float i_[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            i_[i] = float(pos0) + float(i * 8);
        float i_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            i_2[i] = float(pos0_2) + float(i / 2 * 8 + i % 2);
        // across = fc.dot(q, state.to(V.dtype)) * fc.exp((i + 1.0) * w)  [linear_attention.py:23]
        uint32_t state_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            state_2[i] = pack_f16(state[2 * i], state[2 * i + 1]);
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            st_shared_b32x1((tile_at ^ (i / 2 * 16)) + i % 2 * 1024, &state_2[i]);
        __syncthreads();
        float q_dot_tile[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            q_dot_tile[i] = 0.0f;
        #pragma unroll
        for (int k_5 = 0; k_5 < 4; ++k_5) {
            uint32_t q_4[4];
            ldmatrix_x4(q_4, q_at ^ (k_5 * 32));
            uint32_t tile[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&tile[i * 4], (tile_at_2 ^ (i * 32)) + k_5 * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&q_dot_tile[ni * 4], q_4, &tile[ni * 2]);
        }
        float tmp[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            tmp[i] = exp2_approx((i_[i] * w + w) * 1.442695f);
        float across[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            across[i] = q_dot_tile[i] * tmp[row_across(i)];
        // inside = fc.dot(q, k.T) * fc.exp(fc.where(i >= j, (i - j) * w, -fc.inf))  # inf nowhere, so that it has a gradient everywhere  [linear_attention.py:22]
        // fc.store(O[b, h, rows], (across + fc.dot(inside.to(V.dtype), v)).to(O.dtype))  [linear_attention.py:24]
        uint32_t inside[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float x = i_[row_across(2 * i)] >= i_2[col_inside(2 * i)] ? (i_[row_across(2 * i)] - i_2[col_inside(2 * i)]) * w : -INF;
            const float x_2 = i_[row_across(2 * i + 1)] >= i_2[col_inside(2 * i + 1)] ? (i_[row_across(2 * i + 1)] - i_2[col_inside(2 * i + 1)]) * w : -INF;
            const float lo = q_dot_k[2 * i] * exp2_approx(x * 1.442695f);
            const float hi = q_dot_k[2 * i + 1] * exp2_approx(x_2 * 1.442695f);
            inside[i] = pack_f16(lo, hi);
        }
        const uint32_t v_at = v + tile_lane_2;
        #pragma unroll
        for (int k_6 = 0; k_6 < 4; ++k_6) {
            uint32_t v_3[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&v_3[i * 4], (v_at ^ (i * 32)) + k_6 * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&across[ni * 4], &inside[k_6 * 4], &v_3[ni * 2]);
        }
        uint32_t across_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            across_2[i] = pack_f16(across[2 * i], across[2 * i + 1]);
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            st_shared_b32x1((tile_at_3 ^ (i / 2 * 16)) + i % 2 * 1024, &across_2[i]);
        __syncwarp();
        uint32_t o_out[16];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            ld_shared_b32x4(&o_out[i * 4], (tile_at_4 ^ (i % 2 * 64)) + i * 512);
        f16* o_ptr = o_base + (long long)(rows_tile * 64) * O_s2;
        const int o_pos = rows_tile * 64 + copy_row;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            if (o_pos + i * 4 < M) st_global_b32x4(o_ptr + (long long)(i * 4) * O_s2, &o_out[i * 4]);
        // state <<= state * fc.exp(w * float(rows.size)) + fc.dot((k.to(fc.f32) * fade).to(K.dtype).T, v)  [linear_attention.py:26]
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            state[i] = state[i] * power;
        uint32_t k_7[16];
        const uint32_t k_at_2 = k + copy_lane;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            ld_shared_b32x4(&k_7[i * 4], (k_at_2 ^ (i % 2 * 64)) + i * 512);
        // i, j = (rows.index - rows.start).to(fc.f32), (cols.index - cols.start).to(fc.f32)  [linear_attention.py:21]
        // across = fc.dot(q, state.to(V.dtype)) * fc.exp((i + 1.0) * w)  [linear_attention.py:23]
        // fade = fc.exp((float(rows.size) - 1.0 - j) * w)  [linear_attention.py:25]
        float tmp_2[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            tmp_2[i] = exp2_approx((w_times_63 - fmaf(float(i * 4), w, float(copy_row) * w)) * 1.442695f);
        // state <<= state * fc.exp(w * float(rows.size)) + fc.dot((k.to(fc.f32) * fade).to(K.dtype).T, v)  [linear_attention.py:26]
        uint32_t tmp_3[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float lo_2 = at_f16(k_7, 2 * i) * tmp_2[row_tmp_3(2 * i)];
            const float hi_2 = at_f16(k_7, 2 * i + 1) * tmp_2[row_tmp_3(2 * i + 1)];
            tmp_3[i] = pack_f16(lo_2, hi_2);
        }
        __syncwarp();
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4((tile_at_5 ^ (i % 2 * 64)) + i * 512, &tmp_3[i * 4]);
        __syncthreads();
        #pragma unroll
        for (int k_8 = 0; k_8 < 4; ++k_8) {
            uint32_t tile_2[4];
            ldmatrix_x4_trans(tile_2, tile_at_6 + k_8 * 2048);
            uint32_t v_4[16];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                ldmatrix_x4_trans(&v_4[i * 4], (v_at ^ (i * 32)) + k_8 * 2048);
            #pragma unroll
            for (int ni = 0; ni < 8; ++ni)
                mma_m16n8k16_f16(&state[ni * 4], tile_2, &v_4[ni * 2]);
        }
    }
    wait_group<0>();
}

// variant_attention: generated for sm_89
// schedule: tiles={BLOCK_M: 64, BLOCK_N: 64}, warps=4, math=wmma, copy=vector, stages=1, skip_ones=True
// block:    4 warps, 128 threads
// grid:     b over B
// grid:     h over H
// grid:     rows_tile over M in tiles of 64, last first
// shared:   35840 bytes

#include <mma.h>
using namespace nvcuda;

#define INF __int_as_float(0x7f800000)
using uint32_t = unsigned int;
using f16 = unsigned short;  // its bits

// 4 registers in one global load
__device__ __forceinline__ void ld_global_b32x4(uint32_t* d, const void* src) {
    const uint4 v = *static_cast<const uint4*>(src);
    d[0] = v.x; d[1] = v.y; d[2] = v.z; d[3] = v.w;
}

// PTX ISA, st
__device__ __forceinline__ void st_shared_b32x4(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" :: "r"(dst), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3]) : "memory");
}

// PTX ISA, rcp: 1/x within 1 ulp
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// a / b rounded down
__device__ __forceinline__ int floor_div(int a, int b) {
    const int q = a / b;
    return q - (q * b != a && (a < 0) != (b < 0));
}

// PTX ISA, ld
__device__ __forceinline__ void ld_shared_f32x4(float* d, uint32_t src) {
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(src) : "memory");
}

// PTX ISA, shfl.sync.bfly: x of the lane whose number differs in `lanes`
__device__ __forceinline__ float shfl_xor_f32(float x, int lanes) {
    return __shfl_xor_sync(0xffffffffu, x, lanes);
}

// PTX ISA, ex2: 2^x, relative error below 2^-22.5
__device__ __forceinline__ float exp2_approx(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// PTX ISA, st
__device__ __forceinline__ void st_shared_f32x4(uint32_t dst, const float* v) {
    asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" :: "r"(dst), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]) : "memory");
}

// PTX ISA, cvt: two floats to packed halves, the first in the low half
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// PTX ISA, st
__device__ __forceinline__ void st_shared_b32x2(uint32_t dst, const uint32_t* v) {
    asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(dst), "r"(v[0]), "r"(v[1]) : "memory");
}

// XOR of the 16-byte chunk number with the row number (PTX ISA, Swizzling modes)
template <int Mask>
__device__ __forceinline__ uint32_t swizzle(uint32_t offset) {
    return offset ^ ((offset >> 3) & Mask);
}

// PTX ISA, ld
__device__ __forceinline__ void ld_shared_b32x4(uint32_t* d, uint32_t src) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3]) : "r"(src) : "memory");
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_b32x4(void* dst, const uint32_t* v) {
    *static_cast<uint4*>(dst) = make_uint4(v[0], v[1], v[2], v[3]);
}

// Bytes from the start of shared memory.
constexpr uint32_t k_tile_offset = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t k_tile_offset_2 = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t k_tile_offset_3 = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t tile_offset = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t acc_tile_offset = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t tile_offset_2 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t tile_offset_3 = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t tile_offset_4 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t acc_tile_offset_2 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t tile_offset_5 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t tile_offset_6 = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t tile_offset_7 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t acc_tile_offset_3 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t tile_offset_8 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t tile_offset_9 = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t acc_tile_offset_4 = 0;  // f32[64,64]{panel 64 pad 4}
constexpr uint32_t tile_offset_10 = 0;  // f16[64,64]{panel 64 swizzle 128}
constexpr uint32_t q_offset = 17408;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t v_offset = 26624;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t v_offset_2 = 26624;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t v_offset_3 = 26624;  // f16[64,64]{panel 64 pad 8}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_s(int i) { return i / 16; }

extern "C" __global__ void __launch_bounds__(128, 1)
variant_attention_sm_89(const f16* __restrict__ Q, long long Q_s0, long long Q_s1, long long Q_s2,
        const f16* __restrict__ K, long long K_s0, long long K_s1, long long K_s2, const f16* __restrict__ V,
        long long V_s0, long long V_s1, long long V_s2, const float* __restrict__ slopes, f16* __restrict__ O,
        long long O_s0, long long O_s1, long long O_s2, float scale, float cap, int window, int H, int M, int N) {
    extern __shared__ __align__(1024) unsigned char smem[];
    const uint32_t smem_base = static_cast<uint32_t>(__cvta_generic_to_shared(smem));
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const uint32_t q_smem = smem_base + q_offset;
    const uint32_t k_tile_smem = smem_base + k_tile_offset;
    const uint32_t v_smem = smem_base + v_offset;
    const uint32_t k_tile_smem_2 = smem_base + k_tile_offset_2;
    const uint32_t v_smem_2 = smem_base + v_offset_2;
    const uint32_t k_tile_smem_3 = smem_base + k_tile_offset_3;
    const uint32_t v_smem_3 = smem_base + v_offset_3;
    const uint32_t tile_smem = smem_base + tile_offset;
    const uint32_t acc_tile_smem = smem_base + acc_tile_offset;
    const uint32_t tile_smem_2 = smem_base + tile_offset_2;
    const uint32_t tile_smem_3 = smem_base + tile_offset_3;
    const uint32_t tile_smem_4 = smem_base + tile_offset_4;
    const uint32_t acc_tile_smem_2 = smem_base + acc_tile_offset_2;
    const uint32_t tile_smem_5 = smem_base + tile_offset_5;
    const uint32_t tile_smem_6 = smem_base + tile_offset_6;
    const uint32_t tile_smem_7 = smem_base + tile_offset_7;
    const uint32_t acc_tile_smem_3 = smem_base + acc_tile_offset_3;
    const uint32_t tile_smem_8 = smem_base + tile_offset_8;
    const uint32_t tile_smem_9 = smem_base + tile_offset_9;
    const uint32_t acc_tile_smem_4 = smem_base + acc_tile_offset_4;
    const uint32_t tile_smem_10 = smem_base + tile_offset_10;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int rows_tile_tiles = (M + 63) / 64;
    const int rows_tile = rows_tile_tiles - 1 - int(blockIdx.x) % rows_tile_tiles;
    const int rest = int(blockIdx.x) / rows_tile_tiles;
    const int h = rest % H;
    const int b = rest / H;
    // b, h, rows = fc.grid(Q.B, Q.H, fc.tile(Q.M, "BLOCK_M"))  [variants.py:12]
    const int rows_start = rows_tile * 64;
    // q, slope = fc.load(Q[b, h, rows]), slopes[h]  [variants.py:14]
    uint32_t q[16];
    const int q_row = warp * 16 + lane / 8;
    const int q_col = lane % 8 * 8;
    const f16* q_ptr = Q + (long long)b * Q_s0 + (long long)h * Q_s1 + (long long)(rows_start + q_row) * Q_s2 + q_col;
    const int q_pos = rows_start + q_row;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        q[i * 4] = q[i * 4 + 1] = q[i * 4 + 2] = q[i * 4 + 3] = 0;
        if (q_pos + i * 4 < M) ld_global_b32x4(&q[i * 4], q_ptr + (long long)(i * 4) * Q_s2);
    }
    const uint32_t q_lane = warp * 2304 + lane / 8 * 144 + lane % 8 * 16;
    const uint32_t q_at = q_smem + q_lane;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        st_shared_b32x4(q_at + i * 576, &q[i * 4]);
    const float slope = unsigned(h) < unsigned(H) ? slopes[h] : 0.0f;
    // s = cap * fc.tanh(s / cap)  [variants.py:18]
    const float scale_times_rcp_cap = scale * rcp_approx(cap);
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    const int cols_tile_from = max(rows_tile - floor_div(window + 62, 64), 0);
    const int cols_tile_to = min((N + 63) / 64, rows_tile + 1);
    const int end = max(cols_tile_from, rows_tile - floor_div(window, 64) + 1);
    const int whole_from = min(end, cols_tile_to);
    const int whole_to = max(min(cols_tile_to, min(N / 64, rows_tile)), whole_from);
    float m[2];
    float l[2];
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> acc[4];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        m[i] = -INF;
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        l[i] = 0.0f;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        wmma::fill_fragment(acc[i], 0.0f);
    const f16* k_base = K + (long long)b * K_s0 + (long long)h * K_s1 + (long long)q_row * K_s2 + q_col;
    const uint32_t k_tile_at = k_tile_smem + q_lane;
    const uint32_t tile_lane = warp * 4352 + lane / 4 * 272 + lane % 4 * 16;
    const uint32_t tile_at = tile_smem + tile_lane;
    const int pos0 = warp * 16 + lane / 4;
    const int col0 = lane % 4 * 4;
    const f16* v_base = V + (long long)b * V_s0 + (long long)h * V_s1 + (long long)q_row * V_s2 + q_col;
    const uint32_t v_at = v_smem + q_lane;
    const uint32_t acc_tile_at = acc_tile_smem + tile_lane;
    const uint32_t tile_at_2 = tile_smem_2 + tile_lane;
    const uint32_t tile_lane_2 = warp * 2304 + lane / 4 * 144 + lane % 4 * 8;
    const uint32_t tile_at_3 = tile_smem_3 + tile_lane_2;
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile = cols_tile_to - 1; cols_tile >= whole_to; --cols_tile) {
        const int cols_start = cols_tile * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        uint32_t k[16];
        const f16* k_ptr = k_base + (long long)cols_start * K_s2;
        const int k_pos = cols_start + q_row;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            k[i * 4] = k[i * 4 + 1] = k[i * 4 + 2] = k[i * 4 + 3] = 0;
            if (k_pos + i * 4 < N) ld_global_b32x4(&k[i * 4], k_ptr + (long long)(i * 4) * K_s2);
        }
        __syncwarp();
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(k_tile_at + i * 576, &k[i * 4]);
        __syncthreads();
        wmma::fragment<wmma::accumulator, 16, 16, 16, float> frag[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            wmma::fill_fragment(frag[i], 0.0f);
        #pragma unroll
        for (int k_2 = 0; k_2 < 4; ++k_2) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> q_2[1];
            wmma::load_matrix_sync(q_2[0], reinterpret_cast<const half*>(smem + q_offset + k_2 * 32 + warp * 2304), 72);
            wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> k_tile[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(k_tile[i], reinterpret_cast<const half*>(smem + k_tile_offset + k_2 * 32 + i * 2304), 72);
            #pragma unroll
            for (int ni = 0; ni < 4; ++ni)
                wmma::mma_sync(frag[ni], q_2[0], k_tile[ni], frag[ni]);
        }
        __syncthreads();
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            wmma::store_matrix_sync(reinterpret_cast<float*>(smem + tile_offset + warp * 4352 + i * 64), frag[i], 68, wmma::mem_row_major);
        __syncwarp();
        float tmp[32];
        #pragma unroll
        for (int i = 0; i < 8; ++i)
            ld_shared_f32x4(&tmp[i * 4], tile_at + i / 4 * 2176 + i % 4 * 64);
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        int limit[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int x = pos0 + i * 8 + rows_start;
            limit[i] = min(x + 1 - cols_start, N - cols_start);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float s[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const bool x_2 = i / 4 % 4 * 16 + i % 4 < limit[row_s(i)] - col0 && i / 4 % 4 * 16 + i % 4 > pos0 + i / 16 * 8 - window + rows_start - cols_start - col0;
            const float x_3 = fmaf(float(i / 16 * -8 + i / 4 % 4 * 16 + i % 4), slope, float(col0 + cols_start - (pos0 + rows_start)) * slope);
            const float x_4 = tanhf(tmp[i] * scale_times_rcp_cap) * cap + x_3;
            s[i] = x_2 ? x_4 : -INF;
        }
        float max_s[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 16 + i;
                part[i % 2] = i < 2 ? s[e] : fmaxf(part[i % 2], s[e]);
            }
            max_s[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 1));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 2));
        }
        float top[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            top[i] = fmaxf(m[i], max_s[i]);
        float base[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base[i] = top[i] == -INF ? 0.0f : top[i];
        float base_log2e[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_log2e[i] = base[i] * 1.442695f;
        bool any_far = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            any_far |= fabsf(base_log2e[i]) > 8192.0f;
        any_far = __any_sync(0xffffffffu, any_far);
        if (any_far) {
            bool far[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                far[i] = fabsf(base_log2e[i]) > 8192.0f;
            float base_2[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_2[i] = far[i] ? base[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_log2e[i] = far[i] ? 0.0f : base_log2e[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s[i] = s[i] - base_2[row_s(i)];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                m[i] = m[i] - base_2[i];
        }
        float p[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p[i] = exp2_approx(s[i] * 1.442695f - base_log2e[row_s(i)]);
        float fade[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            fade[i] = exp2_approx(m[i] * 1.442695f - base_log2e[i]);
        float sum_p[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 16 + i;
                part[i % 2] = i < 2 ? p[e] : part[i % 2] + p[e];
            }
            sum_p[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            l[i] = l[i] * fade[i] + sum_p[i];
        uint32_t v[16];
        const f16* v_ptr = v_base + (long long)cols_start * V_s2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            v[i * 4] = v[i * 4 + 1] = v[i * 4 + 2] = v[i * 4 + 3] = 0;
            if (k_pos + i * 4 < N) ld_global_b32x4(&v[i * 4], v_ptr + (long long)(i * 4) * V_s2);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(v_at + i * 576, &v[i * 4]);
        bool moved = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            moved |= fade[i] != 1.0f;
        moved = __any_sync(0xffffffffu, moved);
        __syncwarp();
        if (moved) {
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::store_matrix_sync(reinterpret_cast<float*>(smem + acc_tile_offset + warp * 4352 + i * 64), acc[i], 68, wmma::mem_row_major);
            __syncwarp();
            float acc_2[32];
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                ld_shared_f32x4(&acc_2[i * 4], acc_tile_at + i / 4 * 2176 + i % 4 * 64);
            float acc_times_fade[32];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                acc_times_fade[i] = acc_2[i] * fade[row_s(i)];
            __syncwarp();
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                st_shared_f32x4(tile_at_2 + i / 4 * 2176 + i % 4 * 64, &acc_times_fade[i * 4]);
            __syncwarp();
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(acc[i], reinterpret_cast<const float*>(smem + tile_offset_2 + warp * 4352 + i * 64), 68, wmma::mem_row_major);
        }
        uint32_t p_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_2[i] = pack_f16(p[2 * i], p[2 * i + 1]);
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 8; ++i)
            st_shared_b32x2(tile_at_3 + i / 4 * 1152 + i % 4 * 32, &p_2[i * 2]);
        __syncwarp();
        #pragma unroll
        for (int k_3 = 0; k_3 < 4; ++k_3) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> tile[1];
            wmma::load_matrix_sync(tile[0], reinterpret_cast<const half*>(smem + tile_offset_3 + k_3 * 32 + warp * 2304), 72);
            wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> v_2[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(v_2[i], reinterpret_cast<const half*>(smem + v_offset + k_3 * 2304 + i * 32), 72);
            #pragma unroll
            for (int ni = 0; ni < 4; ++ni)
                wmma::mma_sync(acc[ni], tile[0], v_2[ni], acc[ni]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            m[i] = top[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    const uint32_t k_tile_at_2 = k_tile_smem_2 + q_lane;
    const uint32_t tile_at_4 = tile_smem_4 + tile_lane;
    const uint32_t v_at_2 = v_smem_2 + q_lane;
    const uint32_t acc_tile_at_2 = acc_tile_smem_2 + tile_lane;
    const uint32_t tile_at_5 = tile_smem_5 + tile_lane;
    const uint32_t tile_at_6 = tile_smem_6 + tile_lane_2;
    // full part of the range
    #pragma unroll 1
    for (int cols_tile_2 = whole_to - 1; cols_tile_2 >= whole_from; --cols_tile_2) {
        const int cols_start_2 = cols_tile_2 * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        uint32_t k_4[16];
        const f16* k_ptr_2 = k_base + (long long)cols_start_2 * K_s2;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            ld_global_b32x4(&k_4[i * 4], k_ptr_2 + (long long)(i * 4) * K_s2);
        __syncwarp();
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(k_tile_at_2 + i * 576, &k_4[i * 4]);
        __syncthreads();
        wmma::fragment<wmma::accumulator, 16, 16, 16, float> frag_2[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            wmma::fill_fragment(frag_2[i], 0.0f);
        #pragma unroll
        for (int k_5 = 0; k_5 < 4; ++k_5) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> q_3[1];
            wmma::load_matrix_sync(q_3[0], reinterpret_cast<const half*>(smem + q_offset + k_5 * 32 + warp * 2304), 72);
            wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> k_tile_2[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(k_tile_2[i], reinterpret_cast<const half*>(smem + k_tile_offset_2 + k_5 * 32 + i * 2304), 72);
            #pragma unroll
            for (int ni = 0; ni < 4; ++ni)
                wmma::mma_sync(frag_2[ni], q_3[0], k_tile_2[ni], frag_2[ni]);
        }
        __syncthreads();
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            wmma::store_matrix_sync(reinterpret_cast<float*>(smem + tile_offset_4 + warp * 4352 + i * 64), frag_2[i], 68, wmma::mem_row_major);
        __syncwarp();
        float tmp_2[32];
        #pragma unroll
        for (int i = 0; i < 8; ++i)
            ld_shared_f32x4(&tmp_2[i * 4], tile_at_4 + i / 4 * 2176 + i % 4 * 64);
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        float s_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const float x_5 = fmaf(float(i / 16 * -8 + i / 4 % 4 * 16 + i % 4), slope, float(col0 + cols_start_2 - (pos0 + rows_start)) * slope);
            s_2[i] = tanhf(tmp_2[i] * scale_times_rcp_cap) * cap + x_5;
        }
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float max_s_2[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 16 + i;
                part[i % 2] = i < 2 ? s_2[e] : fmaxf(part[i % 2], s_2[e]);
            }
            max_s_2[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 1));
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 2));
        }
        float top_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            top_2[i] = fmaxf(m[i], max_s_2[i]);
        float base_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_3[i] = top_2[i] == -INF ? 0.0f : top_2[i];
        float base_log2e_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_log2e_2[i] = base_3[i] * 1.442695f;
        bool any_far_2 = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            any_far_2 |= fabsf(base_log2e_2[i]) > 8192.0f;
        any_far_2 = __any_sync(0xffffffffu, any_far_2);
        if (any_far_2) {
            bool far_2[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                far_2[i] = fabsf(base_log2e_2[i]) > 8192.0f;
            float base_4[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_4[i] = far_2[i] ? base_3[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_log2e_2[i] = far_2[i] ? 0.0f : base_log2e_2[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s_2[i] = s_2[i] - base_4[row_s(i)];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                m[i] = m[i] - base_4[i];
        }
        float p_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p_3[i] = exp2_approx(s_2[i] * 1.442695f - base_log2e_2[row_s(i)]);
        float fade_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            fade_2[i] = exp2_approx(m[i] * 1.442695f - base_log2e_2[i]);
        float sum_p_2[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 16 + i;
                part[i % 2] = i < 2 ? p_3[e] : part[i % 2] + p_3[e];
            }
            sum_p_2[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            l[i] = l[i] * fade_2[i] + sum_p_2[i];
        uint32_t v_3[16];
        const f16* v_ptr_2 = v_base + (long long)cols_start_2 * V_s2;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            ld_global_b32x4(&v_3[i * 4], v_ptr_2 + (long long)(i * 4) * V_s2);
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(v_at_2 + i * 576, &v_3[i * 4]);
        bool moved_2 = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            moved_2 |= fade_2[i] != 1.0f;
        moved_2 = __any_sync(0xffffffffu, moved_2);
        __syncwarp();
        if (moved_2) {
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::store_matrix_sync(reinterpret_cast<float*>(smem + acc_tile_offset_2 + warp * 4352 + i * 64), acc[i], 68, wmma::mem_row_major);
            __syncwarp();
            float acc_3[32];
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                ld_shared_f32x4(&acc_3[i * 4], acc_tile_at_2 + i / 4 * 2176 + i % 4 * 64);
            float acc_times_fade_2[32];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                acc_times_fade_2[i] = acc_3[i] * fade_2[row_s(i)];
            __syncwarp();
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                st_shared_f32x4(tile_at_5 + i / 4 * 2176 + i % 4 * 64, &acc_times_fade_2[i * 4]);
            __syncwarp();
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(acc[i], reinterpret_cast<const float*>(smem + tile_offset_5 + warp * 4352 + i * 64), 68, wmma::mem_row_major);
        }
        uint32_t p_4[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_4[i] = pack_f16(p_3[2 * i], p_3[2 * i + 1]);
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 8; ++i)
            st_shared_b32x2(tile_at_6 + i / 4 * 1152 + i % 4 * 32, &p_4[i * 2]);
        __syncwarp();
        #pragma unroll
        for (int k_6 = 0; k_6 < 4; ++k_6) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> tile_2[1];
            wmma::load_matrix_sync(tile_2[0], reinterpret_cast<const half*>(smem + tile_offset_6 + k_6 * 32 + warp * 2304), 72);
            wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> v_4[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(v_4[i], reinterpret_cast<const half*>(smem + v_offset_2 + k_6 * 2304 + i * 32), 72);
            #pragma unroll
            for (int ni = 0; ni < 4; ++ni)
                wmma::mma_sync(acc[ni], tile_2[0], v_4[ni], acc[ni]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            m[i] = top_2[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    const uint32_t k_tile_at_3 = k_tile_smem_3 + q_lane;
    const uint32_t tile_at_7 = tile_smem_7 + tile_lane;
    const uint32_t v_at_3 = v_smem_3 + q_lane;
    const uint32_t acc_tile_at_3 = acc_tile_smem_3 + tile_lane;
    const uint32_t tile_at_8 = tile_smem_8 + tile_lane;
    const uint32_t tile_at_9 = tile_smem_9 + tile_lane_2;
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile_3 = whole_from - 1; cols_tile_3 >= cols_tile_from; --cols_tile_3) {
        const int cols_start_3 = cols_tile_3 * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        uint32_t k_7[16];
        const f16* k_ptr_3 = k_base + (long long)cols_start_3 * K_s2;
        const int k_pos_2 = cols_start_3 + q_row;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            k_7[i * 4] = k_7[i * 4 + 1] = k_7[i * 4 + 2] = k_7[i * 4 + 3] = 0;
            if (k_pos_2 + i * 4 < N) ld_global_b32x4(&k_7[i * 4], k_ptr_3 + (long long)(i * 4) * K_s2);
        }
        __syncwarp();
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(k_tile_at_3 + i * 576, &k_7[i * 4]);
        __syncthreads();
        wmma::fragment<wmma::accumulator, 16, 16, 16, float> frag_3[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            wmma::fill_fragment(frag_3[i], 0.0f);
        #pragma unroll
        for (int k_8 = 0; k_8 < 4; ++k_8) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> q_4[1];
            wmma::load_matrix_sync(q_4[0], reinterpret_cast<const half*>(smem + q_offset + k_8 * 32 + warp * 2304), 72);
            wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::col_major> k_tile_3[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(k_tile_3[i], reinterpret_cast<const half*>(smem + k_tile_offset_3 + k_8 * 32 + i * 2304), 72);
            #pragma unroll
            for (int ni = 0; ni < 4; ++ni)
                wmma::mma_sync(frag_3[ni], q_4[0], k_tile_3[ni], frag_3[ni]);
        }
        __syncthreads();
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            wmma::store_matrix_sync(reinterpret_cast<float*>(smem + tile_offset_7 + warp * 4352 + i * 64), frag_3[i], 68, wmma::mem_row_major);
        __syncwarp();
        float tmp_3[32];
        #pragma unroll
        for (int i = 0; i < 8; ++i)
            ld_shared_f32x4(&tmp_3[i * 4], tile_at_7 + i / 4 * 2176 + i % 4 * 64);
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        int limit_2[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int x_6 = pos0 + i * 8 + rows_start;
            limit_2[i] = min(x_6 + 1 - cols_start_3, N - cols_start_3);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float s_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const bool x_7 = i / 4 % 4 * 16 + i % 4 < limit_2[row_s(i)] - col0 && i / 4 % 4 * 16 + i % 4 > pos0 + i / 16 * 8 - window + rows_start - cols_start_3 - col0;
            const float x_8 = fmaf(float(i / 16 * -8 + i / 4 % 4 * 16 + i % 4), slope, float(col0 + cols_start_3 - (pos0 + rows_start)) * slope);
            const float x_9 = tanhf(tmp_3[i] * scale_times_rcp_cap) * cap + x_8;
            s_3[i] = x_7 ? x_9 : -INF;
        }
        float max_s_3[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 16 + i;
                part[i % 2] = i < 2 ? s_3[e] : fmaxf(part[i % 2], s_3[e]);
            }
            max_s_3[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i) {
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 1));
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 2));
        }
        float top_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            top_3[i] = fmaxf(m[i], max_s_3[i]);
        float base_5[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_5[i] = top_3[i] == -INF ? 0.0f : top_3[i];
        float base_log2e_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            base_log2e_3[i] = base_5[i] * 1.442695f;
        bool any_far_3 = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            any_far_3 |= fabsf(base_log2e_3[i]) > 8192.0f;
        any_far_3 = __any_sync(0xffffffffu, any_far_3);
        if (any_far_3) {
            bool far_3[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                far_3[i] = fabsf(base_log2e_3[i]) > 8192.0f;
            float base_6[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_6[i] = far_3[i] ? base_5[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                base_log2e_3[i] = far_3[i] ? 0.0f : base_log2e_3[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s_3[i] = s_3[i] - base_6[row_s(i)];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                m[i] = m[i] - base_6[i];
        }
        float p_5[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p_5[i] = exp2_approx(s_3[i] * 1.442695f - base_log2e_3[row_s(i)]);
        float fade_3[2];
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            fade_3[i] = exp2_approx(m[i] * 1.442695f - base_log2e_3[i]);
        float sum_p_3[2];
        #pragma unroll
        for (int j = 0; j < 2; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 16; ++i) {
                const int e = j * 16 + i;
                part[i % 2] = i < 2 ? p_5[e] : part[i % 2] + p_5[e];
            }
            sum_p_3[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            l[i] = l[i] * fade_3[i] + sum_p_3[i];
        uint32_t v_5[16];
        const f16* v_ptr_3 = v_base + (long long)cols_start_3 * V_s2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            v_5[i * 4] = v_5[i * 4 + 1] = v_5[i * 4 + 2] = v_5[i * 4 + 3] = 0;
            if (k_pos_2 + i * 4 < N) ld_global_b32x4(&v_5[i * 4], v_ptr_3 + (long long)(i * 4) * V_s2);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            st_shared_b32x4(v_at_3 + i * 576, &v_5[i * 4]);
        bool moved_3 = false;
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            moved_3 |= fade_3[i] != 1.0f;
        moved_3 = __any_sync(0xffffffffu, moved_3);
        __syncwarp();
        if (moved_3) {
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::store_matrix_sync(reinterpret_cast<float*>(smem + acc_tile_offset_3 + warp * 4352 + i * 64), acc[i], 68, wmma::mem_row_major);
            __syncwarp();
            float acc_4[32];
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                ld_shared_f32x4(&acc_4[i * 4], acc_tile_at_3 + i / 4 * 2176 + i % 4 * 64);
            float acc_times_fade_3[32];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                acc_times_fade_3[i] = acc_4[i] * fade_3[row_s(i)];
            __syncwarp();
            #pragma unroll
            for (int i = 0; i < 8; ++i)
                st_shared_f32x4(tile_at_8 + i / 4 * 2176 + i % 4 * 64, &acc_times_fade_3[i * 4]);
            __syncwarp();
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(acc[i], reinterpret_cast<const float*>(smem + tile_offset_8 + warp * 4352 + i * 64), 68, wmma::mem_row_major);
        }
        uint32_t p_6[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_6[i] = pack_f16(p_5[2 * i], p_5[2 * i + 1]);
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 8; ++i)
            st_shared_b32x2(tile_at_9 + i / 4 * 1152 + i % 4 * 32, &p_6[i * 2]);
        __syncwarp();
        #pragma unroll
        for (int k_9 = 0; k_9 < 4; ++k_9) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, half, wmma::row_major> tile_3[1];
            wmma::load_matrix_sync(tile_3[0], reinterpret_cast<const half*>(smem + tile_offset_9 + k_9 * 32 + warp * 2304), 72);
            wmma::fragment<wmma::matrix_b, 16, 16, 16, half, wmma::row_major> v_6[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                wmma::load_matrix_sync(v_6[i], reinterpret_cast<const half*>(smem + v_offset_3 + k_9 * 2304 + i * 32), 72);
            #pragma unroll
            for (int ni = 0; ni < 4; ++ni)
                wmma::mma_sync(acc[ni], tile_3[0], v_6[ni], acc[ni]);
        }
        #pragma unroll
        for (int i = 0; i < 2; ++i)
            m[i] = top_3[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    #pragma unroll
    for (int i = 0; i < 2; ++i) {
        l[i] = l[i] + shfl_xor_f32(l[i], 1);
        l[i] = l[i] + shfl_xor_f32(l[i], 2);
    }
    // fc.store(O[b, h, rows], soft.out().to(O.dtype))  [variants.py:21]
    bool l_is_0[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        l_is_0[i] = l[i] == 0.0f;
    float rcp_l[2];
    #pragma unroll
    for (int i = 0; i < 2; ++i)
        rcp_l[i] = rcp_approx(l[i]);
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        wmma::store_matrix_sync(reinterpret_cast<float*>(smem + acc_tile_offset_4 + warp * 4352 + i * 64), acc[i], 68, wmma::mem_row_major);
    __syncwarp();
    float acc_5[32];
    const uint32_t acc_tile_at_4 = acc_tile_smem_4 + tile_lane;
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        ld_shared_f32x4(&acc_5[i * 4], acc_tile_at_4 + i / 4 * 2176 + i % 4 * 64);
    uint32_t v0[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i) {
        const float lo = l_is_0[row_s(2 * i)] ? 0.0f : acc_5[2 * i] * rcp_l[row_s(2 * i)];
        const float hi = l_is_0[row_s(2 * i + 1)] ? 0.0f : acc_5[2 * i + 1] * rcp_l[row_s(2 * i + 1)];
        v0[i] = pack_f16(lo, hi);
    }
    __syncthreads();
    const uint32_t tile_lane_3 = swizzle<0x70>(warp * 2048 + lane / 4 * 128 + lane % 4 * 8);
    const uint32_t tile_at_10 = tile_smem_10 + tile_lane_3;
    #pragma unroll
    for (int i = 0; i < 8; ++i)
        st_shared_b32x2((tile_at_10 ^ (i % 4 * 32)) + i / 4 * 1024, &v0[i * 2]);
    __syncwarp();
    uint32_t o_out[16];
    const uint32_t tile_lane_4 = swizzle<0x70>(warp * 2048 + lane * 16);
    const uint32_t tile_at_11 = tile_smem_10 + tile_lane_4;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        ld_shared_b32x4(&o_out[i * 4], (tile_at_11 ^ (i % 2 * 64)) + i * 512);
    f16* o_ptr = O + (long long)b * O_s0 + (long long)h * O_s1 + (long long)(rows_start + q_row) * O_s2 + q_col;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        if (q_pos + i * 4 < M) st_global_b32x4(o_ptr + (long long)(i * 4) * O_s2, &o_out[i * 4]);
}

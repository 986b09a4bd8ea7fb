// variant_attention: generated for sm_89
// schedule: tiles={BLOCK_M: 64, BLOCK_N: 64}, warps=4, math=fma, copy=scalar, stages=1
// block:    4 warps, 128 threads
// grid:     b over B
// grid:     h over H
// grid:     rows_tile over M in tiles of 64, last first
// shared:   27648 bytes

#define INF __int_as_float(0x7f800000)
using uint32_t = unsigned int;
using f16 = unsigned short;  // its bits

// PTX ISA, st
__device__ __forceinline__ void st_shared_b16(uint32_t dst, unsigned short v) {
    asm volatile("st.shared.b16 [%0], %1;" :: "r"(dst), "h"(v) : "memory");
}

// bits of element i of a packed array
__device__ __forceinline__ unsigned short half_of(const uint32_t* p, int i) {
    return static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]);
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
__device__ __forceinline__ unsigned short ld_shared_b16(uint32_t src) {
    unsigned short y;
    asm volatile("ld.shared.b16 %0, [%1];" : "=h"(y) : "r"(src) : "memory");
    return y;
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

// PTX ISA, cvt: two floats to packed halves, the first in the low half
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
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

// Bytes from the start of shared memory.
constexpr uint32_t q_offset = 0;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t tile_offset_4 = 0;  // f16[64,64]{panel 64 swizzle 128}
constexpr uint32_t k_tile_offset = 9216;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t v_offset = 9216;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t k_tile_offset_2 = 9216;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t v_offset_2 = 9216;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t k_tile_offset_3 = 9216;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t v_offset_3 = 9216;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t tile_offset = 18432;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t tile_offset_2 = 18432;  // f16[64,64]{panel 64 pad 8}
constexpr uint32_t tile_offset_3 = 18432;  // f16[64,64]{panel 64 pad 8}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_tmp(int i) { return i / 2; }
__device__ constexpr int col_tmp(int i) { return i % 2; }
__device__ constexpr int flip(int i) {
    constexpr int at[] = {0, 64, 16, 80, 32, 96, 48, 112, 64, 0, 80, 16, 96, 32, 112, 48, 0, 64, 16, 80, 32, 96, 48, 112, 64, 0, 80, 16, 96, 32, 112, 48};
    return at[i];
}

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
    const uint32_t tile_smem_2 = smem_base + tile_offset_2;
    const uint32_t tile_smem_3 = smem_base + tile_offset_3;
    const uint32_t tile_smem_4 = smem_base + tile_offset_4;
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
    const int q_row = warp * 16;
    const f16* q_ptr = Q + (long long)b * Q_s0 + (long long)h * Q_s1 + (long long)(rows_start + q_row) * Q_s2 + lane;
    const int q_pos = rows_start + q_row;
    #pragma unroll
    for (int i = 0; i < 16; ++i) {
        const uint32_t lo = q_pos + 2 * i / 2 < M ? q_ptr[(long long)(2 * i / 2) * Q_s2 + 2 * i % 2 * 32] : 0;
        const uint32_t hi = q_pos + (2 * i + 1) / 2 < M ? q_ptr[(long long)((2 * i + 1) / 2) * Q_s2 + (2 * i + 1) % 2 * 32] : 0;
        q[i] = lo | hi << 16;
    }
    const uint32_t q_lane = warp * 2304 + lane * 2;
    const uint32_t q_at = q_smem + q_lane;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        st_shared_b16(q_at + i / 2 * 144 + i % 2 * 64, half_of(q, i));
    const float slope = unsigned(h) < unsigned(H) ? slopes[h] : 0.0f;
    // s = cap * fc.tanh(s / cap)  [variants.py:18]
    const float scale_times_rcp_cap = scale * rcp_approx(cap);
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    const int cols_tile_from = max(rows_tile - floor_div(window + 62, 64), 0);
    const int cols_tile_to = min((N + 63) / 64, rows_tile + 1);
    const int end = max(cols_tile_from, rows_tile - floor_div(window, 64) + 1);
    const int whole_from = min(end, cols_tile_to);
    const int whole_to = max(min(cols_tile_to, min(N / 64, rows_tile)), whole_from);
    float m[16];
    float l[16];
    float acc[32];
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        m[i] = -INF;
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        l[i] = 0.0f;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        acc[i] = 0.0f;
    const f16* k_base = K + (long long)b * K_s0 + (long long)h * K_s1 + (long long)q_row * K_s2 + lane;
    const uint32_t k_tile_at = k_tile_smem + q_lane;
    const f16* v_base = V + (long long)b * V_s0 + (long long)h * V_s1 + (long long)q_row * V_s2 + lane;
    const uint32_t v_at = v_smem + q_lane;
    const uint32_t tile_at = tile_smem + q_lane;
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile = cols_tile_to - 1; cols_tile >= whole_to; --cols_tile) {
        const int cols_start = cols_tile * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        uint32_t k[16];
        const f16* k_ptr = k_base + (long long)cols_start * K_s2;
        const int k_pos = cols_start + q_row;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = k_pos + 2 * i / 2 < N ? k_ptr[(long long)(2 * i / 2) * K_s2 + 2 * i % 2 * 32] : 0;
            const uint32_t hi = k_pos + (2 * i + 1) / 2 < N ? k_ptr[(long long)((2 * i + 1) / 2) * K_s2 + (2 * i + 1) % 2 * 32] : 0;
            k[i] = lo | hi << 16;
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(k_tile_at + i / 2 * 144 + i % 2 * 64, half_of(k, i));
        __syncthreads();
        float tmp[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            tmp[i] = 0.0f;
        #pragma unroll 1
        for (int k_2 = 0; k_2 < 64; ++k_2) {
            uint32_t q_2[8];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t lo = ld_shared_b16(q_smem + ((warp * 16 + 2 * i) * 144 + k_2 * 2));
                const uint32_t hi = ld_shared_b16(q_smem + ((warp * 16 + 2 * i + 1) * 144 + k_2 * 2));
                q_2[i] = lo | hi << 16;
            }
            float q_3[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                q_3[i] = at_f16(q_2, i);
            uint32_t k_tile[1];
            {
                const uint32_t lo = ld_shared_b16(k_tile_smem + (lane * 144 + k_2 * 2));
                const uint32_t hi = ld_shared_b16(k_tile_smem + ((lane + 32) * 144 + k_2 * 2));
                k_tile[0] = lo | hi << 16;
            }
            float k_tile_2[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                k_tile_2[i] = at_f16(k_tile, i);
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                tmp[i] = fmaf(q_3[row_tmp(i)], k_tile_2[col_tmp(i)], tmp[i]);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float s[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const int x = q_row + i / 2 + rows_start;
            const bool x_2 = i % 2 * 32 < min(x + 1 - cols_start, N - cols_start) - lane && i % 2 * 32 > q_row + i / 2 - window + rows_start - cols_start - lane;
            const float x_3 = fmaf(float(i / 2 * -1 + i % 2 * 32), slope, float(lane + cols_start - (q_row + rows_start)) * slope);
            const float x_4 = tanhf(tmp[i] * scale_times_rcp_cap) * cap + x_3;
            s[i] = x_2 ? x_4 : -INF;
        }
        float max_s[16];
        #pragma unroll
        for (int j = 0; j < 16; ++j) {
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int e = j * 2 + i;
                max_s[j] = i < 1 ? s[e] : fmaxf(max_s[j], s[e]);
            }
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 1));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 2));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 4));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 8));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 16));
        }
        float top[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            top[i] = fmaxf(m[i], max_s[i]);
        float base[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            base[i] = top[i] == -INF ? 0.0f : top[i];
        float base_log2e[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            base_log2e[i] = base[i] * 1.442695f;
        bool any_far = false;
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            any_far |= fabsf(base_log2e[i]) > 8192.0f;
        any_far = __any_sync(0xffffffffu, any_far);
        if (any_far) {
            bool far[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                far[i] = fabsf(base_log2e[i]) > 8192.0f;
            float base_2[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                base_2[i] = far[i] ? base[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                base_log2e[i] = far[i] ? 0.0f : base_log2e[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s[i] = s[i] - base_2[row_tmp(i)];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                m[i] = m[i] - base_2[i];
        }
        float p[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p[i] = exp2_approx(s[i] * 1.442695f - base_log2e[row_tmp(i)]);
        float fade[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            fade[i] = exp2_approx(m[i] * 1.442695f - base_log2e[i]);
        float sum_p[16];
        #pragma unroll
        for (int j = 0; j < 16; ++j) {
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int e = j * 2 + i;
                sum_p[j] = i < 1 ? p[e] : sum_p[j] + p[e];
            }
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            l[i] = l[i] * fade[i] + sum_p[i];
        uint32_t v[16];
        const f16* v_ptr = v_base + (long long)cols_start * V_s2;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = k_pos + 2 * i / 2 < N ? v_ptr[(long long)(2 * i / 2) * V_s2 + 2 * i % 2 * 32] : 0;
            const uint32_t hi = k_pos + (2 * i + 1) / 2 < N ? v_ptr[(long long)((2 * i + 1) / 2) * V_s2 + (2 * i + 1) % 2 * 32] : 0;
            v[i] = lo | hi << 16;
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(v_at + i / 2 * 144 + i % 2 * 64, half_of(v, i));
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            acc[i] = acc[i] * fade[row_tmp(i)];
        uint32_t p_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_2[i] = pack_f16(p[2 * i], p[2 * i + 1]);
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(tile_at + i / 2 * 144 + i % 2 * 64, half_of(p_2, i));
        __syncthreads();
        #pragma unroll 1
        for (int k_3 = 0; k_3 < 64; ++k_3) {
            uint32_t tile[8];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t lo = ld_shared_b16(tile_smem + ((warp * 16 + 2 * i) * 144 + k_3 * 2));
                const uint32_t hi = ld_shared_b16(tile_smem + ((warp * 16 + 2 * i + 1) * 144 + k_3 * 2));
                tile[i] = lo | hi << 16;
            }
            float tile_2[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                tile_2[i] = at_f16(tile, i);
            uint32_t v_2[1];
            {
                const uint32_t lo = ld_shared_b16(v_smem + (k_3 * 144 + lane * 2));
                const uint32_t hi = ld_shared_b16(v_smem + (k_3 * 144 + (lane + 32) * 2));
                v_2[0] = lo | hi << 16;
            }
            float v_3[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                v_3[i] = at_f16(v_2, i);
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                acc[i] = fmaf(tile_2[row_tmp(i)], v_3[col_tmp(i)], acc[i]);
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            m[i] = top[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    const uint32_t k_tile_at_2 = k_tile_smem_2 + q_lane;
    const uint32_t v_at_2 = v_smem_2 + q_lane;
    const uint32_t tile_at_2 = tile_smem_2 + q_lane;
    // full part of the range
    #pragma unroll 1
    for (int cols_tile_2 = whole_to - 1; cols_tile_2 >= whole_from; --cols_tile_2) {
        const int cols_start_2 = cols_tile_2 * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        uint32_t k_4[16];
        const f16* k_ptr_2 = k_base + (long long)cols_start_2 * K_s2;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = k_ptr_2[(long long)(2 * i / 2) * K_s2 + 2 * i % 2 * 32];
            const uint32_t hi = k_ptr_2[(long long)((2 * i + 1) / 2) * K_s2 + (2 * i + 1) % 2 * 32];
            k_4[i] = lo | hi << 16;
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(k_tile_at_2 + i / 2 * 144 + i % 2 * 64, half_of(k_4, i));
        __syncthreads();
        float tmp_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            tmp_2[i] = 0.0f;
        #pragma unroll 1
        for (int k_5 = 0; k_5 < 64; ++k_5) {
            uint32_t q_4[8];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t lo = ld_shared_b16(q_smem + ((warp * 16 + 2 * i) * 144 + k_5 * 2));
                const uint32_t hi = ld_shared_b16(q_smem + ((warp * 16 + 2 * i + 1) * 144 + k_5 * 2));
                q_4[i] = lo | hi << 16;
            }
            float q_5[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                q_5[i] = at_f16(q_4, i);
            uint32_t k_tile_3[1];
            {
                const uint32_t lo = ld_shared_b16(k_tile_smem_2 + (lane * 144 + k_5 * 2));
                const uint32_t hi = ld_shared_b16(k_tile_smem_2 + ((lane + 32) * 144 + k_5 * 2));
                k_tile_3[0] = lo | hi << 16;
            }
            float k_tile_4[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                k_tile_4[i] = at_f16(k_tile_3, i);
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                tmp_2[i] = fmaf(q_5[row_tmp(i)], k_tile_4[col_tmp(i)], tmp_2[i]);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        float s_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const float x_5 = fmaf(float(i / 2 * -1 + i % 2 * 32), slope, float(lane + cols_start_2 - (q_row + rows_start)) * slope);
            s_2[i] = tanhf(tmp_2[i] * scale_times_rcp_cap) * cap + x_5;
        }
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float max_s_2[16];
        #pragma unroll
        for (int j = 0; j < 16; ++j) {
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int e = j * 2 + i;
                max_s_2[j] = i < 1 ? s_2[e] : fmaxf(max_s_2[j], s_2[e]);
            }
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 1));
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 2));
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 4));
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 8));
            max_s_2[i] = fmaxf(max_s_2[i], shfl_xor_f32(max_s_2[i], 16));
        }
        float top_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            top_2[i] = fmaxf(m[i], max_s_2[i]);
        float base_3[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            base_3[i] = top_2[i] == -INF ? 0.0f : top_2[i];
        float base_log2e_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            base_log2e_2[i] = base_3[i] * 1.442695f;
        bool any_far_2 = false;
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            any_far_2 |= fabsf(base_log2e_2[i]) > 8192.0f;
        any_far_2 = __any_sync(0xffffffffu, any_far_2);
        if (any_far_2) {
            bool far_2[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                far_2[i] = fabsf(base_log2e_2[i]) > 8192.0f;
            float base_4[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                base_4[i] = far_2[i] ? base_3[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                base_log2e_2[i] = far_2[i] ? 0.0f : base_log2e_2[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s_2[i] = s_2[i] - base_4[row_tmp(i)];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                m[i] = m[i] - base_4[i];
        }
        float p_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p_3[i] = exp2_approx(s_2[i] * 1.442695f - base_log2e_2[row_tmp(i)]);
        float fade_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            fade_2[i] = exp2_approx(m[i] * 1.442695f - base_log2e_2[i]);
        float sum_p_2[16];
        #pragma unroll
        for (int j = 0; j < 16; ++j) {
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int e = j * 2 + i;
                sum_p_2[j] = i < 1 ? p_3[e] : sum_p_2[j] + p_3[e];
            }
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            l[i] = l[i] * fade_2[i] + sum_p_2[i];
        uint32_t v_4[16];
        const f16* v_ptr_2 = v_base + (long long)cols_start_2 * V_s2;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = v_ptr_2[(long long)(2 * i / 2) * V_s2 + 2 * i % 2 * 32];
            const uint32_t hi = v_ptr_2[(long long)((2 * i + 1) / 2) * V_s2 + (2 * i + 1) % 2 * 32];
            v_4[i] = lo | hi << 16;
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(v_at_2 + i / 2 * 144 + i % 2 * 64, half_of(v_4, i));
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            acc[i] = acc[i] * fade_2[row_tmp(i)];
        uint32_t p_4[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_4[i] = pack_f16(p_3[2 * i], p_3[2 * i + 1]);
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(tile_at_2 + i / 2 * 144 + i % 2 * 64, half_of(p_4, i));
        __syncthreads();
        #pragma unroll 1
        for (int k_6 = 0; k_6 < 64; ++k_6) {
            uint32_t tile_3[8];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t lo = ld_shared_b16(tile_smem_2 + ((warp * 16 + 2 * i) * 144 + k_6 * 2));
                const uint32_t hi = ld_shared_b16(tile_smem_2 + ((warp * 16 + 2 * i + 1) * 144 + k_6 * 2));
                tile_3[i] = lo | hi << 16;
            }
            float tile_4[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                tile_4[i] = at_f16(tile_3, i);
            uint32_t v_5[1];
            {
                const uint32_t lo = ld_shared_b16(v_smem_2 + (k_6 * 144 + lane * 2));
                const uint32_t hi = ld_shared_b16(v_smem_2 + (k_6 * 144 + (lane + 32) * 2));
                v_5[0] = lo | hi << 16;
            }
            float v_6[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                v_6[i] = at_f16(v_5, i);
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                acc[i] = fmaf(tile_4[row_tmp(i)], v_6[col_tmp(i)], acc[i]);
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            m[i] = top_2[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    const uint32_t k_tile_at_3 = k_tile_smem_3 + q_lane;
    const uint32_t v_at_3 = v_smem_3 + q_lane;
    const uint32_t tile_at_3 = tile_smem_3 + q_lane;
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile_3 = whole_from - 1; cols_tile_3 >= cols_tile_from; --cols_tile_3) {
        const int cols_start_3 = cols_tile_3 * 64;
        // s = fc.dot(q, fc.load(K[b, h, cols]).T) * scale  [variants.py:17]
        uint32_t k_7[16];
        const f16* k_ptr_3 = k_base + (long long)cols_start_3 * K_s2;
        const int k_pos_2 = cols_start_3 + q_row;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = k_pos_2 + 2 * i / 2 < N ? k_ptr_3[(long long)(2 * i / 2) * K_s2 + 2 * i % 2 * 32] : 0;
            const uint32_t hi = k_pos_2 + (2 * i + 1) / 2 < N ? k_ptr_3[(long long)((2 * i + 1) / 2) * K_s2 + (2 * i + 1) % 2 * 32] : 0;
            k_7[i] = lo | hi << 16;
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(k_tile_at_3 + i / 2 * 144 + i % 2 * 64, half_of(k_7, i));
        __syncthreads();
        float tmp_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            tmp_3[i] = 0.0f;
        #pragma unroll 1
        for (int k_8 = 0; k_8 < 64; ++k_8) {
            uint32_t q_6[8];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t lo = ld_shared_b16(q_smem + ((warp * 16 + 2 * i) * 144 + k_8 * 2));
                const uint32_t hi = ld_shared_b16(q_smem + ((warp * 16 + 2 * i + 1) * 144 + k_8 * 2));
                q_6[i] = lo | hi << 16;
            }
            float q_7[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                q_7[i] = at_f16(q_6, i);
            uint32_t k_tile_5[1];
            {
                const uint32_t lo = ld_shared_b16(k_tile_smem_3 + (lane * 144 + k_8 * 2));
                const uint32_t hi = ld_shared_b16(k_tile_smem_3 + ((lane + 32) * 144 + k_8 * 2));
                k_tile_5[0] = lo | hi << 16;
            }
            float k_tile_6[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                k_tile_6[i] = at_f16(k_tile_5, i);
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                tmp_3[i] = fmaf(q_7[row_tmp(i)], k_tile_6[col_tmp(i)], tmp_3[i]);
        }
        // s = cap * fc.tanh(s / cap)  [variants.py:18]
        // s = s + slope * (cols.index - rows.index).to(fc.f32)  [variants.py:19]
        // soft.add(s, V[b, h, cols])  [variants.py:20]
        float s_3[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i) {
            const int x_6 = q_row + i / 2 + rows_start;
            const bool x_7 = i % 2 * 32 < min(x_6 + 1 - cols_start_3, N - cols_start_3) - lane && i % 2 * 32 > q_row + i / 2 - window + rows_start - cols_start_3 - lane;
            const float x_8 = fmaf(float(i / 2 * -1 + i % 2 * 32), slope, float(lane + cols_start_3 - (q_row + rows_start)) * slope);
            const float x_9 = tanhf(tmp_3[i] * scale_times_rcp_cap) * cap + x_8;
            s_3[i] = x_7 ? x_9 : -INF;
        }
        float max_s_3[16];
        #pragma unroll
        for (int j = 0; j < 16; ++j) {
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int e = j * 2 + i;
                max_s_3[j] = i < 1 ? s_3[e] : fmaxf(max_s_3[j], s_3[e]);
            }
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 1));
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 2));
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 4));
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 8));
            max_s_3[i] = fmaxf(max_s_3[i], shfl_xor_f32(max_s_3[i], 16));
        }
        float top_3[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            top_3[i] = fmaxf(m[i], max_s_3[i]);
        float base_5[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            base_5[i] = top_3[i] == -INF ? 0.0f : top_3[i];
        float base_log2e_3[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            base_log2e_3[i] = base_5[i] * 1.442695f;
        bool any_far_3 = false;
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            any_far_3 |= fabsf(base_log2e_3[i]) > 8192.0f;
        any_far_3 = __any_sync(0xffffffffu, any_far_3);
        if (any_far_3) {
            bool far_3[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                far_3[i] = fabsf(base_log2e_3[i]) > 8192.0f;
            float base_6[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                base_6[i] = far_3[i] ? base_5[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                base_log2e_3[i] = far_3[i] ? 0.0f : base_log2e_3[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s_3[i] = s_3[i] - base_6[row_tmp(i)];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                m[i] = m[i] - base_6[i];
        }
        float p_5[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            p_5[i] = exp2_approx(s_3[i] * 1.442695f - base_log2e_3[row_tmp(i)]);
        float fade_3[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            fade_3[i] = exp2_approx(m[i] * 1.442695f - base_log2e_3[i]);
        float sum_p_3[16];
        #pragma unroll
        for (int j = 0; j < 16; ++j) {
            #pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int e = j * 2 + i;
                sum_p_3[j] = i < 1 ? p_5[e] : sum_p_3[j] + p_5[e];
            }
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            l[i] = l[i] * fade_3[i] + sum_p_3[i];
        uint32_t v_7[16];
        const f16* v_ptr_3 = v_base + (long long)cols_start_3 * V_s2;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = k_pos_2 + 2 * i / 2 < N ? v_ptr_3[(long long)(2 * i / 2) * V_s2 + 2 * i % 2 * 32] : 0;
            const uint32_t hi = k_pos_2 + (2 * i + 1) / 2 < N ? v_ptr_3[(long long)((2 * i + 1) / 2) * V_s2 + (2 * i + 1) % 2 * 32] : 0;
            v_7[i] = lo | hi << 16;
        }
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(v_at_3 + i / 2 * 144 + i % 2 * 64, half_of(v_7, i));
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            acc[i] = acc[i] * fade_3[row_tmp(i)];
        uint32_t p_6[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            p_6[i] = pack_f16(p_5[2 * i], p_5[2 * i + 1]);
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            st_shared_b16(tile_at_3 + i / 2 * 144 + i % 2 * 64, half_of(p_6, i));
        __syncthreads();
        #pragma unroll 1
        for (int k_9 = 0; k_9 < 64; ++k_9) {
            uint32_t tile_5[8];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const uint32_t lo = ld_shared_b16(tile_smem_3 + ((warp * 16 + 2 * i) * 144 + k_9 * 2));
                const uint32_t hi = ld_shared_b16(tile_smem_3 + ((warp * 16 + 2 * i + 1) * 144 + k_9 * 2));
                tile_5[i] = lo | hi << 16;
            }
            float tile_6[16];
            #pragma unroll
            for (int i = 0; i < 16; ++i)
                tile_6[i] = at_f16(tile_5, i);
            uint32_t v_8[1];
            {
                const uint32_t lo = ld_shared_b16(v_smem_3 + (k_9 * 144 + lane * 2));
                const uint32_t hi = ld_shared_b16(v_smem_3 + (k_9 * 144 + (lane + 32) * 2));
                v_8[0] = lo | hi << 16;
            }
            float v_9[2];
            #pragma unroll
            for (int i = 0; i < 2; ++i)
                v_9[i] = at_f16(v_8, i);
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                acc[i] = fmaf(tile_6[row_tmp(i)], v_9[col_tmp(i)], acc[i]);
        }
        #pragma unroll
        for (int i = 0; i < 16; ++i)
            m[i] = top_3[i];
    }
    // for cols in fc.loop(fc.tile(K.N, "BLOCK_N"), descending=True, live=visible):  [variants.py:16]
    #pragma unroll
    for (int i = 0; i < 16; ++i) {
        l[i] = l[i] + shfl_xor_f32(l[i], 1);
        l[i] = l[i] + shfl_xor_f32(l[i], 2);
        l[i] = l[i] + shfl_xor_f32(l[i], 4);
        l[i] = l[i] + shfl_xor_f32(l[i], 8);
        l[i] = l[i] + shfl_xor_f32(l[i], 16);
    }
    // fc.store(O[b, h, rows], soft.out().to(O.dtype))  [variants.py:21]
    bool l_is_0[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        l_is_0[i] = l[i] == 0.0f;
    float rcp_l[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        rcp_l[i] = rcp_approx(l[i]);
    uint32_t v0[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i) {
        const float lo_ = l_is_0[row_tmp(2 * i)] ? 0.0f : acc[2 * i] * rcp_l[row_tmp(2 * i)];
        const float hi_ = l_is_0[row_tmp(2 * i + 1)] ? 0.0f : acc[2 * i + 1] * rcp_l[row_tmp(2 * i + 1)];
        v0[i] = pack_f16(lo_, hi_);
    }
    __syncthreads();
    const uint32_t tile_lane = swizzle<0x70>(warp * 2048 + lane * 2);
    const uint32_t tile_at_4 = tile_smem_4 + tile_lane;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        st_shared_b16((tile_at_4 ^ flip(i)) + i / 2 * 128, half_of(v0, i));
    __syncwarp();
    uint32_t o_out[16];
    const uint32_t tile_lane_2 = swizzle<0x70>(warp * 2048 + lane * 16);
    const uint32_t tile_at_5 = tile_smem_4 + tile_lane_2;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        ld_shared_b32x4(&o_out[i * 4], (tile_at_5 ^ (i % 2 * 64)) + i * 512);
    const int o_row = warp * 16 + lane / 8;
    const int o_col = lane % 8 * 8;
    f16* o_ptr = O + (long long)b * O_s0 + (long long)h * O_s1 + (long long)(rows_start + o_row) * O_s2 + o_col;
    const int o_pos = rows_start + o_row;
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        if (o_pos + i / 8 * 4 < M) o_ptr[(long long)(i / 8 * 4) * O_s2 + i % 8] = half_of(o_out, i);
}

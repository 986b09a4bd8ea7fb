// softmax: generated for sm_89
// schedule: tiles={BLOCK_M: 16, BLOCK_N: 256}, warps=4, math=mma, stages=2
// block:    4 warps, 128 threads
// grid:     rows_tile over M in tiles of 16

#define INF __int_as_float(0x7f800000)
using uint32_t = unsigned int;
using f16 = unsigned short;  // its bits

// 4 registers in one global load
__device__ __forceinline__ void ld_global_b32x4(uint32_t* d, const void* src) {
    const uint4 v = *static_cast<const uint4*>(src);
    d[0] = v.x; d[1] = v.y; d[2] = v.z; d[3] = v.w;
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

// PTX ISA, rcp: 1/x within 1 ulp
__device__ __forceinline__ float rcp_approx(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// PTX ISA, cvt: two floats to packed halves, the first in the low half
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_b32x4(void* dst, const uint32_t* v) {
    *static_cast<uint4*>(dst) = make_uint4(v[0], v[1], v[2], v[3]);
}

// bits of element i of a packed array
__device__ __forceinline__ unsigned short half_of(const uint32_t* p, int i) {
    return static_cast<unsigned short>(i % 2 ? p[i / 2] >> 16 : p[i / 2]);
}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_x_2(int i) { return i / 8; }

extern "C" __global__ void __launch_bounds__(128, 1)
softmax_sm_89(const f16* __restrict__ X, long long X_s0, f16* __restrict__ Y, long long Y_s0, int M, int N) {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int rows_tile = blockIdx.x;
    // (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))  [softmax.py:11]
    const int rows_start = rows_tile * 16;
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:13]
    const int cols_tile_to = (N + 255) / 256;
    const int whole_to = max(min(cols_tile_to, N / 256), 0);
    float m[4];
    float l[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        m[i] = -INF;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        l[i] = 0.0f;
    const int x_row = warp * 4;
    const int x_col = lane * 8;
    const f16* x_base = X + (long long)(rows_start + x_row) * X_s0 + x_col;
    const int x_pos = rows_start + x_row;
    // full part of the range
    #pragma unroll 1
    for (int cols_tile = 0; cols_tile < whole_to; ++cols_tile) {
        // soft.add(fc.load(X[rows, cols]).to(fc.f32))  [softmax.py:14]
        uint32_t x[16];
        const f16* x_ptr = x_base + cols_tile * 256;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            x[i * 4] = x[i * 4 + 1] = x[i * 4 + 2] = x[i * 4 + 3] = 0;
            if (x_pos + i < M) ld_global_b32x4(&x[i * 4], x_ptr + (long long)i * X_s0);
        }
        float x_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            x_2[i] = at_f16(x, i);
        float max_x[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                part[i % 2] = i < 2 ? x_2[e] : fmaxf(part[i % 2], x_2[e]);
            }
            max_x[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            max_x[i] = fmaxf(max_x[i], shfl_xor_f32(max_x[i], 1));
            max_x[i] = fmaxf(max_x[i], shfl_xor_f32(max_x[i], 2));
            max_x[i] = fmaxf(max_x[i], shfl_xor_f32(max_x[i], 4));
            max_x[i] = fmaxf(max_x[i], shfl_xor_f32(max_x[i], 8));
            max_x[i] = fmaxf(max_x[i], shfl_xor_f32(max_x[i], 16));
        }
        float top[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            top[i] = fmaxf(m[i], max_x[i]);
        float base[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            base[i] = top[i] == -INF ? 0.0f : top[i];
        float base_log2e[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            base_log2e[i] = base[i] * 1.442695f;
        bool any_far = false;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            any_far |= fabsf(base_log2e[i]) > 8192.0f;
        any_far = __any_sync(0xffffffffu, any_far);
        if (any_far) {
            bool far[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                far[i] = fabsf(base_log2e[i]) > 8192.0f;
            float base_2[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                base_2[i] = far[i] ? base[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                base_log2e[i] = far[i] ? 0.0f : base_log2e[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                x_2[i] = x_2[i] - base_2[row_x_2(i)];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                m[i] = m[i] - base_2[i];
        }
        float sum_p[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                const float value = exp2_approx(x_2[e] * 1.442695f - base_log2e[row_x_2(e)]);
                part[i % 2] = i < 2 ? value : part[i % 2] + value;
            }
            sum_p[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            l[i] = l[i] * exp2_approx(m[i] * 1.442695f - base_log2e[i]) + sum_p[i];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            m[i] = top[i];
    }
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:13]
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile_2 = whole_to; cols_tile_2 < cols_tile_to; ++cols_tile_2) {
        const int cols_start = cols_tile_2 * 256;
        // soft.add(fc.load(X[rows, cols]).to(fc.f32))  [softmax.py:14]
        uint32_t x_3[16];
        const f16* x_ptr_2 = x_base + cols_start;
        const int x_pos_2 = cols_start + x_col;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = x_pos + 2 * i / 8 < M && x_pos_2 + 2 * i % 8 < N ? x_ptr_2[(long long)(2 * i / 8) * X_s0 + 2 * i % 8] : 0;
            const uint32_t hi = x_pos + (2 * i + 1) / 8 < M && x_pos_2 + (2 * i + 1) % 8 < N ? x_ptr_2[(long long)((2 * i + 1) / 8) * X_s0 + (2 * i + 1) % 8] : 0;
            x_3[i] = lo | hi << 16;
        }
        float s[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            s[i] = x_col + i % 8 + cols_start < N ? at_f16(x_3, i) : -INF;
        float max_s[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                part[i % 2] = i < 2 ? s[e] : fmaxf(part[i % 2], s[e]);
            }
            max_s[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 1));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 2));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 4));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 8));
            max_s[i] = fmaxf(max_s[i], shfl_xor_f32(max_s[i], 16));
        }
        float top_2[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            top_2[i] = fmaxf(m[i], max_s[i]);
        float base_3[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            base_3[i] = top_2[i] == -INF ? 0.0f : top_2[i];
        float base_log2e_2[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            base_log2e_2[i] = base_3[i] * 1.442695f;
        bool any_far_2 = false;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            any_far_2 |= fabsf(base_log2e_2[i]) > 8192.0f;
        any_far_2 = __any_sync(0xffffffffu, any_far_2);
        if (any_far_2) {
            bool far_2[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                far_2[i] = fabsf(base_log2e_2[i]) > 8192.0f;
            float base_4[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                base_4[i] = far_2[i] ? base_3[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                base_log2e_2[i] = far_2[i] ? 0.0f : base_log2e_2[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                s[i] = s[i] - base_4[row_x_2(i)];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                m[i] = m[i] - base_4[i];
        }
        float sum_p_2[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                const float value = exp2_approx(s[e] * 1.442695f - base_log2e_2[row_x_2(e)]);
                part[i % 2] = i < 2 ? value : part[i % 2] + value;
            }
            sum_p_2[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            l[i] = l[i] * exp2_approx(m[i] * 1.442695f - base_log2e_2[i]) + sum_p_2[i];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            m[i] = top_2[i];
    }
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:13]
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        l[i] = l[i] + shfl_xor_f32(l[i], 1);
        l[i] = l[i] + shfl_xor_f32(l[i], 2);
        l[i] = l[i] + shfl_xor_f32(l[i], 4);
        l[i] = l[i] + shfl_xor_f32(l[i], 8);
        l[i] = l[i] + shfl_xor_f32(l[i], 16);
    }
    // fc.store(Y[rows, cols], (fc.exp(x - soft.max) / soft.sum).to(Y.dtype))  [softmax.py:17]
    float m_log2e[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        m_log2e[i] = m[i] * 1.442695f;
    bool far_3[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        far_3[i] = fabsf(m_log2e[i]) > 8192.0f;
    float m_2[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        m_2[i] = far_3[i] ? m[i] : 0.0f;
    float v0[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        v0[i] = far_3[i] ? 0.0f : m_log2e[i];
    float rcp_l[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        rcp_l[i] = rcp_approx(l[i]);
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:15]
    f16* y_base = Y + (long long)(rows_start + x_row) * Y_s0 + x_col;
    // full part of the range
    #pragma unroll 1
    for (int cols_tile_3 = 0; cols_tile_3 < whole_to; ++cols_tile_3) {
        const int cols_start_2 = cols_tile_3 * 256;
        // x = fc.load(X[rows, cols]).to(fc.f32)  [softmax.py:16]
        uint32_t x_4[16];
        const f16* x_ptr_3 = x_base + cols_start_2;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            x_4[i * 4] = x_4[i * 4 + 1] = x_4[i * 4 + 2] = x_4[i * 4 + 3] = 0;
            if (x_pos + i < M) ld_global_b32x4(&x_4[i * 4], x_ptr_3 + (long long)i * X_s0);
        }
        // fc.store(Y[rows, cols], (fc.exp(x - soft.max) / soft.sum).to(Y.dtype))  [softmax.py:17]
        uint32_t y_out[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float x_5 = exp2_approx((at_f16(x_4, 2 * i) - m_2[row_x_2(2 * i)]) * 1.442695f - v0[row_x_2(2 * i)]);
            const float x_6 = (at_f16(x_4, 2 * i + 1) - m_2[row_x_2(2 * i + 1)]) * 1.442695f - v0[row_x_2(2 * i + 1)];
            y_out[i] = pack_f16(x_5 * rcp_l[row_x_2(2 * i)], exp2_approx(x_6) * rcp_l[row_x_2(2 * i + 1)]);
        }
        f16* y_ptr = y_base + cols_start_2;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            if (x_pos + i < M) st_global_b32x4(y_ptr + (long long)i * Y_s0, &y_out[i * 4]);
    }
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:15]
    // masked part of the range
    #pragma unroll 1
    for (int cols_tile_4 = whole_to; cols_tile_4 < cols_tile_to; ++cols_tile_4) {
        const int cols_start_3 = cols_tile_4 * 256;
        // x = fc.load(X[rows, cols]).to(fc.f32)  [softmax.py:16]
        uint32_t x_7[16];
        const f16* x_ptr_4 = x_base + cols_start_3;
        const int x_pos_3 = cols_start_3 + x_col;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = x_pos + 2 * i / 8 < M && x_pos_3 + 2 * i % 8 < N ? x_ptr_4[(long long)(2 * i / 8) * X_s0 + 2 * i % 8] : 0;
            const uint32_t hi = x_pos + (2 * i + 1) / 8 < M && x_pos_3 + (2 * i + 1) % 8 < N ? x_ptr_4[(long long)((2 * i + 1) / 8) * X_s0 + (2 * i + 1) % 8] : 0;
            x_7[i] = lo | hi << 16;
        }
        // fc.store(Y[rows, cols], (fc.exp(x - soft.max) / soft.sum).to(Y.dtype))  [softmax.py:17]
        uint32_t y_out_2[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float x_8 = exp2_approx((at_f16(x_7, 2 * i) - m_2[row_x_2(2 * i)]) * 1.442695f - v0[row_x_2(2 * i)]);
            const float x_9 = (at_f16(x_7, 2 * i + 1) - m_2[row_x_2(2 * i + 1)]) * 1.442695f - v0[row_x_2(2 * i + 1)];
            y_out_2[i] = pack_f16(x_8 * rcp_l[row_x_2(2 * i)], exp2_approx(x_9) * rcp_l[row_x_2(2 * i + 1)]);
        }
        f16* y_ptr_2 = y_base + cols_start_3;
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            if (x_pos + i / 8 < M && x_pos_3 + i % 8 < N) y_ptr_2[(long long)(i / 8) * Y_s0 + i % 8] = half_of(y_out_2, i);
    }
}

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
__device__ constexpr int row_tmp_2(int i) { return i / 8; }

extern "C" __global__ void __launch_bounds__(128, 1)
softmax_sm_89(const f16* __restrict__ X, long long X_s0, f16* __restrict__ Y, long long Y_s0, int M, int N) {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    const int rows_tile = blockIdx.x;
    // (rows,) = fc.grid(fc.tile(X.M, "BLOCK_M"))  [softmax.py:11]
    const int rows_start = rows_tile * 16;
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:13]
    const int t = (N + 255) / 256;
    const int whole_to = max(min(t, N / 256), 0);
    float m[4];
    float l[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        m[i] = -INF;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        l[i] = 0.0f;
    // full part of the range
    const int x_row = warp * 4;
    const int x_col = lane * 8;
    const f16* x_base = X + (long long)(rows_start + x_row) * X_s0 + x_col;
    const int x_pos = rows_start + x_row;
    #pragma unroll 1
    for (int j_ = 0; j_ < whole_to; ++j_) {
        // x = fc.where(cols.valid, fc.load(X[rows, cols]).to(fc.f32), -fc.inf)  [softmax.py:14]
        uint32_t tmp[16];
        const f16* x_ptr = x_base + j_ * 256;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            tmp[i * 4] = tmp[i * 4 + 1] = tmp[i * 4 + 2] = tmp[i * 4 + 3] = 0;
            if (x_pos + i < M) ld_global_b32x4(&tmp[i * 4], x_ptr + (long long)i * X_s0);
        }
        float tmp_2[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            tmp_2[i] = at_f16(tmp, i);
        // mn = fc.maximum(m, fc.max(x, axis=1))  [softmax.py:15]
        float tmp_3[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                part[i % 2] = i < 2 ? tmp_2[e] : fmaxf(part[i % 2], tmp_2[e]);
            }
            tmp_3[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            tmp_3[i] = fmaxf(tmp_3[i], shfl_xor_f32(tmp_3[i], 1));
            tmp_3[i] = fmaxf(tmp_3[i], shfl_xor_f32(tmp_3[i], 2));
            tmp_3[i] = fmaxf(tmp_3[i], shfl_xor_f32(tmp_3[i], 4));
            tmp_3[i] = fmaxf(tmp_3[i], shfl_xor_f32(tmp_3[i], 8));
            tmp_3[i] = fmaxf(tmp_3[i], shfl_xor_f32(tmp_3[i], 16));
        }
        float mn[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            mn[i] = fmaxf(m[i], tmp_3[i]);
        // l <<= l * fc.exp(m - mn) + fc.sum(fc.exp(x - mn), axis=1)  [softmax.py:16]
        float tmp_4[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            tmp_4[i] = mn[i] * 1.442695f;
        bool any_far = false;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            any_far |= fabsf(tmp_4[i]) > 8192.0f;
        any_far = __any_sync(0xffffffffu, any_far);
        if (any_far) {
            bool far[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                far[i] = fabsf(tmp_4[i]) > 8192.0f;
            float tmp_5[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                tmp_5[i] = far[i] ? mn[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                tmp_4[i] = far[i] ? 0.0f : tmp_4[i];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                m[i] = m[i] - tmp_5[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                tmp_2[i] = tmp_2[i] - tmp_5[row_tmp_2(i)];
        }
        float tmp_6[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                const float value = exp2_approx(tmp_2[e] * 1.442695f - tmp_4[row_tmp_2(e)]);
                part[i % 2] = i < 2 ? value : part[i % 2] + value;
            }
            tmp_6[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            l[i] = l[i] * exp2_approx(m[i] * 1.442695f - tmp_4[i]) + tmp_6[i];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            m[i] = mn[i];
    }
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:13]
    // masked part of the range
    #pragma unroll 1
    for (int j_2 = whole_to; j_2 < t; ++j_2) {
        const int t_2 = j_2 * 256;
        // x = fc.where(cols.valid, fc.load(X[rows, cols]).to(fc.f32), -fc.inf)  [softmax.py:14]
        uint32_t tmp_7[16];
        const f16* x_ptr_2 = x_base + t_2;
        const int x_pos_2 = t_2 + x_col;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = x_pos + 2 * i / 8 < M && x_pos_2 + 2 * i % 8 < N ? x_ptr_2[(long long)(2 * i / 8) * X_s0 + 2 * i % 8] : 0;
            const uint32_t hi = x_pos + (2 * i + 1) / 8 < M && x_pos_2 + (2 * i + 1) % 8 < N ? x_ptr_2[(long long)((2 * i + 1) / 8) * X_s0 + (2 * i + 1) % 8] : 0;
            tmp_7[i] = lo | hi << 16;
        }
        float x[32];
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            x[i] = x_col + i % 8 + t_2 < N ? at_f16(tmp_7, i) : -INF;
        // mn = fc.maximum(m, fc.max(x, axis=1))  [softmax.py:15]
        float tmp_8[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                part[i % 2] = i < 2 ? x[e] : fmaxf(part[i % 2], x[e]);
            }
            tmp_8[j] = fmaxf(part[0], part[1]);
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            tmp_8[i] = fmaxf(tmp_8[i], shfl_xor_f32(tmp_8[i], 1));
            tmp_8[i] = fmaxf(tmp_8[i], shfl_xor_f32(tmp_8[i], 2));
            tmp_8[i] = fmaxf(tmp_8[i], shfl_xor_f32(tmp_8[i], 4));
            tmp_8[i] = fmaxf(tmp_8[i], shfl_xor_f32(tmp_8[i], 8));
            tmp_8[i] = fmaxf(tmp_8[i], shfl_xor_f32(tmp_8[i], 16));
        }
        float mn_2[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            mn_2[i] = fmaxf(m[i], tmp_8[i]);
        // l <<= l * fc.exp(m - mn) + fc.sum(fc.exp(x - mn), axis=1)  [softmax.py:16]
        float tmp_9[4];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            tmp_9[i] = mn_2[i] * 1.442695f;
        bool any_far_2 = false;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            any_far_2 |= fabsf(tmp_9[i]) > 8192.0f;
        any_far_2 = __any_sync(0xffffffffu, any_far_2);
        if (any_far_2) {
            bool far_2[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                far_2[i] = fabsf(tmp_9[i]) > 8192.0f;
            float tmp_10[4];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                tmp_10[i] = far_2[i] ? mn_2[i] : 0.0f;
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                tmp_9[i] = far_2[i] ? 0.0f : tmp_9[i];
            #pragma unroll
            for (int i = 0; i < 4; ++i)
                m[i] = m[i] - tmp_10[i];
            #pragma unroll
            for (int i = 0; i < 32; ++i)
                x[i] = x[i] - tmp_10[row_tmp_2(i)];
        }
        float tmp_11[4];
        #pragma unroll
        for (int j = 0; j < 4; ++j) {
            float part[2];
            #pragma unroll
            for (int i = 0; i < 8; ++i) {
                const int e = j * 8 + i;
                const float value = exp2_approx(x[e] * 1.442695f - tmp_9[row_tmp_2(e)]);
                part[i % 2] = i < 2 ? value : part[i % 2] + value;
            }
            tmp_11[j] = part[0] + part[1];
        }
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            l[i] = l[i] * exp2_approx(m[i] * 1.442695f - tmp_9[i]) + tmp_11[i];
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            m[i] = mn_2[i];
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
    // fc.store(Y[rows, cols], (fc.exp(x - m) / l).to(Y.dtype))  [softmax.py:20]
    float tmp_12[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        tmp_12[i] = m[i] * 1.442695f;
    bool far_3[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        far_3[i] = fabsf(tmp_12[i]) > 8192.0f;
    float tmp_13[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        tmp_13[i] = far_3[i] ? m[i] : 0.0f;
    float tmp_14[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        tmp_14[i] = far_3[i] ? 0.0f : tmp_12[i];
    float tmp_15[4];
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        tmp_15[i] = rcp_approx(l[i]);
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:18]
    // full part of the range
    f16* y_base = Y + (long long)(rows_start + x_row) * Y_s0 + x_col;
    #pragma unroll 1
    for (int j_3 = 0; j_3 < whole_to; ++j_3) {
        const int t_3 = j_3 * 256;
        // x = fc.load(X[rows, cols]).to(fc.f32)  [softmax.py:19]
        uint32_t tmp_16[16];
        const f16* x_ptr_3 = x_base + t_3;
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            tmp_16[i * 4] = tmp_16[i * 4 + 1] = tmp_16[i * 4 + 2] = tmp_16[i * 4 + 3] = 0;
            if (x_pos + i < M) ld_global_b32x4(&tmp_16[i * 4], x_ptr_3 + (long long)i * X_s0);
        }
        // fc.store(Y[rows, cols], (fc.exp(x - m) / l).to(Y.dtype))  [softmax.py:20]
        uint32_t tmp_17[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float x_2 = exp2_approx((at_f16(tmp_16, 2 * i) - tmp_13[row_tmp_2(2 * i)]) * 1.442695f - tmp_14[row_tmp_2(2 * i)]);
            const float x_3 = (at_f16(tmp_16, 2 * i + 1) - tmp_13[row_tmp_2(2 * i + 1)]) * 1.442695f - tmp_14[row_tmp_2(2 * i + 1)];
            tmp_17[i] = pack_f16(x_2 * tmp_15[row_tmp_2(2 * i)], exp2_approx(x_3) * tmp_15[row_tmp_2(2 * i + 1)]);
        }
        f16* y_ptr = y_base + t_3;
        #pragma unroll
        for (int i = 0; i < 4; ++i)
            if (x_pos + i < M) st_global_b32x4(y_ptr + (long long)i * Y_s0, &tmp_17[i * 4]);
    }
    // for cols in fc.loop(fc.tile(X.N, "BLOCK_N")):  [softmax.py:18]
    // masked part of the range
    #pragma unroll 1
    for (int j_4 = whole_to; j_4 < t; ++j_4) {
        const int t_4 = j_4 * 256;
        // x = fc.load(X[rows, cols]).to(fc.f32)  [softmax.py:19]
        uint32_t tmp_18[16];
        const f16* x_ptr_4 = x_base + t_4;
        const int x_pos_3 = t_4 + x_col;
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const uint32_t lo = x_pos + 2 * i / 8 < M && x_pos_3 + 2 * i % 8 < N ? x_ptr_4[(long long)(2 * i / 8) * X_s0 + 2 * i % 8] : 0;
            const uint32_t hi = x_pos + (2 * i + 1) / 8 < M && x_pos_3 + (2 * i + 1) % 8 < N ? x_ptr_4[(long long)((2 * i + 1) / 8) * X_s0 + (2 * i + 1) % 8] : 0;
            tmp_18[i] = lo | hi << 16;
        }
        // fc.store(Y[rows, cols], (fc.exp(x - m) / l).to(Y.dtype))  [softmax.py:20]
        uint32_t tmp_19[16];
        #pragma unroll
        for (int i = 0; i < 16; ++i) {
            const float x_4 = exp2_approx((at_f16(tmp_18, 2 * i) - tmp_13[row_tmp_2(2 * i)]) * 1.442695f - tmp_14[row_tmp_2(2 * i)]);
            const float x_5 = (at_f16(tmp_18, 2 * i + 1) - tmp_13[row_tmp_2(2 * i + 1)]) * 1.442695f - tmp_14[row_tmp_2(2 * i + 1)];
            tmp_19[i] = pack_f16(x_4 * tmp_15[row_tmp_2(2 * i)], exp2_approx(x_5) * tmp_15[row_tmp_2(2 * i + 1)]);
        }
        f16* y_ptr_2 = y_base + t_4;
        #pragma unroll
        for (int i = 0; i < 32; ++i)
            if (x_pos + i / 8 < M && x_pos_3 + i % 8 < N) y_ptr_2[(long long)(i / 8) * Y_s0 + i % 8] = half_of(tmp_19, i);
    }
}

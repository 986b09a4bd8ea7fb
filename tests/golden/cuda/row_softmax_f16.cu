// row_softmax: generated for sm_89
// block:    4 warps, 128 threads
// grid:     i over M in tiles of 16

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

// PTX ISA, cvt: two floats to packed halves, the first in the low half
__device__ __forceinline__ uint32_t pack_f16(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
}

// PTX ISA, div: a/b within 2 ulp for |b| from 2^-126 to 2^126
__device__ __forceinline__ float div_approx(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_b32x4(void* dst, const uint32_t* v) {
    *static_cast<uint4*>(dst) = make_uint4(v[0], v[1], v[2], v[3]);
}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_p(int i) { return i / 8; }

extern "C" __global__ void __launch_bounds__(128, 1)
row_softmax_sm_89(const f16* __restrict__ X, long long X_s0, f16* __restrict__ Y, long long Y_s0, float scale, int M) {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int i_ = blockIdx.x;
    // spec.py:3
    const int row = i_ * 16;
    // spec.py:4
    uint32_t a[16];
    const int x_row = warp * 4;
    const int x_col = lane * 8;
    const f16* x_ptr = X + (long long)(row + x_row) * X_s0 + x_col;
    const int x_pos = row + x_row;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        a[i * 4] = a[i * 4 + 1] = a[i * 4 + 2] = a[i * 4 + 3] = 0;
        if (x_pos + i < M) ld_global_b32x4(&a[i * 4], x_ptr + (long long)i * X_s0);
    }
    float a_2[32];
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        a_2[i] = at_f16(a, i) * scale;
    // spec.py:5
    float m[4];
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        float part[2];
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int e = j * 8 + i;
            part[i % 2] = i < 2 ? a_2[e] : fmaxf(part[i % 2], a_2[e]);
        }
        m[j] = fmaxf(part[0], part[1]);
    }
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        m[i] = fmaxf(m[i], shfl_xor_f32(m[i], 1));
        m[i] = fmaxf(m[i], shfl_xor_f32(m[i], 2));
        m[i] = fmaxf(m[i], shfl_xor_f32(m[i], 4));
        m[i] = fmaxf(m[i], shfl_xor_f32(m[i], 8));
        m[i] = fmaxf(m[i], shfl_xor_f32(m[i], 16));
    }
    // spec.py:6
    float p[32];
    #pragma unroll
    for (int i = 0; i < 32; ++i)
        p[i] = exp2_approx((a_2[i] - m[row_p(i)]) * 1.442695f);
    // spec.py:7
    float s[4];
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        float part[2];
        #pragma unroll
        for (int i = 0; i < 8; ++i) {
            const int e = j * 8 + i;
            part[i % 2] = i < 2 ? p[e] : part[i % 2] + p[e];
        }
        s[j] = part[0] + part[1];
    }
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        s[i] = s[i] + shfl_xor_f32(s[i], 1);
        s[i] = s[i] + shfl_xor_f32(s[i], 2);
        s[i] = s[i] + shfl_xor_f32(s[i], 4);
        s[i] = s[i] + shfl_xor_f32(s[i], 8);
        s[i] = s[i] + shfl_xor_f32(s[i], 16);
    }
    // spec.py:8
    uint32_t out[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i) {
        const float lo = div_approx(p[2 * i], s[row_p(2 * i)]);
        const float hi = div_approx(p[2 * i + 1], s[row_p(2 * i + 1)]);
        out[i] = pack_f16(lo, hi);
    }
    // spec.py:9
    f16* y_ptr = Y + (long long)(row + x_row) * Y_s0 + x_col;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        if (x_pos + i < M) st_global_b32x4(y_ptr + (long long)i * Y_s0, &out[i * 4]);
}

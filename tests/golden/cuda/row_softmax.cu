// row_softmax: generated for sm_89
// block:    4 warps, 128 threads
// grid:     i over M in tiles of 16

using uint32_t = unsigned int;

// 4 registers in one global load
__device__ __forceinline__ void ld_global_f32x4(float* d, const void* src) {
    const float4 v = *static_cast<const float4*>(src);
    d[0] = v.x; d[1] = v.y; d[2] = v.z; d[3] = v.w;
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

// PTX ISA, div: a/b within 2 ulp for |b| from 2^-126 to 2^126
__device__ __forceinline__ float div_approx(float a, float b) {
    float y;
    asm("div.approx.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
    return y;
}

// 4 registers in one global store
__device__ __forceinline__ void st_global_f32x4(void* dst, const float* v) {
    *static_cast<float4*>(dst) = make_float4(v[0], v[1], v[2], v[3]);
}

// Register i of a tile -> the register, or the offset, that goes with it.
__device__ constexpr int row_p(int i) { return i / 4; }

extern "C" __global__ void __launch_bounds__(128, 1)
row_softmax_sm_89(const float* __restrict__ X, long long X_s0, float* __restrict__ Y, long long Y_s0, float scale,
        int M) {
    const int warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);  // known to be the same in all lanes
    const int lane = threadIdx.x % 32;
    // this program's place in the grid, from its block's number: the fastest axis first
    const int i_ = blockIdx.x;
    // spec.py:3
    const int row = i_ * 16;
    // spec.py:4
    float a[16];
    const int x_row = warp * 4;
    const int x_col = lane * 4;
    const float* x_ptr = X + (long long)(row + x_row) * X_s0 + x_col;
    const int x_pos = row + x_row;
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
        a[i * 4] = a[i * 4 + 1] = a[i * 4 + 2] = a[i * 4 + 3] = 0;
        if (x_pos + i < M) ld_global_f32x4(&a[i * 4], x_ptr + (long long)i * X_s0);
    }
    float a_2[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        a_2[i] = a[i] * scale;
    // spec.py:5
    float m[4];
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int e = j * 4 + i;
            m[j] = i < 1 ? a_2[e] : fmaxf(m[j], a_2[e]);
        }
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
    float p[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        p[i] = exp2_approx((a_2[i] - m[row_p(i)]) * 1.442695f);
    // spec.py:7
    float s[4];
    #pragma unroll
    for (int j = 0; j < 4; ++j) {
        #pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int e = j * 4 + i;
            s[j] = i < 1 ? p[e] : s[j] + p[e];
        }
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
    float out[16];
    #pragma unroll
    for (int i = 0; i < 16; ++i)
        out[i] = div_approx(p[i], s[row_p(i)]);
    // spec.py:9
    float* y_ptr = Y + (long long)(row + x_row) * Y_s0 + x_col;
    #pragma unroll
    for (int i = 0; i < 4; ++i)
        if (x_pos + i < M) st_global_f32x4(y_ptr + (long long)i * Y_s0, &out[i * 4]);
}
